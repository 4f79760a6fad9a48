"""Trainings that are compared: each is a process of its own, and they take steps in turn."""

import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress

from meditron.core.machine import DType

__all__ = ["Contestant", "take_part"]


class Contestant:
    """A process that takes a step per line that it receives, and answers with its wall and CPU seconds."""

    def __init__(self, module: str, name: str, dtype: DType) -> None:
        self.name = name
        command = [sys.executable, "-m", module, "--contestant", name, "--dtype", dtype]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def step(self) -> tuple[float, float]:
        """Take a step; return its wall and CPU seconds."""
        assert self.process.stdin
        assert self.process.stdout
        with suppress(BrokenPipeError):
            print("step", file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline().split()
        if len(answer) != 2:
            raise SystemExit(
                f"{self.name} ended with code {self.process.wait()}: is there memory for three models?"
            )
        return float(answer[0]), float(answer[1])

    def end(self) -> None:
        """End the process."""
        self.process.communicate()


def take_part(train: Callable[[Callable[[float], None]], None]) -> None:
    """Run a training as a contestant: a step per line on stdin, until stdin ends.

    Args:
        train: Trains, and calls its argument with the seconds of each step.
    """

    def await_turn() -> float:
        if not sys.stdin.readline():
            raise SystemExit
        return time.process_time()

    started = await_turn()

    def after_step(seconds: float) -> None:
        nonlocal started
        print(seconds, time.process_time() - started, flush=True)
        started = await_turn()

    train(after_step)
