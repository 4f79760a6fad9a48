"""The source formats by name. A new one is its file and a line here."""

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from meditron.core.errors import InputError, SourceError
from meditron.sources import mediawiki, medline, plain
from meditron.sources.document import Document, Reader
from meditron.sources.kinds import refusal
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
    "json": Source(plain.read_json, plain.recognises_json),
    "csv": Source(plain.read_csv, plain.recognises_csv),
    "text": Source(plain.read_text, plain.recognises_text),
}


def open_source(
    path: Path,
    format: str | None = None,
    skipped: Counter[str] | None = None,
    name: str | None = None,
) -> Iterator[Document]:
    """The documents of a file, in its order.

    Args:
        path: the file, plain or compressed.
        format: a name in SOURCES; found from the content when absent.
        skipped: counts, by reason, what the file holds besides documents.
        name: stands for the file in the ids of documents without one of their own; by default its name.

    Raises:
        SourceError: no such file, or no such format.
        InputError: content of no format that is read; while reading, a file that is damaged.
    """
    return find_source(path, format).read(path, skipped, name)


def find_source(path: Path, format: str | None = None) -> Source:
    """Return the format of a file: by name, or by its content. Errors as of `open_source`."""
    if format is not None and format not in SOURCES:
        raise SourceError(f"no source format '{format}'", hint=f"formats: {', '.join(SOURCES)}")
    start = head(path)
    if not start:
        raise InputError(path, "the file is empty")
    if format is None:
        found = next((source for source in SOURCES.values() if source.recognises(start)), None)
        table = re.search(r"\.(csv|tsv)(\.\w+)?$", path.name, re.IGNORECASE)
        if found is SOURCES["text"] and table:
            found = SOURCES["csv"]  # which says that it has no column `text`
    else:
        found = SOURCES[format]
    # A recogniser of text takes much for text; what is named for text on purpose is its user's to judge.
    if format != "text" and found in (None, SOURCES["text"]) and (kind := refusal(start)):
        raise InputError(path, f"{kind[0]}, which is not read", hint=kind[1])
    if found is None:
        raise _unknown(path, start)
    return found


def _unknown(path: Path, start: bytes) -> InputError:
    if (at := start.find(b"\0")) >= 0:
        hint = f"formats: {', '.join(SOURCES)}"
        return InputError(path, "binary data, not text: a NUL byte", place=f"byte {at:,}", hint=hint)
    try:
        start.decode()
    except UnicodeDecodeError as error:
        if error.start < len(start) - 3:  # the last character may be cut
            hint = "convert it, for example with iconv -f latin1 -t utf-8"
            problem = f"not UTF-8: 0x{start[error.start]:02x}"
            return InputError(path, problem, place=f"byte {error.start:,}", hint=hint)
    if not start.strip():
        return InputError(path, "only white space")
    return InputError(path, "content of no known format", hint=f"formats: {', '.join(SOURCES)}")
