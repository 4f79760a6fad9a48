"""Reader of Parquet files: one document per row, as in the hub's data sets.

The columns are those of JSON lines (`plain`): `text`, and optionally `id`, `title`, `language`, `year`,
`meta`; capitals do not matter, and `license` is read as `licence`. `text`, `id`, `title` and `language` may
be binary columns of UTF-8, as Spark and Impala write strings. The other columns are added to `meta`, except
binary ones. Rows without text are counted as skipped. A row without an id gets the id
`parquet:NAME:NUMBER`. Files with the columns of the guidelines data set are read as `guidelines` does.
"""

import io
import math
from collections.abc import Iterator
from datetime import date, datetime
from decimal import Decimal
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from meditron.core.errors import InputError, MissingExtra
from meditron.sources import guidelines
from meditron.sources.document import Document, Readable, ReadLog
from meditron.sources.plain import row_to_document
from meditron.sources.streams import chunks, path_as_text

if TYPE_CHECKING:
    from pyarrow import parquet

__all__ = ["read", "recognises"]

_MAGIC = b"PAR1"
_LARGEST = 1 << 30  # bytes of a compressed or archived file, which is read as a whole
# Rows that are decoded at once. A text has up to 24 MiB, and a dictionary-encoded page can repeat a value
# without its bytes being in the file.
_BATCH = 32
_COLUMNS = ("text", "id", "title", "language", "year", "retracted", "meta")
_STRINGS = ("text", "id", "title", "language")
_DEEPEST = 8  # levels of nested columns


def recognises(start: bytes) -> bool:
    """Return True if a file that starts with these bytes is a Parquet file."""
    return start.startswith(_MAGIC) and start[len(_MAGIC) :][:1] != b" "  # `PAR1 is a gene.` is text


def read(file: Readable, log: ReadLog | None = None, name: str | None = None) -> Iterator[Document]:
    """Yield the documents of a file in order, a few rows in memory at a time.

    Args:
        file: The file.
        log: Log to which the rows without text are added.
        name: Name of the file in the ids of documents without an id; default: `file.name`.

    Raises:
        InputError: The file is damaged or truncated, there is no column `text`, or a row's field has the
            wrong type; the error has the row.
    """
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtra("pyarrow", "corpus") from error
    number = 0
    try:
        with _open_seekable(file) as stream, parquet.ParquetFile(stream, pre_buffer=False) as table:
            columns = _columns(file, table)
            for batch in table.iter_batches(_BATCH, columns=list(columns)):
                for values in batch.to_pylist():
                    number += 1
                    row = {columns[key]: value for key, value in values.items()}
                    document = _document(file, row, number, log, name)
                    if document is not None:
                        yield document
    except (pyarrow.ArrowException, OSError, MemoryError, UnicodeDecodeError, OverflowError) as error:
        message = " ".join(str(error).split())[:200]
        place = f"after {number:,} rows" if number else None
        raise InputError(file, f"not Parquet, or damaged: {message}", place=place) from error


def _open_seekable(file: Readable) -> IO[bytes]:
    """Open a file on disk, or read a compressed file or a member of an archive as a whole."""
    if isinstance(file, Path):
        stream = file.open("rb")
        if stream.read(len(_MAGIC)) == _MAGIC:
            stream.seek(0)
            return stream
        stream.close()
    whole = io.BytesIO()
    for piece in chunks(file):
        whole.write(piece)
        if whole.tell() > _LARGEST:
            raise InputError(file, f"longer than {_LARGEST >> 20} MiB", hint="unpack it")
    whole.seek(0)
    return whole


def _columns(file: Readable, table: "parquet.ParquetFile") -> dict[str, str]:
    """Return the columns to read, each with its name in the row."""
    import pyarrow

    fields = table.schema_arrow
    columns: dict[str, str] = {}
    for field in fields:
        name = "licence" if field.name.lower() == "license" else field.name.lower()
        if name in columns.values():
            raise InputError(file, f"two columns are called '{name}'")
        if name in _STRINGS or not _is_binary(pyarrow.types, field.type):
            columns[field.name] = name
    if "text" not in columns.values() and not guidelines.is_guideline(frozenset(columns.values())):
        problem = f'no column "text"; its columns: {", ".join(fields.names)[:200]}'
        raise InputError(file, problem, hint="rename the column that holds the text")
    return columns


def _is_binary(types: Any, kind: Any) -> bool:  # noqa: ANN401
    return any(
        check(kind)
        for check in (types.is_binary, types.is_large_binary, types.is_fixed_size_binary, types.is_dictionary)
    ) and not (types.is_dictionary(kind) and types.is_string(kind.value_type))


def _document(
    file: Readable, row: dict[str, Any], number: int, log: ReadLog | None, name: str | None
) -> Document | None:
    place = f"row {number:,}"
    for key in _STRINGS:
        if isinstance(row.get(key), bytes):
            row[key] = _decode(file, row[key], key, place)
    if "text" not in row:
        return guidelines.row_to_document(file, row, place, log)
    if not isinstance(row["text"], str) and row["text"] is not None:
        raise InputError(file, f'"text" is a {type(row["text"]).__name__}', place=place)
    if not (row["text"] or "").strip():
        if log is not None:
            log.skipped["row without text"] += 1
        return None
    known = {key: row.pop(key) for key in _COLUMNS if key in row}
    meta = known.pop("meta", None) or {}
    if not isinstance(meta, dict):
        meta = {"meta": meta}
    others = {key: _json_value(value) for key, value in (row | meta).items()}
    known["meta"] = {key: value for key, value in others.items() if value is not None}
    if isinstance(known.get("year"), date):
        known["year"] = known["year"].year
    identity = f"parquet:{name or path_as_text(Path(file.name))}:{number}"
    return row_to_document(file, known, place, "parquet", identity)


def _decode(file: Readable, value: bytes, key: str, place: str) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise InputError(file, f'"{key}" is binary and not UTF-8', place=place) from error


def _json_value(value: Any, depth: int = 0) -> Any:  # noqa: ANN401
    """Convert a value to JSON: dates to ISO's format, decimals to numbers; None for what JSON has not."""
    if isinstance(value, str | bool | int) or value is None:
        return value
    if isinstance(value, float | Decimal):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, date | datetime):
        return value.isoformat()
    if depth < _DEEPEST and isinstance(value, list):
        return [_json_value(item, depth + 1) for item in value]
    if depth < _DEEPEST and isinstance(value, dict):
        return {str(key): _json_value(item, depth + 1) for key, item in value.items()}
    return None
