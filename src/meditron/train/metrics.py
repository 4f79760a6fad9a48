"""`metrics.jsonl`: a line for each optimizer step, none of them twice, however often the run was killed."""

import json
import os
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Self

from meditron.store.files import atomic, translate_write_errors

__all__ = ["MetricsFile"]

_HISTORY = 50
_SIGMAS = 6.0


class MetricsFile:
    """Appends to `metrics.jsonl` after dropping the lines past `step`, those of a checkpoint's future.

    `rows` holds every line, read or written. A line cut short by a kill is dropped too.
    """

    def __init__(self, path: Path, step: int) -> None:
        self.rows: list[dict[str, Any]] = [row for row in _read(path) if row["step"] <= step]
        with atomic(path, "w") as file:
            file.writelines(f"{_line(row)}\n" for row in self.rows)
        self._path = path
        self._file: IO[str] = path.open("a", encoding="utf-8")

    def append(self, row: dict[str, Any]) -> None:
        """Write one line; a program that follows the file sees it at once."""
        self.rows.append(row)
        with translate_write_errors(self._path):
            self._file.write(f"{_line(row)}\n")
            self._file.flush()

    def sync(self) -> None:
        """Have every line on the disk: a checkpoint is about to promise that they are there."""
        with translate_write_errors(self._path):
            os.fsync(self._file.fileno())

    def spike(self, loss: float) -> bool:
        """Whether a loss stands more than six standard deviations above those of the last fifty steps."""
        last = [row["loss"] for row in self.rows[-_HISTORY:] if "loss" in row]
        return len(last) >= _HISTORY // 2 and loss > statistics.fmean(last) + _SIGMAS * statistics.stdev(last)

    def heldout(self) -> dict[int, dict[str, float]]:
        """Step → held-out loss by source, of the steps after which it was taken."""
        return {row["step"]: row["heldout"] for row in self.rows if "heldout" in row}

    def __enter__(self) -> Self:
        """Return itself."""
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
        except json.JSONDecodeError:  # the line that was being written
            return
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            return
        yield row


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False, allow_nan=False)
