"""Plain text, one document a file, and JSON lines, one document a line; also compressed.

A text file's id is `text:` and its name; its title is empty, for nothing says what it is. A line of JSON
holds `text`, and may hold `id`, `title`, `language`, `year` and `meta`; its id is else `jsonl:NAME:LINE`.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from meditron.ground.errors import InputError
from meditron.sources.document import Document, Section
from meditron.sources.streams import chunks, lines

__all__ = ["read_jsonl", "read_text", "recognises_jsonl", "recognises_text"]

_LARGEST_TEXT = 256 << 20
_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_KINDS = {"id": str | int, "title": str, "language": str, "year": int, "meta": dict}


def recognises_jsonl(start: bytes) -> bool:
    """Whether a file that starts so is JSON lines: its first line begins an object."""
    return start.lstrip(b"\xef\xbb\xbf \t\r\n").startswith((b'{"', b'{ "'))


def recognises_text(start: bytes) -> bool:
    """Whether a file that starts so is UTF-8 text, and no markup."""
    text = start.decode("utf-8", errors="ignore")
    whole = len(start) - len(text.encode()) < 4  # the last character may be cut
    return (
        whole and bool(text.strip()) and "\0" not in text and not text.lstrip("\ufeff \n\r\t").startswith("<")
    )


def read_text(path: Path, skipped: Counter[str] | None = None) -> Iterator[Document]:
    """The file's text as one document of one section; InputError where it is not UTF-8 or above 256 MiB."""
    pieces: list[bytes] = []
    size = 0
    for piece in chunks(path):
        pieces.append(piece)
        size += len(piece)
        if size > _LARGEST_TEXT:
            raise InputError(path, f"a text of more than {_LARGEST_TEXT >> 20} MiB", hint="split it")
    try:
        text = b"".join(pieces).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(path, "not UTF-8", place=f"byte {error.start:,}") from error
    yield Document(f"text:{path.name}", "text", "", (Section(text),))


def read_jsonl(path: Path, skipped: Counter[str] | None = None) -> Iterator[Document]:
    """The documents of a JSONL file in its order; InputError, with the line, for what is none.

    Blank lines are counted as skipped.
    """
    for number, line in enumerate(lines(path), start=1):
        if line.strip():
            yield _document(path, number, line)
        elif skipped is not None:
            skipped["blank line"] += 1


def _document(path: Path, number: int, line: bytes) -> Document:
    place = f"line {number:,}"
    try:
        row: Any = json.loads(line.decode("utf-8-sig"), parse_float=_finite, parse_constant=_finite)
        if b"\\u" in line:  # an escape may be half of a pair, which no UTF-8 can hold
            row = json.loads(_LONE_SURROGATE.sub("\ufffd", json.dumps(row, ensure_ascii=False)))
    except (ValueError, RecursionError) as error:
        raise InputError(path, f"not JSON: {error}", place=place) from error
    if not isinstance(row, dict) or not isinstance(row.get("text"), str):
        raise InputError(path, 'no object with a "text"', place=place)
    for key, kind in _KINDS.items():
        if not isinstance(row.get(key), kind | None):
            raise InputError(path, f'"{key}" is a {type(row[key]).__name__}', place=place)
    identity = row.get("id")
    return Document(
        f"jsonl:{path.name}:{number}" if identity is None else str(identity),
        "jsonl",
        row.get("title") or "",
        (Section(row["text"]),),
        row.get("language"),
        row.get("year"),
        row.get("meta") or {},
    )


def _finite(number: str) -> float:
    """A float; ValueError for NaN and what is infinite, which could not be written again."""
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"{number} is no finite number")
    return value
