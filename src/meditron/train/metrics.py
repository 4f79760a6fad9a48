"""`metrics.jsonl`: one line per optimizer step, without duplicates however often the run was killed."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Self

from meditron.store.resumable_jsonl import ResumableJsonl

__all__ = ["MetricsFile"]


class MetricsFile:
    """The file `metrics.jsonl`, to which lines are appended; `rows` has all lines, read or written.

    Opening removes the lines after `step`: a killed run may have logged steps after its last checkpoint, and
    these are trained again. A last line cut short by a kill is removed too.
    """

    def __init__(self, path: Path, step: int) -> None:
        self._file = ResumableJsonl(path)
        self.rows: list[dict[str, Any]] = [
            row for row in _parse_rows(self._file.lines) if row["step"] <= step
        ]
        # Rewritten as a whole and renamed: truncating in place could lose lines that are still valid.
        self._file.replace_content(map(_to_json_line, self.rows))

    def append(self, row: dict[str, Any]) -> None:
        """Write one line, flushed so that a program following the file sees it at once."""
        self.rows.append(row)
        self._file.append([_to_json_line(row)], durable=False)

    def sync(self) -> None:
        """Flush all lines to the disk.

        Call this before saving a checkpoint, because a checkpoint implies that the lines of its steps exist.
        """
        self._file.sync()

    def heldout_losses(self) -> dict[int, dict[str, float]]:
        """Return step → held-out loss by source, for the steps after which it was evaluated."""
        return {row["step"]: row["heldout"] for row in self.rows if "heldout" in row}

    def __enter__(self) -> Self:
        """Return the file itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Close the file."""
        self._file.close()


def _parse_rows(lines: Iterable[bytes]) -> Iterator[dict[str, Any]]:
    """Yield the rows before the first damaged line, which a crash of the file system can leave."""
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            return
        if not isinstance(row, dict) or not isinstance(row.get("step"), int):
            return
        yield row


def _to_json_line(row: dict[str, Any]) -> bytes:
    return f"{json.dumps(row, ensure_ascii=False, allow_nan=False)}\n".encode()
