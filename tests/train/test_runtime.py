"""Process settings while training, and their restoration."""

import os
import signal
import subprocess
import sys
import threading

import pytest
import torch

from meditron.core.machine import resolve_matrix_dtype
from meditron.train.runtime import (
    deterministic,
    interruptible,
    peak_memory_bytes,
    synchronize,
    training_dtype,
)


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


def gpu_state():
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    return (
        matmul.fp32_precision,
        matmul.allow_bf16_reduced_precision_reduction,
        cudnn.benchmark,
        cudnn.deterministic,
    )


def test_on_a_gpu_arithmetic_is_exact_and_deterministic(monkeypatch):
    """The settings exist without a GPU too."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    before = gpu_state()
    with deterministic(7, 1, torch.device("cuda")):
        assert gpu_state() == ("ieee", False, False, True)
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    assert gpu_state() == before
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    with deterministic(7, 1, torch.device("cuda")):
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8", "the user's own setting"


def test_on_a_cpu_the_gpu_settings_are_unchanged(monkeypatch):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    before = gpu_state()
    with deterministic(7, 1):
        assert gpu_state() == before
        assert "CUBLAS_WORKSPACE_CONFIG" not in os.environ


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), "float32"), ((8, 0), "bfloat16")])
def test_the_automatic_dtype_is_that_of_the_device(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    gpu, cpu = torch.device("cuda", 0), torch.device("cpu")
    assert training_dtype("auto", gpu) == expected
    assert training_dtype("auto", cpu) == resolve_matrix_dtype("auto")
    for device in (gpu, cpu):
        assert training_dtype("float32", device) == "float32"
        assert training_dtype("bfloat16", device) == "bfloat16"


def test_the_peak_memory_of_a_cpu_is_that_of_the_process():
    synchronize(torch.device("cpu"))
    before = peak_memory_bytes(torch.device("cpu"))
    block = torch.ones(1 << 26)  # 256 MiB
    assert peak_memory_bytes(torch.device("cpu")) >= block.nbytes
    assert peak_memory_bytes(torch.device("cpu")) >= before


def test_the_warning_of_a_batch_system_requests_a_stop_and_is_not_the_first_signal(capsys):
    before = signal.getsignal(signal.SIGUSR1)
    with interruptible() as interruption:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGUSR1)
        assert interruption.requested
        os.kill(os.getpid(), signal.SIGTERM)  # the time is up: the checkpoint is still written
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGUSR1) is before
    assert capsys.readouterr().err.count("stopping after this step") == 1


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


_FREE_EVERY_OTHER_BLOCK = """
import torch
from meditron.train.runtime import return_freed_memory

def resident():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

SIZE = 8 << 20
torch.ones(31 << 20, dtype=torch.uint8)  # freed at once: from now on glibc keeps blocks of this size
if {enabled}:
    return_freed_memory()
blocks = [torch.ones(SIZE, dtype=torch.uint8) for _ in range(24)]
before = resident()
del blocks[::2]
print((before - resident()) / (12 * SIZE))
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc's malloc")
@pytest.mark.parametrize(("enabled", "freed"), [(False, 0.0), (True, 1.0)])
def test_freed_blocks_between_used_ones_return_to_the_system(enabled: bool, freed: float):
    script = _FREE_EVERY_OTHER_BLOCK.format(enabled=enabled)
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert float(result.stdout) == pytest.approx(freed, abs=0.05)
