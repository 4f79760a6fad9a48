"""Row files that grow while models are scored, so that a killed evaluation continues.

Rows are appended batch by batch: a kill costs at most one batch. At the end the file is rewritten in one
canonical order, so interrupted and uninterrupted runs leave the same bytes.
"""

import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, Self, TypeVar

from pydantic import TypeAdapter, ValidationError

from meditron.core.console import progress
from meditron.core.errors import InputError
from meditron.evaluate.methods.base import question_row_adapter
from meditron.evaluate.rows import EvalRow, QuestionRow
from meditron.store.file_lock import exclusive_lock
from meditron.store.files import make_folder
from meditron.store.jsonl import read_jsonl
from meditron.store.resumable_jsonl import ResumableJsonl

__all__ = ["RowsFile", "exclusive", "read_rows", "run_resumable"]

# The first field of every row. A torn last line that begins otherwise is not ours to overwrite.
_ROW_START = b'{"model":"'
R = TypeVar("R", bound=EvalRow)
T = TypeVar("T")


def read_rows(path: Path, row_type: type[R]) -> list[R]:
    """Read the rows of a finished file.

    Args:
        path: The rows file.
        row_type: Type of its rows. `QuestionRow` reads the rows of every evaluation method.

    Raises:
        InputError: a line is not such a row, or two rows are of the same model and item.
    """
    adapter = _adapter(row_type)
    rows = [
        _validated(path, number, line, row_type, adapter)
        for number, line in enumerate(read_jsonl(path), start=1)
    ]
    if len({row.key() for row in rows}) != len(rows):
        item = "question" if issubclass(row_type, QuestionRow) else "document"
        raise InputError(path, f"two rows of the same model, settings and {item}")
    return rows


def _adapter(row_type: type[EvalRow]) -> TypeAdapter[Any]:
    return question_row_adapter() if row_type is QuestionRow else TypeAdapter(row_type)


def _validated(
    path: Path, number: int, line: dict[str, Any] | bytes, row_type: type[R], adapter: TypeAdapter[R]
) -> R:
    try:
        return adapter.validate_json(line) if isinstance(line, bytes) else adapter.validate_python(line)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "line"
        raise InputError(
            path,
            f"not a row of {row_type.contents}: {field}: {first['msg']}",
            place=f"row {number}",
            hint="rows of another version cannot be read; choose another folder with --out",
        ) from error


def exclusive(path: Path) -> AbstractContextManager[None]:
    """Hold a rows file for this process; wait while another evaluation writes it.

    The lock is on a file beside the rows because the rows file itself may be replaced.
    """
    waiting = f"waiting: another evaluation is writing {path}"
    return exclusive_lock(path.with_name(f".{path.name}.lock"), waiting)


class RowsFile(Generic[R]):
    """A rows file open for reading earlier rows and appending new ones.

    Opening it changes nothing on the disk. A file that is not a rows file is refused untouched, and a link is
    never written through.

    Raises:
        InputError: the file holds something else than such rows.
        StorageError: the path is a symbolic link.
    """

    def __init__(self, path: Path, row_type: type[R]) -> None:
        make_folder(path.parent)
        self.path = path
        self._file = ResumableJsonl(path)
        adapter = _adapter(row_type)
        self.rows: list[R] = [
            _validated(path, number, line, row_type, adapter)
            for number, line in enumerate(self._file.lines, start=1)
        ]
        # A torn last line must be the beginning of a row: anything else is a file of the user's.
        torn = self._file.incomplete_line
        if not torn.startswith(_ROW_START[: len(torn)]):
            hint = "choose another folder with --out"
            raise InputError(path, f"not a file of {row_type.contents}", hint=hint)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def known(self, cache_key: str) -> dict[tuple[str, ...], R]:
        """Return item → the row of an earlier run with this cache key."""
        return {row.item(): row for row in self.rows if row.cache_key == cache_key}

    def append(self, rows: Sequence[R]) -> None:
        """Append rows; they are on the disk when this returns."""
        self._file.append(map(_line, rows))

    def finish(self, rows: Iterable[R]) -> None:
        """Replace the file by these rows, in the order of their keys, one row per key."""
        by_key = {row.key(): row for row in rows}
        self._file.replace_content(_line(by_key[key]) for key in sorted(by_key))


def _line(row: EvalRow) -> bytes:
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
    """Compute the rows that the file does not have yet, group by group.

    Args:
        file: The rows file; new rows are appended to it.
        name: The model's name, set in every returned row.
        cache_key: Rows of the file with this key are not computed again.
        groups: Items that are computed together and written at once.
        item: An item's key among the rows (`EvalRow.item`).
        work: Computes the rows of a group.
        unit: Plural name of an item in the progress bar.
        about: Text after the model's name in the progress bar.

    Returns:
        Key of the item → row.
    """
    rows = {key: row.model_copy(update={"model": name}) for key, row in file.known(cache_key).items()}
    # A group is computed whole or not at all: the composition of a batch changes the last bits of a sum.
    missing = [group for group in groups if any(item(member) not in rows for member in group)]
    if missing:
        total = sum(map(len, groups))
        start = total - sum(map(len, missing))
        with progress(f"evaluate {name}{about}", total, unit, start=start) as bar:
            for group in missing:
                computed = work(group)
                file.append(computed)
                rows |= {row.item(): row for row in computed}
                bar.advance(len(group))
    return rows
