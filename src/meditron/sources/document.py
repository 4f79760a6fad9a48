"""The datum of every source: a document with its sections, and the protocol of a reader."""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import IO, Any, Literal, Protocol

import msgspec

__all__ = ["Document", "ReadLog", "Readable", "Reader", "Section"]

_ENCODER = msgspec.json.Encoder()


def _none() -> None:
    """Return None: msgspec leaves out plain defaults but not those of a factory, so labels stay in a line."""


class Section(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """A part of a document's text."""

    text: str
    label: str | None = msgspec.field(default_factory=_none)
    """Heading as printed."""
    category: str | None = msgspec.field(default_factory=_none)
    """NLM's category of the section (`METHODS`), if the source gives one."""
    path: tuple[str, ...] = ()
    """Headings above this section, outermost first, without its own label. Left out of JSON if empty."""


class Document(msgspec.Struct, frozen=True, gc=False):  # JSON values hold no cycles
    """One document of a source.

    `id` is stable and the source's own (`pubmed:12345`, without a version; `wiki:290`). The corpus numbers
    repeated ids (`corpus.dedup.unique_id`).
    """

    id: str
    source: str
    title: str
    sections: tuple[Section, ...]
    language: str | None = None
    year: int | None = None
    version: int | None = None
    """Version of the document under its id; the corpus keeps the newest. None: the source has no versions."""
    retracted: bool = False
    """True if the source marks the document as retracted."""
    meta: Mapping[str, Any] = msgspec.field(default_factory=dict)
    """The source's own fields as JSON values; the source's module lists them."""

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        row: dict[str, Any] = msgspec.json.decode(self.to_line())
        return row

    def to_line(self) -> bytes:
        """Return one line of JSON in UTF-8, with its line end: the stable form `meditron parse` prints."""
        return _ENCODER.encode(self) + b"\n"


class Readable(Protocol):
    """A file to read: a `Path`, or a member of an archive (`containers.ArchiveMember`).

    `str(file)` names it in errors.
    """

    @property
    def name(self) -> str:
        """The last part of its path."""
        ...

    def open(self, mode: Literal["rb"]) -> AbstractContextManager[IO[bytes]]:
        """Open the file from its first byte."""
        ...


@dataclass(frozen=True, slots=True)
class ReadLog:
    """A file's entries that are not documents, collected while the file is read."""

    skipped: Counter[str] = field(default_factory=Counter)
    """Number of skipped entries (redirects, blank lines) by reason."""
    deleted: list[str] = field(default_factory=list)
    """Ids of documents that the file declares deleted."""


class Reader(Protocol):
    """A source format: reads the documents of one file, in the file's order."""

    def __call__(
        self, file: Readable, log: ReadLog | None = None, name: str | None = None
    ) -> Iterator[Document]:
        """Read `file` once, in bounded memory.

        Args:
            file: The file, plain or compressed.
            log: Receives the entries that are not documents.
            name: Stands for the file in the ids of documents without an id of their own; by default the
                file's name.

        Raises:
            InputError: The file is damaged; the error names the place.
        """
        ...
