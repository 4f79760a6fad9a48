"""`metrics.jsonl`: one line per optimizer step, without duplicates however often the run was killed."""

import json
import os
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Self

from meditron.store.files import atomic, translate_write_errors

__all__ = ["MetricsFile"]

_SPIKE_WINDOW = 50  # steps
_SPIKE_SIGMAS = 6.0


class MetricsFile:
    """Appends lines to `metrics.jsonl`; `rows` holds all lines, read or written.

    Opening removes the lines after `step`: a killed run may have logged steps after its last checkpoint, and
    these are trained again. A last line cut short by a kill is removed too.
    """

    def __init__(self, path: Path, step: int) -> None:
        self.rows: list[dict[str, Any]] = [row for row in _read(path) if row["step"] <= step]
        # Rewritten as a whole and renamed: truncating in place could lose lines that are still valid.
        with atomic(path, "w") as file:
            file.writelines(f"{_line(row)}\n" for row in self.rows)
        self._path = path
        self._file: IO[str] = path.open("a", encoding="utf-8")

    def append(self, row: dict[str, Any]) -> None:
        """Write one line, flushed so that a program following the file sees it at once."""
        self.rows.append(row)
        with translate_write_errors(self._path):
            self._file.write(f"{_line(row)}\n")
            self._file.flush()

    def sync(self) -> None:
        """Flush all lines to the disk. Call it before a checkpoint, which implies that they exist."""
        with translate_write_errors(self._path):
            os.fsync(self._file.fileno())

    def is_spike(self, loss: float) -> bool:
        """Return whether a loss is more than six standard deviations above the mean of the last fifty."""
        last = [row["loss"] for row in self.rows[-_SPIKE_WINDOW:] if "loss" in row]
        # Of few losses, in the steep first steps, the standard deviation says nothing.
        if len(last) < _SPIKE_WINDOW // 2:
            return False
        limit: float = statistics.fmean(last) + _SPIKE_SIGMAS * statistics.stdev(last)
        return loss > limit

    def heldout(self) -> dict[int, dict[str, float]]:
        """Return step → held-out loss by source, for the steps after which it was evaluated."""
        return {row["step"]: row["heldout"] for row in self.rows if "heldout" in row}

    def __enter__(self) -> Self:
        """Return the file itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close the file."""
        self._file.close()


def _read(path: Path) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            row = json.loads(line)
        except json.JSONDecodeError:  # the line that was being written when the run was killed
            return
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            return
        yield row


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False, allow_nan=False)
