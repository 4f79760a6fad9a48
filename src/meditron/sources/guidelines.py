"""Reader of the hub's data set `epfl-llm/guidelines`: JSON lines, one clinical guideline each.

A line has `id`, `source` (the publisher), `title`, `clean_text`, `raw_text`, `url` and `overview`. The text
is `clean_text`, whose Markdown headings become sections. The id of a document is `guideline:` and its `id`.
Fields of `meta`: `publisher`, `url`, `overview`.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from meditron.core.errors import InputError
from meditron.sources.document import Document, Readable, ReadLog, Section
from meditron.sources.outline import Outline
from meditron.sources.plain import iterate_jsonl_rows
from meditron.sources.streams import check_length

__all__ = ["is_guideline", "markdown_sections", "read", "recognises", "row_to_document"]

_START = re.compile(rb'(?:\xef\xbb\xbf)?\s*\{(?=.*"clean_text"\s*:\s*(?:"|null))', re.DOTALL)
_HEADING = re.compile(r" {0,3}(#{1,6})[ \t]+(\S)(.*)")
_META = {"source": "publisher", "url": "url", "overview": "overview"}


def recognises(start: bytes) -> bool:
    """Return True for JSON lines whose first object has a text `clean_text`."""
    return _START.match(start) is not None


def read(file: Readable, log: ReadLog | None = None, name: str | None = None) -> Iterator[Document]:
    """Yield the guidelines of a file. Lines without a text are counted as skipped.

    Args:
        file: The JSON lines.
        log: Log to which the skipped lines are added.
        name: Unused, because every guideline has an id.

    Raises:
        InputError: A line is not a guideline; the error names the line.
    """
    del name
    for row, place in iterate_jsonl_rows(file, log):
        document = row_to_document(file, row, place, log)
        if document is not None:
            yield document


def is_guideline(columns: Mapping[str, Any] | frozenset[str]) -> bool:
    """Return True if these columns are those of the data set."""
    return {"id", "title", "clean_text"} <= set(columns)


def row_to_document(file: Readable, row: object, place: str, log: ReadLog | None) -> Document | None:
    """Convert a row of the data set, from JSON or Parquet, to a document; None if it has no text.

    Raises:
        InputError: The row is no guideline.
    """
    if not isinstance(row, dict) or not isinstance(row.get("id"), str | int) or "clean_text" not in row:
        raise InputError(file, 'no guideline: an object with "id" and "clean_text"', place=place)
    for key in ("title", "clean_text", *_META):
        if not isinstance(row.get(key), str | None):
            raise InputError(file, f'"{key}" is a {type(row[key]).__name__}', place=place)
    sections = markdown_sections(row["clean_text"] or "")
    if not sections:
        if log is not None:
            log.skipped["guideline without text"] += 1
        return None
    check_length(file, sections, place)
    meta = {name: row[key] for key, name in _META.items() if row.get(key)}
    title = " ".join((row.get("title") or "").split())
    return Document(f"guideline:{row['id']}", "guidelines", title, sections, "en", meta=meta)


def markdown_sections(text: str) -> tuple[Section, ...]:
    """Return the sections of a text with Markdown headings (`## Treatment`)."""
    outline = Outline()
    lines: list[str] = []
    for line in text.split("\n"):
        match = _HEADING.fullmatch(line.rstrip("\r"))
        if match is None:
            lines.append(line.rstrip())
            continue
        outline.add_text("\n".join(lines).strip("\n"))
        lines = []
        # Not by the pattern, which would try every division of a long run of blanks.
        rest = match[3].rstrip(" \t").rstrip("#").rstrip(" \t")
        outline.add_heading(len(match[1]), match[2] + rest)
    outline.add_text("\n".join(lines).strip("\n"))
    return outline.sections()
