"""Trainings that are compared: each is a process of its own, and they take steps in turn."""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass

from meditron.core.machine import DType

__all__ = ["Rounds", "take_part", "take_turns"]

_ROUNDS = 5


class _Contestant:
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


@dataclass(frozen=True)
class Rounds:
    """The wall and CPU seconds of a step of each contestant, round by round."""

    seconds: list[dict[str, tuple[float, float]]]

    def wall(self, name: str) -> float:
        """Return the median wall seconds of a contestant's step."""
        return statistics.median(times[name][0] for times in self.seconds)

    def details(self, ours: str, peer: str) -> dict[str, list[object]]:
        """Return the columns of a recorded row: medians of the CPU seconds, and the wall seconds by round."""
        return {
            "cpu_seconds": [
                round(statistics.median(times[name][1] for times in self.seconds), 3) for name in (ours, peer)
            ],
            "rounds": [[round(times[name][0], 3) for name in (ours, peer)] for times in self.seconds],
        }


def take_turns(module: str, names: Iterable[str], dtype: DType, *, warm_up: int) -> Rounds:
    """Let contestants of a module take steps in turn, each after steps that are not counted."""
    field = {name: _Contestant(module, name, dtype) for name in names}
    for contestant in field.values():
        for _ in range(warm_up):
            contestant.step()
    seconds = [{name: contestant.step() for name, contestant in field.items()} for _ in range(_ROUNDS)]
    for contestant in field.values():
        contestant.end()
    return Rounds(seconds)
