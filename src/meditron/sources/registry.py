"""The sources by name, and the one door to any file of theirs. A new source is its file and a line here."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from meditron.ground.errors import InputError, SourceError
from meditron.sources import mediawiki, medline, plain
from meditron.sources.document import Document, Reader
from meditron.sources.streams import head

__all__ = ["SOURCES", "Source", "find_source", "open_source"]


@dataclass(frozen=True, slots=True)
class Source:
    """A kind of source file."""

    read: Reader
    recognises: Callable[[bytes], bool]
    """Whether a file's first bytes, unpacked, are this kind's."""
    deletions: Callable[[Path], list[str]] | None = None
    """The ids of documents that a file declares deleted, where this kind can."""


SOURCES = {
    "medline": Source(medline.read, medline.recognises, medline.read_deletions),
    "mediawiki": Source(mediawiki.read, mediawiki.recognises),
    "jsonl": Source(plain.read_jsonl, plain.recognises_jsonl),
    "text": Source(plain.read_text, plain.recognises_text),
}


def open_source(
    path: Path,
    format: str | None = None,
    skipped: Counter[str] | None = None,
) -> Iterator[Document]:
    """The documents of a file, in its order.

    Args:
        path: the file, plain or compressed.
        format: a name in SOURCES; found from the content when absent.
        skipped: counts, by reason, what the file holds besides documents.

    Raises:
        SourceError: no such file, or no such format, or content of none.
        InputError: the file is damaged, while reading.
    """
    return find_source(path, format).read(path, skipped)


def find_source(path: Path, format: str | None = None) -> Source:
    """The kind of a file: by name, or by its content. Errors as `open_source`."""
    if format is not None:
        if format not in SOURCES:
            raise SourceError(f"no source format '{format}'", hint=f"formats: {', '.join(SOURCES)}")
        return SOURCES[format]
    start = head(path)
    if not start:
        raise InputError(path, "the file is empty")
    for source in SOURCES.values():
        if source.recognises(start):
            return source
    raise SourceError(f"{path}: content of no known format", hint=f"formats: {', '.join(SOURCES)}")
