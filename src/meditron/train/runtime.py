"""Process settings while training: the device, deterministic arithmetic, and signals that stop a training."""

import ctypes
import os
import resource
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import Any, Literal

import torch

from meditron.core.console import info
from meditron.core.machine import DType, resolve_matrix_dtype

__all__ = [
    "Interruption",
    "deterministic",
    "interruptible",
    "peak_memory_bytes",
    "return_freed_memory",
    "synchronize",
    "training_dtype",
]

# Read by cuBLAS when a process first uses it: work buffers of a fixed size, without which its products are
# not deterministic.
_CUBLAS_WORKSPACE = ("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


def training_dtype(dtype: DType, device: torch.device) -> Literal["float32", "bfloat16"]:
    """Resolve `auto` for the device that is used: bfloat16 if it has instructions for it, else float32.

    NVIDIA GPUs have them from compute capability 8.0 (Ampere) on; older ones emulate bfloat16.
    """
    if dtype == "auto" and device.type == "cuda":
        return "bfloat16" if torch.cuda.get_device_capability(device) >= (8, 0) else "float32"
    return resolve_matrix_dtype(dtype)


_CPU = torch.device("cpu")


@contextmanager
def deterministic(seed: int, threads: int | None, device: torch.device = _CPU) -> Iterator[None]:
    """Seed torch, set the number of threads and select deterministic algorithms; restore all on exit.

    The number of threads affects results: sums are split over the threads, and the split decides their
    rounding. On a GPU, products of float32 are computed in float32 and not in TF32, and sums within products
    of bfloat16 in float32: results then depend on the recipe and not on another program's settings.
    """
    with ExitStack() as stack:
        threads_before = torch.get_num_threads()
        stack.callback(torch.set_num_threads, threads_before)
        torch.set_num_threads(threads or threads_before)
        stack.callback(torch.use_deterministic_algorithms, torch.are_deterministic_algorithms_enabled())
        torch.use_deterministic_algorithms(True)
        # torch would otherwise fill every new tensor, a pass over memory; all new tensors here are
        # overwritten anyway.
        _set_until_exit(stack, torch.utils.deterministic, "fill_uninitialized_memory", False)
        if device.type == "cuda":
            _set_gpu_arithmetic(stack)
        # Seeds the generators of all devices.
        torch.manual_seed(seed)
        yield


def _set_gpu_arithmetic(stack: ExitStack) -> None:
    """Select exact and deterministic arithmetic on GPUs until the stack ends."""
    name, value = _CUBLAS_WORKSPACE
    # Left in the environment on exit: cuBLAS has read it, and torch compares the two.
    os.environ.setdefault(name, value)
    matmul = torch.backends.cuda.matmul
    _set_until_exit(stack, matmul, "fp32_precision", "ieee")
    _set_until_exit(stack, matmul, "allow_bf16_reduced_precision_reduction", False)
    # With benchmarks cuDNN would select algorithms by timing, which differs from run to run.
    _set_until_exit(stack, torch.backends.cudnn, "benchmark", False)
    _set_until_exit(stack, torch.backends.cudnn, "deterministic", True)


def _set_until_exit(stack: ExitStack, settings: Any, name: str, value: object) -> None:  # noqa: ANN401
    stack.callback(setattr, settings, name, getattr(settings, name))
    setattr(settings, name, value)


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all work given to it; a clock read before that measures nothing."""
    if device.type != "cpu":
        torch.get_device_module(device).synchronize(device)


def peak_memory_bytes(device: torch.device) -> int:
    """Return the most memory that the training has had at a time.

    On a GPU these are the bytes of torch's tensors on this device, on a CPU the resident memory of the
    process, both since the process started.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # The unit is bytes on macOS and KiB on Linux.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


_M_MMAP_THRESHOLD = -3  # of glibc's malloc.h


def return_freed_memory(from_bytes: int = 4 << 20) -> None:
    """Make malloc return blocks of that size or larger to the system when they are freed, in this process.

    By default glibc keeps freed blocks of up to 32 MiB for later ones. The tensors of packed rows differ in
    size from batch to batch, so that few fit: finetuning SmolLM2-135M in float32 on 4 x 1,024 tokens took
    12.9 GB, and takes 8.3 GB with this, at the same speed. Nothing changes with other C libraries.
    """
    if sys.platform == "linux" and (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:
        mallopt(_M_MMAP_THRESHOLD, from_bytes)


class Interruption:
    """A flag that is set when a signal requests a stop.

    Signals reach one process only: ranks combine their flags before they act on them.
    """

    requested = False


# SIGUSR1 is the warning that batch systems send before the time limit (Slurm: --signal=USR1@300).
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


@contextmanager
def interruptible() -> Iterator[Interruption]:
    """Turn SIGUSR1 and the first SIGINT or SIGTERM into a request to stop; a second one stops at once.

    Python allows signal handlers in the main thread only; in another thread this changes nothing.
    """
    interruption = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield interruption
        return
    handlers_before = {number: signal.getsignal(number) for number in _SIGNALS}

    def restore_handlers() -> None:
        for number, handler in handlers_before.items():
            signal.signal(number, handler)

    def request_stop(number: int, frame: FrameType | None) -> None:
        # The handler only sets a flag, because a signal may arrive in the middle of an allocation or a write.
        if not interruption.requested:
            info("stopping after this step; press Ctrl-C again to stop at once")
        interruption.requested = True
        # The warning is followed by SIGTERM when the time is up: the checkpoint may be half written then.
        if number != signal.SIGUSR1:
            restore_handlers()

    try:
        for number in handlers_before:
            signal.signal(number, request_stop)
        yield interruption
    finally:
        restore_handlers()
