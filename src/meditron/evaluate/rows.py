"""The rows behind every score: one line of `perplexity.jsonl` a model and document.

While models are scored, rows are appended batch by batch, so that a kill costs at most one batch; at the end
the file is rewritten in one canonical order, so that it does not tell how often it was interrupted.
"""

import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from pydantic import Field, ValidationError

from meditron.ground.config import Config
from meditron.ground.errors import InputError
from meditron.store.files import atomic, make_folder, storing
from meditron.store.jsonl import read_jsonl

__all__ = ["FILE_NAME", "Row", "RowsFile", "read_rows"]

FILE_NAME = "perplexity.jsonl"


class Row(Config):
    """How one model did on one document."""

    model: str
    """The model's reference in the recipe."""

    model_digest: str
    """SHA-256 of the model's artifact."""

    source: str
    """The document's source."""

    id: str
    """The document's id."""

    tokens: int = Field(ge=0)
    """Tokens scored: all but the first, which nothing precedes; 0 for a document of one token."""

    nll: float = Field(ge=0, allow_inf_nan=False)
    """Sum of their negative log-likelihoods, in nats."""

    bytes: int = Field(ge=0)
    """UTF-8 bytes of the text they stand for."""

    ids_sha256: str
    """SHA-256 of the token ids: losses per token compare between models that read the same ids."""

    cut: bool = False
    """Whether only the document's first `max_tokens` tokens were scored."""

    text_sha256: str
    """SHA-256 of the document's whole text."""

    plan: str
    """SHA-256 of all that decides this figure: model, documents, number format, cut, batches."""

    def key(self) -> tuple[str, str, str]:
        """What no two rows of a finished file share."""
        return self.model, self.source, self.id


def read_rows(path: Path) -> list[Row]:
    """The rows of a finished file.

    Raises:
        InputError: a line is no such row, or two rows are of the same model and document.
    """
    rows = [_row(path, number, line) for number, line in enumerate(read_jsonl(path), start=1)]
    keys = {row.key() for row in rows}
    if len(keys) != len(rows):
        raise InputError(path, "two rows of the same model and document")
    return rows


def _row(path: Path, number: int, line: dict[str, object]) -> Row:
    try:
        return Row.model_validate(line)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise InputError(
            path, f"not a row of perplexities: {where}: {first['msg']}", place=f"row {number}"
        ) from error


class RowsFile:
    """`perplexity.jsonl` while it grows: rows of earlier runs are found again, new ones are appended."""

    def __init__(self, folder: Path) -> None:
        self.path = make_folder(folder) / FILE_NAME
        self._cut_torn_line()
        self.rows = [_row(self.path, *pair) for pair in enumerate(read_jsonl(self.path), start=1)]
        self._file: IO[bytes] | None = None

    def __enter__(self) -> Self:
        with storing(self.path):
            self._file = self.path.open("ab")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()

    def known(self, plan: str) -> dict[tuple[str, str], Row]:
        """(source, id) → the row that an earlier run left for this plan."""
        return {(row.source, row.id): row for row in self.rows if row.plan == plan}

    def append(self, rows: Sequence[Row]) -> None:
        """Add rows; they are on the disk when this returns."""
        if self._file is None:
            raise ValueError("the rows file is not open")
        with storing(self.path):
            self._file.write(b"".join(map(_line, rows)))
            self._file.flush()
            os.fsync(self._file.fileno())

    def finish(self, rows: Iterable[Row]) -> None:
        """Replace the file by these rows alone, in the order of model, source and id."""
        ordered = sorted(rows, key=Row.key)
        with atomic(self.path) as file:
            file.writelines(map(_line, ordered))

    def _cut_torn_line(self) -> None:
        """A kill can tear the last line: it ends the file without a newline, and is taken off."""
        self.path.touch()
        with self.path.open("r+b") as file:
            content = file.read()
            file.truncate(content.rfind(b"\n") + 1)


def _line(row: Row) -> bytes:
    return json.dumps(row.model_dump(), ensure_ascii=False, separators=(",", ":")).encode() + b"\n"
