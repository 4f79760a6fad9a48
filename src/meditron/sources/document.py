"""What every source yields: one document with its sections."""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import msgspec

__all__ = ["Document", "Reader", "Section"]

_ENCODER = msgspec.json.Encoder()


class Section(msgspec.Struct, frozen=True, gc=False):
    """A part of a document: its label as printed, its NLM category where one is given, its text."""

    text: str
    label: str | None = None
    category: str | None = None


class Document(msgspec.Struct, frozen=True, gc=False):  # JSON values hold no cycles
    """One document of a source.

    `id` is stable and the source's own (`pubmed:12345`, without a version; `wiki:290`): the split is its
    hash. `meta` holds the source's own fields as JSON values; each source's module says which.
    """

    id: str
    source: str
    title: str
    sections: tuple[Section, ...]
    language: str | None = None
    year: int | None = None
    meta: Mapping[str, Any] = msgspec.field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """What `to_line` says, as plain JSON values."""
        row: dict[str, Any] = msgspec.json.decode(self.to_line())
        return row

    def to_line(self) -> bytes:
        """The stable form that `meditron parse` prints: a line of JSON in UTF-8, with its end."""
        return _ENCODER.encode(self) + b"\n"


class Reader(Protocol):
    """A source: one file to its documents, in the file's order."""

    def __call__(self, path: Path, skipped: Counter[str] | None = None) -> Iterator[Document]:
        """Read `path`; InputError, with the place, where it is damaged.

        What is no document by its kind (a redirect) is counted in `skipped`, by reason.
        """
        ...
