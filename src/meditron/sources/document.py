"""The document type that all readers yield, and the protocol of a reader."""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import IO, Any, Literal, Protocol

import msgspec

__all__ = ["Document", "ReadLog", "Readable", "Reader", "Section"]

_ENCODER = msgspec.json.Encoder()


def _default_none() -> None:
    """Return None. It is a default factory because msgspec omits plain default values from JSON."""


class Section(msgspec.Struct, frozen=True, gc=False, omit_defaults=True):
    """A section of a document."""

    text: str
    label: str | None = msgspec.field(default_factory=_default_none)
    """Heading of the section, as printed."""
    category: str | None = msgspec.field(default_factory=_default_none)
    """NLM's category of the section (`METHODS`), if the source gives one."""
    heading_path: tuple[str, ...] = msgspec.field(default=(), name="path")
    """Headings of the sections that enclose this one, outermost first. In JSON `path`, omitted if empty."""


class Document(msgspec.Struct, frozen=True, gc=False):  # gc=False: JSON values contain no reference cycles
    """One document of a source."""

    id: str
    """Stable id from the source, without version: `pubmed:12345`, `wiki:290`. Several documents may have the
    same id; the corpus then numbers them (`corpus.dedup.unique_id`)."""
    source: str
    """Name of the source format, such as `pubmed`."""
    title: str
    sections: tuple[Section, ...]
    language: str | None = None
    year: int | None = None
    version: int | None = None
    """Version number; the corpus keeps the newest version of an id. None: the source has no versions."""
    retracted: bool = False
    """True if the source marks the document as retracted."""
    meta: Mapping[str, Any] = msgspec.field(default_factory=dict)
    """Further fields as JSON values, which the module of the source format lists."""

    def to_json(self) -> dict[str, Any]:
        """Return the fields as plain JSON values."""
        json_values: dict[str, Any] = msgspec.json.decode(self.to_json_line())
        return json_values

    def to_json_line(self) -> bytes:
        """Return one line of JSON in UTF-8, with its line end, as `meditron parse` prints it."""
        return _ENCODER.encode(self) + b"\n"


class Readable(Protocol):
    """A file to read: a `Path`, or a member of an archive (`containers.ArchiveMember`).

    `str(file)` is the name of the file in errors.
    """

    @property
    def name(self) -> str:
        """The last part of the path."""
        ...

    def open(self, mode: Literal["rb"]) -> AbstractContextManager[IO[bytes]]:
        """Open the file from its first byte."""
        ...


@dataclass(frozen=True, slots=True)
class ReadLog:
    """The entries of a file that are not documents, collected while the file is read."""

    skipped: Counter[str] = field(default_factory=Counter)
    """Reason → number of skipped entries, such as redirects and blank lines."""
    deleted: list[str] = field(default_factory=list)
    """Ids of the documents that the file declares deleted."""
    retracted: list[str] = field(default_factory=list)
    """Ids of other documents that the file's retraction notices name."""


class Reader(Protocol):
    """A function that reads the documents of a file in one source format."""

    def __call__(
        self, file: Readable, log: ReadLog | None = None, name: str | None = None
    ) -> Iterator[Document]:
        """Yield the documents of a file in order. The file is read once, in bounded memory.

        Args:
            file: The file, plain or compressed.
            log: Log to which the entries that are not documents are added.
            name: Name of the file in the ids of documents without an id of their own; default: `file.name`.

        Raises:
            InputError: The file is damaged; the error names the place.
        """
        ...
