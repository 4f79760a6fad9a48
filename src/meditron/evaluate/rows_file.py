"""Rows files, to which rows are appended while a model is scored, so that a killed evaluation can continue.

Rows are appended group by group, so a killed run loses at most one group. At the end the file is rewritten in
sorted order, so that runs with and without interruption write the same bytes.

With several ranks, rank 0 alone writes the rows file. Every other rank appends its rows to a file of its own
beside it, `.NAME.rank-K`. Rank 0 takes these rows over when all groups are computed; after a kill, the next
run does, with any number of ranks.
"""

import glob
import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from itertools import accumulate
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from pydantic import TypeAdapter, ValidationError

from meditron.core.console import progress
from meditron.core.errors import InputError
from meditron.evaluate.methods.base import question_row_adapter
from meditron.evaluate.ranks import ONE_RANK, EvalRanks
from meditron.evaluate.rows import EvalRow, QuestionRow
from meditron.store.file_lock import exclusive_lock
from meditron.store.files import make_folder
from meditron.store.jsonl import read_jsonl
from meditron.store.resumable_jsonl import ResumableJsonl

__all__ = ["RowsFile", "lock_rows_file", "read_rows", "run_resumable"]

# Beginning of every row. A file whose incomplete last line begins differently is not a rows file.
_ROW_START = b'{"model":"'
R = TypeVar("R", bound=EvalRow)
T = TypeVar("T")


def read_rows(path: Path, row_type: type[R]) -> list[R]:
    """Read all rows of a complete rows file.

    Args:
        path: The rows file.
        row_type: Type of its rows. `QuestionRow` reads the rows of every evaluation method.

    Raises:
        InputError: a line is not a row of this type, or two rows have the same model, settings and item.
    """
    adapter = _row_adapter(row_type)
    rows = [
        _validate_row(path, number, line, row_type, adapter)
        for number, line in enumerate(read_jsonl(path), start=1)
    ]
    if len({row.row_key() for row in rows}) != len(rows):
        item = "question" if issubclass(row_type, QuestionRow) else "document"
        raise InputError(path, f"two rows of the same model, settings and {item}")
    return rows


def _row_adapter(row_type: type[EvalRow]) -> TypeAdapter[Any]:
    return question_row_adapter() if row_type is QuestionRow else TypeAdapter(row_type)


def _validate_row(
    path: Path, number: int, line: dict[str, Any] | bytes, row_type: type[R], adapter: TypeAdapter[R]
) -> R:
    try:
        return adapter.validate_json(line) if isinstance(line, bytes) else adapter.validate_python(line)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "line"
        raise InputError(
            path,
            f"not a row of {row_type.rows_name}: {field}: {first['msg']}",
            place=f"row {number}",
            hint="rows of another version cannot be read; choose another folder with --out",
        ) from error


def lock_rows_file(path: Path) -> AbstractContextManager[None]:
    """Return a context manager that locks a rows file; wait while another evaluation writes the file.

    A separate file beside the rows file is locked, because the rows file itself is replaced at the end.
    """
    waiting = f"waiting: another evaluation is writing {path}"
    return exclusive_lock(path.with_name(f".{path.name}.lock"), waiting)


class RowsFile(Generic[R]):
    """A rows file, open for reading the rows of earlier runs and for appending new ones.

    Opening a rows file changes it only if ranks of a killed run have left rows beside it. A file of another
    kind is never overwritten, and a symbolic link is never followed.

    Args:
        path: The file.
        row_type: Type of its rows.
        ranks: The ranks that compute the rows together. On ranks other than 0, `rows` is empty.

    Raises:
        InputError: the file contains something other than rows of this type.
        StorageError: the path is a symbolic link.
    """

    def __init__(self, path: Path, row_type: type[R], ranks: EvalRanks = ONE_RANK) -> None:
        make_folder(path.parent)
        self.path, self.ranks = path, ranks
        self.rows: list[R] = []
        # Rows that a killed run has left in this rank's own file are being taken over by rank 0: the file is
        # opened when this rank has new rows.
        self._file: ResumableJsonl | None = None
        self._path_of_rank = path.with_name(f".{path.name}.rank-{ranks.rank}")
        if ranks.is_main:
            self._file, self.rows = _open_rows(path, row_type)
            self._take_over_rows(row_type)

    def _take_over_rows(self, row_type: type[R]) -> None:
        """Append the rows that ranks of a killed run have left in files of their own, and remove these."""
        for path in sorted(self.path.parent.glob(f".{glob.escape(self.path.name)}.rank-*")):
            _, rows = _open_rows(path, row_type)
            self.rows += rows
            self.append_rows(rows)
            path.unlink()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    def rows_with_cache_key(self, cache_key: str) -> dict[tuple[str, ...], R]:
        """Return item → row, for the rows of earlier runs with this cache key."""
        return {row.item_key(): row for row in self.rows if row.cache_key == cache_key}

    def append_rows(self, rows: Sequence[R]) -> None:
        """Append rows and flush them to the disk: to the rows file, or to this rank's own file."""
        if self._file is None:
            self._file = ResumableJsonl(self._path_of_rank)
        self._file.append(map(_encode_row, rows))

    def collect_rows(self, rows: Sequence[R]) -> list[R]:
        """Return the new rows of all ranks, after rank 0 has them in the rows file.

        Args:
            rows: The rows that this rank has appended.
        """
        by_rank = self.ranks.gather(rows)
        if self.ranks.is_main and self.ranks.size > 1:
            self.append_rows([row for each in by_rank[1:] for row in each])
        self.ranks.gather(None)  # the rank's own file is removed only when its rows are safe
        if not self.ranks.is_main and self._file is not None:
            self._file.close()
            self._file = None
            self._path_of_rank.unlink()
        return [row for each in by_rank for row in each]

    def rewrite_sorted(self, rows: Iterable[R]) -> None:
        """Rewrite the file with these rows, sorted by key; of several rows with one key the last is kept.

        Ranks other than 0 write nothing.
        """
        if self.ranks.is_main and self._file is not None:
            by_key = {row.row_key(): row for row in rows}
            self._file.replace_content(_encode_row(by_key[key]) for key in sorted(by_key))


def _open_rows(path: Path, row_type: type[R]) -> tuple[ResumableJsonl, list[R]]:
    file = ResumableJsonl(path)
    adapter = _row_adapter(row_type)
    rows = [
        _validate_row(path, number, line, row_type, adapter)
        for number, line in enumerate(file.lines, start=1)
    ]
    # An incomplete last line must be the beginning of a row; else this is some other file of the user.
    torn = file.incomplete_line
    if not torn.startswith(_ROW_START[: len(torn)]):
        hint = "choose another folder with --out"
        raise InputError(path, f"not a file of {row_type.rows_name}", hint=hint)
    return file, rows


def _encode_row(row: EvalRow) -> bytes:
    text = json.dumps(row.model_dump(), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return text.encode() + b"\n"


def run_resumable(
    file: RowsFile[R],
    name: str,
    cache_key: str,
    groups: Sequence[Sequence[T]],
    item: Callable[[T], tuple[str, ...]],
    work: Callable[[Sequence[T]], Sequence[R]],
    *,
    unit: str,
    about: str = "",
) -> dict[tuple[str, ...], R]:
    """Compute the rows that the file does not contain yet, group by group, each on one of the file's ranks.

    Args:
        file: The rows file; new rows are appended to it.
        name: Name of the model, set in every returned row.
        cache_key: Rows of the file with this cache key are reused.
        groups: Items in groups that are computed together and written together.
        item: Function that returns the key of an item (`EvalRow.item_key`).
        work: Function that computes the rows of a group.
        unit: Plural name of an item in the progress bar.
        about: Text after the name of the model in the progress bar.

    Returns:
        Key of an item → its row.
    """
    ranks = file.ranks
    known = ranks.from_main(file.rows_with_cache_key(cache_key) if ranks.is_main else None)
    rows = {key: row.model_copy(update={"model": name}) for key, row in known.items()}
    # If one row of a group is missing, the whole group is computed: other batches change the last bits.
    missing = [group for group in groups if any(item(member) not in rows for member in group)]
    if missing:
        total = sum(map(len, groups))
        sizes = list(accumulate(map(len, missing), initial=0))
        start = done = total - sizes[-1]
        computed: list[R] = []
        with progress(f"evaluate {name}{about}", total, unit, start=start) as bar:
            for number in ranks.divide(len(missing)):
                new = work(missing[number])
                file.append_rows(new)
                computed += new
                # The groups before this one are other ranks' work, done or about to be.
                bar.advance(start + sizes[number + 1] - done)
                done = start + sizes[number + 1]
            rows |= {row.item_key(): row for row in file.collect_rows(computed)}
            bar.advance(total - done)
    return rows
