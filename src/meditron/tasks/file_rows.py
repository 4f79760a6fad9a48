"""Rows of a file of questions (JSON lines, JSON or CSV, plain or compressed), each with its place.

A JSON file is an array of objects, or one object of them by their ids. A CSV file has a header, or is like
MMLU's, which has none: a question, up to ten options, and the letter of the right one.
"""

import csv
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meditron.core.errors import InputError
from meditron.sources.containers import archive_kind
from meditron.sources.file_types import unsupported_format
from meditron.sources.streams import chunks
from meditron.store.files import reject_duplicate_keys

__all__ = ["SourceRow", "read_source_rows"]

# Bytes after decompression, ten times the largest known set; guards against decompression bombs.
_MAX_BYTES = 256 << 20
_BLANKS = re.compile(r"[ \t\r\n]*")
_LETTERS = "ABCDEFGHIJ"


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceRow:
    """One row of a file: its fields by name, and its place."""

    fields: dict[str, Any]
    id: str
    """Its key in an object of objects, else its number in the file, from 1."""
    place: str
    """Line and row, for errors."""


def read_source_rows(path: Path) -> Iterator[SourceRow]:
    """Yield the rows in their order.

    Raises:
        InputError: the file is damaged, above 256 MiB, or of another kind; names the line.
        SourceError: there is no such file.
    """
    text = _text(path)
    start = text.lstrip()[:1]
    if ".csv" in path.suffixes:
        return _csv(path, text)
    if start == "{" and _is_lines(text):
        return _lines(path, text)
    if start and start in "[{":
        return _json(path, text)
    _refuse_other_format(path, text[:4096].encode())
    raise InputError(path, "neither JSON nor JSON lines, nor named .csv" if start else "the file is empty")


def _text(path: Path) -> str:
    unpacked = bytearray()
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
    """Raise InputError if the file is of a known format that holds no questions."""
    start = content[:4096]
    if archive_kind(start):
        raise InputError(path, "an archive, which is not read as questions", hint="unpack it")
    if known := unsupported_format(start):
        hint = "questions are JSON lines, JSON or CSV"
        raise InputError(path, f"{known[0]}, which is not read as questions", hint=hint)


def _is_lines(text: str) -> bool:
    """Return True if the first line is an object of its own, and not a whole file of objects by their ids."""
    first, _, rest = text.strip().partition("\n")
    try:
        value = json.loads(first)
    except (ValueError, RecursionError):
        # Broken in either format. A bracket alone in its line begins an object of several lines.
        return first.strip().endswith("}")
    return bool(rest) or not all(isinstance(inner, dict) for inner in value.values())


def _lines(path: Path, text: str) -> Iterator[SourceRow]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            place = f"line {number}"
            value, end = _value(path, line, _blanks(line, 0), first=number)
            if _blanks(line, end) != len(line):
                raise InputError(path, "more than one value", place=f"{place}, column {end + 1}")
            yield SourceRow(fields=_object(path, value, place), id=str(number), place=place)


def _json(path: Path, text: str) -> Iterator[SourceRow]:
    """Yield the objects of an array, or of an object by their keys."""
    # Decoded one by one: the json module does not tell the line of a value.
    at = _blanks(text, 0)
    keyed, close = text[at] == "{", "]" if text[at] == "[" else "}"
    at = _blanks(text, at + 1)
    number, line, counted = 0, 1, 0
    while text[at : at + 1] != close:
        if number:
            at = _expect(path, text, at, ",")
        number, line, counted = number + 1, line + text.count("\n", counted, at), at
        key: Any = number
        if keyed:
            key, at = _value(path, text, at)
            at = _expect(path, text, at, ":")
        value, at = _value(path, text, at)
        place = f"line {line}, row {number}"
        yield SourceRow(fields=_object(path, value, place), id=str(key), place=place)
        at = _blanks(text, at)
    if (rest := _blanks(text, at + 1)) != len(text):
        raise InputError(path, "more than one value", place=_line(text, rest))


def _csv(path: Path, text: str) -> Iterator[SourceRow]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    names: list[str] = []
    number, line = 0, 0
    try:
        for cells in reader:
            place, line = f"line {line + 1}", reader.line_num
            if not cells:
                continue
            if not names:
                names = _headless(cells) or cells
                if names is cells:
                    _refuse_equal_names(path, names, place)
                    continue
            if len(cells) != len(names):
                raise InputError(path, f"expected {len(names)} cells, got {len(cells)}", place=place)
            number += 1
            yield SourceRow(fields=dict(zip(names, cells, strict=True)), id=str(number), place=place)
    except csv.Error as error:
        raise InputError(path, f"not CSV: {error}", place=f"line {reader.line_num}") from error


def _refuse_equal_names(path: Path, names: list[str], place: str) -> None:
    for number, name in enumerate(names):
        if name.strip() and name in names[:number]:
            raise InputError(path, f"two columns are called '{name}'", place=place)


def _headless(cells: list[str]) -> list[str] | None:
    """Return column names if the first row is already a question with options and letter, as in MMLU."""
    letters = _LETTERS[: len(cells) - 2]
    header = {cell.strip().casefold() for cell in cells} & {"question", "answer"}
    headless = 2 <= len(letters) == len(cells) - 2 and cells[-1].strip() in [*letters] and not header
    return ["question", *letters, "answer"] if headless else None


def _object(path: Path, value: object, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(path, f"expected an object, got a {type(value).__name__}", place=place)
    return value


def _value(path: Path, text: str, at: int, first: int = 1) -> tuple[Any, int]:
    """Return the JSON value at a position, and the position of its end."""
    try:
        return _DECODER.raw_decode(text, at)
    except json.JSONDecodeError as error:
        place = _line(text, error.pos, first)
        raise InputError(path, f"not JSON: {error.msg}", place=f"{place}, column {error.colno}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(path, f"not JSON that can be read: {error}", place=_line(text, at, first)) from error


def _expect(path: Path, text: str, at: int, sign: str) -> int:
    """Return the position after a sign that must come next."""
    at = _blanks(text, at)
    if text[at : at + 1] != sign:
        raise InputError(path, f"not JSON: expected '{sign}'", place=_line(text, at))
    return _blanks(text, at + 1)


def _line(text: str, at: int, first: int = 1) -> str:
    return f"line {first + text.count(chr(10), 0, at)}"


def _blanks(text: str, at: int) -> int:
    match = _BLANKS.match(text, at)
    return match.end() if match else at


_DECODER = json.JSONDecoder(object_pairs_hook=reject_duplicate_keys)
