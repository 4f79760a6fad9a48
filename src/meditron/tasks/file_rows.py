"""Reading of question files (JSON lines, JSON, CSV or Parquet) as rows with their places.

A JSON file is an array of objects, one object that maps ids to objects, or one that maps names of columns to
them. A CSV file has a header, and commas, semicolons or tabs between its cells. Files without a header are
read if they have MMLU's columns: the question, up to ten options, the letter of the answer.
"""

import csv
import io
import json
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from meditron.core.errors import InputError, MissingExtra
from meditron.sources.containers import archive_kind
from meditron.sources.file_types import unsupported_format
from meditron.sources.streams import chunks
from meditron.store.files import reject_duplicate_keys

__all__ = ["SourceRow", "read_source_rows"]

# Maximum size after decompression, which guards against decompression bombs: twice the largest known dataset,
# PubMedQA's artificial questions, which have 444 MB as Parquet and more as JSON.
_MAX_BYTES = 1 << 30
_BLANKS = re.compile(r"[ \t\r\n]*")
_LETTERS = "ABCDEFGHIJ"
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceRow:
    """One row of a file: its fields and its place."""

    fields: dict[str, Any]
    id: str
    """The row's key if the file is an object of objects; else its number in the file, from 1."""
    place: str
    """Line and row number, for errors."""


def read_source_rows(path: Path) -> Iterator[SourceRow]:
    """Yield the rows of a file in order.

    Raises:
        InputError: the file is damaged, larger than 1 GiB, or in none of the formats; names the line.
        SourceError: there is no such file.
    """
    if path.suffix == ".parquet":
        return _read_parquet(path)
    text = _read_text(path)
    start = text.lstrip()[:1]
    if ".csv" in path.suffixes:
        return _read_csv(path, text)
    if start == "{" and _is_json_lines(text):
        return _read_json_lines(path, text)
    if start == "{":
        return _rows_of_columns(list(_read_json(path, text)))
    if start == "[":
        return _read_json(path, text)
    _refuse_other_format(path, text[:4096].encode())
    raise InputError(path, "neither JSON nor JSON lines, nor named .csv" if start else "the file is empty")


def _read_text(path: Path) -> str:
    unpacked = bytearray()
    # Checked while reading, before a decompression bomb fills the memory.
    for piece in chunks(path):
        unpacked += piece
        if len(unpacked) > _MAX_BYTES:
            raise InputError(path, f"more than {_MAX_BYTES >> 20} MiB of questions", hint="split it")
    try:
        return unpacked.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        _refuse_other_format(path, bytes(unpacked))
        line = unpacked.count(b"\n", 0, error.start) + 1
        raise InputError(path, "not UTF-8", place=f"line {line}, byte {error.start:,}") from error


def _refuse_other_format(path: Path, content: bytes) -> None:
    """Raise InputError if the file has a known format that contains no questions."""
    start = content[:4096]
    if archive_kind(start):
        raise InputError(path, "an archive, which is not read as questions", hint="unpack it")
    if known := unsupported_format(start):
        hint = "questions are JSON lines, JSON or CSV"
        raise InputError(path, f"{known[0]}, which is not read as questions", hint=hint)


def _is_json_lines(text: str) -> bool:
    """Return True for JSON lines, False for one JSON value, possibly an object of objects on one line."""
    first, _, rest = text.strip().partition("\n")
    try:
        value = json.loads(first)
    except (ValueError, RecursionError):
        # Not JSON by itself: a damaged line of JSON lines, or the first line of an object over several lines.
        return first.strip().endswith("}")
    return bool(rest) or not all(isinstance(inner, dict) for inner in value.values())


def _read_json_lines(path: Path, text: str) -> Iterator[SourceRow]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            place = f"line {number}"
            value, end = _decode_json_value(path, line, _skip_blanks(line, 0), first=number)
            if _skip_blanks(line, end) != len(line):
                raise InputError(path, "more than one value", place=f"{place}, column {end + 1}")
            yield SourceRow(fields=_require_object(path, value, place), id=str(number), place=place)


def _read_json(path: Path, text: str) -> Iterator[SourceRow]:
    """Yield the objects in a JSON array, or in a JSON object that maps ids to objects."""
    # Values are decoded one by one, because the json module does not report the line of a value.
    at = _skip_blanks(text, 0)
    keyed, close = text[at] == "{", "]" if text[at] == "[" else "}"
    at = _skip_blanks(text, at + 1)
    number, line, counted = 0, 1, 0
    while text[at : at + 1] != close:
        if number:
            at = _expect_sign(path, text, at, ",")
        number, line, counted = number + 1, line + text.count("\n", counted, at), at
        row_key: Any = number
        if keyed:
            row_key, at = _decode_json_value(path, text, at)
            at = _expect_sign(path, text, at, ":")
        value, at = _decode_json_value(path, text, at)
        place = f"line {line}, row {number}"
        yield SourceRow(fields=_require_object(path, value, place), id=str(row_key), place=place)
        at = _skip_blanks(text, at)
    if (rest := _skip_blanks(text, at + 1)) != len(text):
        raise InputError(path, "more than one value", place=_line_place(text, rest))


def _rows_of_columns(rows: list[SourceRow]) -> Iterator[SourceRow]:
    """Yield the rows of an object of columns, as pandas writes a table; any other rows are unchanged.

    Such an object maps `question` and other names to objects that all have the same keys: the rows' ids.
    """
    if "question" not in {row.id for row in rows} or len({tuple(row.fields) for row in rows}) > 1:
        yield from rows
        return
    for row_key in rows[0].fields:
        fields = {column.id: column.fields[row_key] for column in rows}
        yield SourceRow(fields=fields, id=row_key, place=f"row {row_key}")


def _read_parquet(path: Path) -> Iterator[SourceRow]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise MissingExtra("pyarrow", "corpus") from error
    try:
        # The size in memory is in the file's footer, so that a bomb is refused before it is decompressed.
        with parquet.ParquetFile(path) as file:
            groups = range(file.metadata.num_row_groups)
            if sum(file.metadata.row_group(group).total_byte_size for group in groups) > _MAX_BYTES:
                raise InputError(path, f"more than {_MAX_BYTES >> 20} MiB of questions", hint="split it")
            number = 0
            for batch in file.iter_batches():
                for fields in batch.to_pylist():
                    number += 1
                    yield SourceRow(fields=fields, id=str(number), place=f"row {number}")
    except (pyarrow.ArrowException, OSError) as error:
        raise InputError(path, f"not Parquet: {error}") from error


def _read_csv(path: Path, text: str) -> Iterator[SourceRow]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(text), strict=True)
    column_names: list[str] = []
    number, line = 0, 0
    try:
        for cells in reader:
            place, line = f"line {line + 1}", reader.line_num
            # A blank line is no row; its number still counts for the places of errors.
            if not cells:
                continue
            if not column_names:
                column_names = _columns_of_headerless_file(cells) or cells
                if column_names is cells:
                    _refuse_equal_column_names(path, column_names, place)
                    continue
            if len(cells) != len(column_names):
                raise InputError(path, f"expected {len(column_names)} cells, got {len(cells)}", place=place)
            number += 1
            yield SourceRow(fields=dict(zip(column_names, cells, strict=True)), id=str(number), place=place)
    except csv.Error as error:
        raise InputError(path, f"not CSV: {error}", place=f"line {reader.line_num}") from error


def _delimiter(text: str) -> str:
    """Return the comma, semicolon or tab that divides the first two rows into most cells, equally many each.

    Spreadsheets write semicolons where the comma is the decimal sign.
    """
    columns = {",": 1}
    for delimiter in ",;\t":
        rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
        with suppress(csv.Error):  # which reading the file reports, with its line
            sizes = {len(cells) for cells in islice(filter(None, rows), 2)}
            if len(sizes) == 1:
                columns[delimiter] = sizes.pop()
    return max(columns, key=lambda delimiter: columns[delimiter])


def _refuse_equal_column_names(path: Path, column_names: list[str], place: str) -> None:
    for number, name in enumerate(column_names):
        if name.strip() and name in column_names[:number]:
            raise InputError(path, f"two columns are called '{name}'", place=place)


def _columns_of_headerless_file(cells: list[str]) -> list[str] | None:
    """Return column names if the first row is a question with options and a letter, as in MMLU; else None."""
    letters = _LETTERS[: len(cells) - 2]
    header = {cell.strip().casefold() for cell in cells} & {"question", "answer"}
    headless = 2 <= len(letters) == len(cells) - 2 and cells[-1].strip() in [*letters] and not header
    return ["question", *letters, "answer"] if headless else None


def _require_object(path: Path, value: object, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(path, f"expected an object, got a {type(value).__name__}", place=place)
    return value


def _decode_json_value(path: Path, text: str, at: int, first: int = 1) -> tuple[Any, int]:
    """Return the JSON value that begins at a position, and the position after the value."""
    try:
        value, end = _DECODER.raw_decode(text, at)
    except json.JSONDecodeError as error:
        place = _line_place(text, error.pos, first)
        raise InputError(path, f"not JSON: {error.msg}", place=f"{place}, column {error.colno}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(
            path, f"not JSON that can be read: {error}", place=_line_place(text, at, first)
        ) from error
    # JSON can escape half of a surrogate pair, which no text in UTF-8 has.
    if _SURROGATE.search(text, at, end):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            problem = "contains half of a surrogate pair, which is not valid Unicode"
            raise InputError(path, problem, place=_line_place(text, at, first)) from error
    return value, end


def _expect_sign(path: Path, text: str, at: int, sign: str) -> int:
    """Return the position after the given sign; InputError if the text continues with anything else."""
    at = _skip_blanks(text, at)
    if text[at : at + 1] != sign:
        raise InputError(path, f"not JSON: expected '{sign}'", place=_line_place(text, at))
    return _skip_blanks(text, at + 1)


def _line_place(text: str, at: int, first: int = 1) -> str:
    return f"line {first + text.count(chr(10), 0, at)}"


def _skip_blanks(text: str, at: int) -> int:
    match = _BLANKS.match(text, at)
    return match.end() if match else at


_DECODER = json.JSONDecoder(object_pairs_hook=reject_duplicate_keys)
