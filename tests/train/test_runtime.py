"""What training changes about the process, it puts back."""

import os
import signal
import threading

import pytest
import torch

from meditron.train.runtime import deterministic, interruptible


def state():
    return torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()


def test_the_settings_hold_inside_and_are_put_back():
    before = state()
    with deterministic(7, threads=1):
        assert state() == (1, True)
        assert not torch.utils.deterministic.fill_uninitialized_memory
        first = torch.rand(3)
    assert state() == before
    with pytest.raises(ZeroDivisionError), deterministic(7, threads=1):
        raise ZeroDivisionError
    assert state() == before
    with deterministic(7, threads=None):
        assert state()[0] == before[0]
        assert torch.equal(torch.rand(3), first)


def test_the_first_signal_is_a_request_and_the_second_stops_at_once(capsys):
    before = signal.getsignal(signal.SIGINT)
    with interruptible() as interruption:
        assert not interruption.requested
        os.kill(os.getpid(), signal.SIGINT)
        assert interruption.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
    assert "again to stop at once" in capsys.readouterr().err


def test_outside_the_main_thread_signals_are_left_alone():
    seen = []

    def work():
        with interruptible() as interruption:
            seen.append((interruption.requested, signal.getsignal(signal.SIGTERM)))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(False, before)]
