"""What every source yields: one document with its sections."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from pydantic_core import to_json

__all__ = ["Document", "Reader", "Section"]


@dataclass(frozen=True, slots=True)
class Section:
    """A part of a document: its label as printed, its NLM category where one is given, its text."""

    text: str
    label: str | None = None
    category: str | None = None


@dataclass(frozen=True, slots=True)
class Document:
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
    meta: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The stable form that `meditron parse` prints, one a line."""
        return {
            "id": self.id,
            "source": self.source,
            "title": self.title,
            "sections": [{"label": s.label, "category": s.category, "text": s.text} for s in self.sections],
            "language": self.language,
            "year": self.year,
            "meta": dict(self.meta),
        }

    def to_line(self) -> bytes:
        """`to_json` as a line of JSON in UTF-8, with its end."""
        return to_json(self.to_json()) + b"\n"


class Reader(Protocol):
    """A source: one file to its documents, in the file's order."""

    def __call__(self, path: Path, skipped: Counter[str] | None = None) -> Iterator[Document]:
        """Read `path`; InputError, with the place, where it is damaged.

        What is no document by its kind (a redirect) is counted in `skipped`, by reason.
        """
        ...
