"""Spans of text in the records of S2ORC: positions in code points, as JSON values or as strings of JSON.

The spans come from automatic parsers. Those that are no positions in the text are left out and counted; of
overlapping references the first is used.
"""

import json
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

__all__ = ["Span", "parse_spans", "replace_spans", "spans_within"]

_MOST_SPANS = 50_000  # of one kind; more are counted as invalid, to bound the time


class Span(NamedTuple):
    """A part of a text, from `start` up to `end`."""

    start: int
    end: int
    reference: str | None = None
    """Id of the entry that the span refers to, or of the entry itself."""
    number: str | None = None
    """Number of a section: `2.3.1`."""


def parse_spans(value: Any, length: int) -> tuple[list[Span], int]:  # noqa: ANN401
    """Return the valid spans in order, and the number of the others.

    Args:
        value: A list of objects with `start` and `end`, a string of JSON with such a list, or None.
        length: Number of characters of the text.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value) if value else []
        except (ValueError, RecursionError):
            return [], 1
    if value is None:
        return [], 0
    if not isinstance(value, list):
        return [], 1
    spans = [span for item in value[:_MOST_SPANS] if (span := _parse_span(item, length)) is not None]
    return sorted(spans, key=lambda span: (span.start, -span.end)), len(value) - len(spans)


def spans_within(spans: Sequence[Span], outer: Span) -> Iterator[Span]:
    """Yield the spans that are within another span, given spans in order."""
    at = bisect_left(spans, outer.start, key=lambda span: span.start)
    while at < len(spans) and spans[at].start < outer.end:
        if spans[at].end <= outer.end:
            yield spans[at]
        at += 1


def _parse_span(item: Any, length: int) -> Span | None:  # noqa: ANN401
    if not isinstance(item, Mapping):
        return None
    start, end = _position(item.get("start")), _position(item.get("end"))
    if start is None or end is None or not 0 <= start < end <= length:
        return None
    attributes = item.get("attributes")
    fields = attributes if isinstance(attributes, Mapping) else item
    references = (fields.get(key) for key in ("ref_id", "id"))
    reference = next((text for text in references if isinstance(text, str)), None)
    number = fields.get("n")
    return Span(start, end, reference, number if isinstance(number, str) else None)


def _position(value: Any) -> int | None:  # noqa: ANN401
    if isinstance(value, str) and value.isascii() and value.isdecimal() and len(value) < 12:
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def replace_spans(text: str, start: int, end: int, replacements: Iterable[tuple[Span, str]]) -> str:
    """Return a part of a text in which spans are replaced; of overlapping ones the first is used.

    Args:
        text: The text.
        start: Begin of the part.
        end: End of the part.
        replacements: Spans with their new texts. Those that are not within the part are ignored.
    """
    pieces: list[str] = []
    done = start
    for span, new in _ordered(replacements):
        if span.start >= done and span.end <= end:
            pieces += [text[done : span.start], new]
            done = span.end
    return "".join([*pieces, text[done:end]])


def _ordered(replacements: Iterable[tuple[Span, str]]) -> Sequence[tuple[Span, str]]:
    return sorted(replacements, key=lambda item: (item[0].start, -item[0].end))
