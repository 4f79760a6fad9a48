"""Reader of PDF files with text: one document per file, its paragraphs and headings.

Lines are joined to paragraphs, also across pages, with the hyphens at line ends resolved; running heads, feet
and page numbers are removed. Larger or bold lines become headings. The id of a document is `pdf:` and its
file's name. A file without text, such as a scan, is counted as skipped. Fields of `meta`: `pages`, `date`
(when the file was made), `licence` (a Creative Commons link in the text).
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from meditron.core.errors import InputError
from meditron.sources.dates import iso_date
from meditron.sources.document import Document, Readable, ReadLog, Section
from meditron.sources.licences import creative_commons_link
from meditron.sources.outline import Outline
from meditron.sources.pdf_layout import Paragraph, find_paragraphs, remove_running_lines
from meditron.sources.pdf_process import Line, read_pages
from meditron.sources.streams import LONGEST_DOCUMENT, chunks, path_as_text

__all__ = ["read", "recognises"]

_LARGEST = 512 << 20  # bytes of a compressed or archived file, which is read as a whole
_FEWEST_CHARACTERS = 20  # per page on average; scans have stamps and page numbers as text
_DATE = re.compile(r"(?:D:)?((?:19|20)[0-9]{2})([0-9]{2})?([0-9]{2})?")
_NO_TITLE = re.compile(
    r"|untitled.*|document\d*|microsoft \w+ - .*|.*\.(?:docx?|pdf|indd|tex|qxd|pptx?|rtf|odt)|[\W\d_]*|"
    r".*[/\\].*",
    re.IGNORECASE,
)


def recognises(start: bytes) -> bool:
    """Return True if a file that starts with these bytes is a PDF file."""
    return start.startswith(b"%PDF-")


def read(file: Readable, log: ReadLog | None = None, name: str | None = None) -> Iterator[Document]:
    """Yield the file as one document; nothing if it has no text.

    Args:
        file: The file.
        log: Log to which a file without text is added.
        name: Name of the file in the document's id; default: `file.name`.

    Raises:
        InputError: The file is damaged, encrypted or truncated, its text is longer than LONGEST_DOCUMENT, or
            a page exceeds the limits of memory and time.
    """
    metadata: dict[str, Any] = {}
    pages: list[list[Line]] = []
    size = 0
    for metadata, lines in read_pages(file, _content(file)):  # noqa: B007
        pages.append(lines)
        size += sum(len(line.text.encode("utf-8", "replace")) for line in lines)
        if size > LONGEST_DOCUMENT:
            problem = f"more than {LONGEST_DOCUMENT >> 20} MiB of text"
            raise InputError(file, problem, place=f"page {len(pages):,}", hint="split it")
    if size < _FEWEST_CHARACTERS * max(1, len(pages)):
        if log is not None:
            log.skipped["PDF without text (a scan needs OCR)"] += 1
        return
    paragraphs = find_paragraphs(remove_running_lines(pages))
    title = _title(metadata, paragraphs)
    meta: dict[str, Any] = {"pages": len(pages)}
    if match := _DATE.match(metadata.get("CreationDate", "")):
        meta["date"] = iso_date(*match.groups(default=""))
    if licence := next(filter(None, (creative_commons_link(item.text) for item in paragraphs)), None):
        meta["licence"] = licence
    year = int(meta["date"][:4]) if "date" in meta else None
    identity = f"pdf:{name or path_as_text(Path(file.name))}"
    yield Document(identity, "pdf", title, _sections(paragraphs, title), None, year, meta=meta)


def _content(file: Readable) -> bytes | None:
    """Return the content of a compressed file or a member of an archive; None for a plain file on disk."""
    if isinstance(file, Path):
        with file.open("rb") as stream:
            if recognises(stream.read(5)):
                return None
    pieces: list[bytes] = []
    size = 0
    for piece in chunks(file):
        pieces.append(piece)
        size += len(piece)
        if size > _LARGEST:
            raise InputError(file, f"longer than {_LARGEST >> 20} MiB", hint="unpack it")
    return b"".join(pieces)


def _title(metadata: dict[str, Any], paragraphs: list[Paragraph]) -> str:
    """Return the largest heading if it is at the beginning, else the title in the file's metadata."""
    first = next((item.text for item in paragraphs[:5] if item.level == 1), "")
    stated = " ".join(metadata.get("Title", "").split())
    return stated if not first and not _NO_TITLE.fullmatch(stated) else first


def _sections(paragraphs: list[Paragraph], title: str) -> tuple[Section, ...]:
    outline = Outline()
    previous_item = False
    for text, level, item in paragraphs:
        if level and text == title:
            outline.add_heading(1, "")
        elif level:
            outline.add_heading(level, text)
        else:
            outline.add_text(text, tight=item and previous_item)
        previous_item = item
    return outline.sections()
