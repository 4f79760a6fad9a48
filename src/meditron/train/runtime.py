"""Process settings while training: deterministic arithmetic, and signals that stop at the end of a step."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch

from meditron.core.console import info

__all__ = ["Interruption", "deterministic", "interruptible"]


@contextmanager
def deterministic(seed: int, threads: int | None) -> Iterator[None]:
    """Seed torch, set the number of threads and select deterministic algorithms; restore all on exit.

    The number of threads affects results: sums are split over the threads, and the split decides their
    rounding.
    """
    threads_before = torch.get_num_threads()
    algorithms_before = torch.are_deterministic_algorithms_enabled()
    # Typed Any, because its one attribute is defined at run time.
    deterministic_settings: Any = torch.utils.deterministic
    fill_before = deterministic_settings.fill_uninitialized_memory
    try:
        torch.set_num_threads(threads or threads_before)
        torch.use_deterministic_algorithms(True)
        # torch would otherwise fill every new tensor, a pass over memory; all new tensors here are
        # overwritten anyway.
        deterministic_settings.fill_uninitialized_memory = False
        torch.manual_seed(seed)
        yield
    finally:
        torch.set_num_threads(threads_before)
        torch.use_deterministic_algorithms(algorithms_before)
        deterministic_settings.fill_uninitialized_memory = fill_before


class Interruption:
    """A flag that is set when a signal requests a stop."""

    requested = False


@contextmanager
def interruptible() -> Iterator[Interruption]:
    """Turn the first SIGINT or SIGTERM into a request to stop; a second one stops at once.

    Python allows signal handlers in the main thread only; in another thread this changes nothing.
    """
    interruption = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield interruption
        return
    handlers_before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def restore_handlers() -> None:
        for number, handler in handlers_before.items():
            signal.signal(number, handler)

    def request_stop(number: int, frame: FrameType | None) -> None:
        # The handler only sets a flag, because a signal may arrive in the middle of an allocation or a write.
        interruption.requested = True
        info("stopping after this step; press Ctrl-C again to stop at once")
        restore_handlers()

    try:
        for number in handlers_before:
            signal.signal(number, request_stop)
        yield interruption
    finally:
        restore_handlers()
