"""The process while it trains: repeatable arithmetic, and signals that wait for the end of a step."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch

from meditron.core.console import info

__all__ = ["Interruption", "interruptible", "repeatable"]


@contextmanager
def repeatable(seed: int, threads: int | None) -> Iterator[None]:
    """Seed torch, fix the number of threads and choose deterministic algorithms; put all back at the end."""
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    deterministic: Any = torch.utils.deterministic  # whose one attribute is made at run time
    filled = deterministic.fill_uninitialized_memory
    try:
        torch.set_num_threads(threads or before[0])
        torch.use_deterministic_algorithms(True)
        # Filling what is written over anyway would cost a pass over memory for each tensor.
        deterministic.fill_uninitialized_memory = False
        torch.manual_seed(seed)
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1])
        deterministic.fill_uninitialized_memory = filled


class Interruption:
    """Whether somebody has asked the run to stop."""

    asked = False


@contextmanager
def interruptible() -> Iterator[Interruption]:
    """Turn the first SIGINT or SIGTERM into a request; a second one stops at once, as without this.

    Only the main thread may handle signals: in another one nothing changes.
    """
    interruption = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield interruption
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def ask(number: int, frame: FrameType | None) -> None:
        interruption.asked = True
        info("stopping after this step; once more to stop at once")
        for known, handler in before.items():
            signal.signal(known, handler)

    try:
        for number in before:
            signal.signal(number, ask)
        yield interruption
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
