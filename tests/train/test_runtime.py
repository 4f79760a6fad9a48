"""Process settings while training, and their restoration."""

import os
import signal
import threading

import pytest
import torch

from meditron.train.runtime import deterministic, interruptible


def state():
    return torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()


def test_settings_apply_inside_and_are_restored():
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


def test_the_first_signal_requests_a_stop_and_the_second_stops_at_once(capsys):
    before = signal.getsignal(signal.SIGINT)
    with interruptible() as interruption:
        assert not interruption.requested
        os.kill(os.getpid(), signal.SIGINT)
        assert interruption.requested
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before
    assert "again to stop at once" in capsys.readouterr().err


def test_outside_the_main_thread_signals_are_unchanged():
    seen = []

    def work():
        with interruptible() as interruption:
            seen.append((interruption.requested, signal.getsignal(signal.SIGTERM)))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(False, before)]
