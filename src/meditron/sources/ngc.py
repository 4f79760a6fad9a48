"""Reader of the XML summaries of the National Guideline Clearinghouse (AHRQ): one document per guideline.

The id of a document is `ngc:` and the number in its file's name. A field of the summary is a section; its
path is the field's group (`Recommendations`). The values are HTML, read as by `html_blocks`. Administrative
fields are left out (`OMITTED_FIELDS`). Fields of `meta`: `date` (of the last revision), `licence` (the
copyright statement), `developer`, `citation`.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meditron.core.errors import InputError, MissingExtra
from meditron.sources.dates import parse_journal_date
from meditron.sources.document import Document, Readable, ReadLog, Section
from meditron.sources.html import fragment_blocks
from meditron.sources.html_tree import TooManyElements
from meditron.sources.outline import Outline
from meditron.sources.streams import LONGEST_DOCUMENT, path_as_text, read_whole

if TYPE_CHECKING:
    from lxml import etree

__all__ = ["OMITTED_FIELDS", "read", "recognises"]

_START = re.compile(
    rb"(?:\xef\xbb\xbf)?\s*(?:<\?xml[^>]*>\s*)?<Version\b[^>]*>\s*(?:<xmlSource>|<Section\b[^>]*\bSecID=)"
)
_NUMBER = re.compile(r"ngc[-_ ]?([0-9]+)\b", re.IGNORECASE)
_TITLE, _DATE, _LICENCE = "Guideline Title", "Date Released", "Copyright Statement"
_META = {"Guideline Developer(s)": "developer", "Bibliographic Source(s)": "citation", _LICENCE: "licence"}
OMITTED_FIELDS = frozenset({
    "NGC Disclaimer", "NGC Status", "Guideline Status", "Guideline Availability", "Guideline Committee",
    "Availability of Companion Documents", "Patient Resources", "Source(s) of Funding",
    "Composition of Group That Authored the Guideline", "Financial Disclosures/Conflicts of Interest",
    "Guideline Endorser(s)", "Guideline Developer Comment", "IOM Care Need", "IOM Domain",
    "Number of Source Documents",
})  # fmt: skip
"""Fields that are neither text nor metadata: names of persons, funding, addresses, NGC's own notices."""
_REVISED = re.compile(r"\brevised ([^();,]+)")
_NOTE = re.compile(r"\s*\(.*", re.DOTALL)


def recognises(start: bytes) -> bool:
    """Return True if a file that starts with these bytes is a summary of the clearinghouse."""
    return _START.match(start) is not None


def read(file: Readable, log: ReadLog | None = None, name: str | None = None) -> Iterator[Document]:
    """Yield the guideline of a file.

    Args:
        file: The file.
        log: Log to which a summary without text is added.
        name: Name of the file in the id of a document whose file name has no number.

    Raises:
        InputError: The file is ill-formed, has a DOCTYPE, or is longer than LONGEST_DOCUMENT.
    """
    root = _parse(file, read_whole(file, LONGEST_DOCUMENT))
    fields: dict[str, str] = {}
    sections: list[Section] = []
    for group in root.iter("Section"):
        for field in group.findall("Field"):
            label = field.get("Name") or ""
            if label in OMITTED_FIELDS:
                continue
            try:
                text = _field_text(field)
            except TooManyElements as error:
                raise InputError(file, str(error), place=f"field '{label}'") from error
            if label in {_TITLE, _DATE} or label in _META:
                fields.setdefault(label, text)
            elif text:
                path = (group.get("Name"),) if group.get("Name") else ()
                sections.append(Section(text, label or None, heading_path=tuple(filter(None, path))))
    if not sections:
        if log is not None:
            log.skipped["guideline without text"] += 1
        return
    match = _NUMBER.search(file.name)
    identity = match[1] if match else name or path_as_text(Path(file.name))
    meta: dict[str, Any] = {key: fields[label] for label, key in _META.items() if fields.get(label)}
    if date := _parse_date(fields.get(_DATE, "")):
        meta["date"] = date
    year = int(date[:4]) if date else None
    title = " ".join(fields.get(_TITLE, "").split())
    yield Document(f"ngc:{identity}", "ngc", title, tuple(sections), "en", year, meta=meta)


def _parse(file: Readable, data: bytes) -> "etree._Element":
    try:
        from lxml import etree
    except ImportError as error:
        raise MissingExtra("lxml", "corpus") from error
    parser = etree.XMLParser(resolve_entities=False, load_dtd=False, no_network=True)
    try:
        root = etree.fromstring(data, parser)
    except etree.XMLSyntaxError as error:
        raise InputError(file, f"ill-formed XML: {error.msg}", place=f"line {error.lineno:,}") from error
    if root.getroottree().docinfo.internalDTD is not None:
        raise InputError(file, "it has a DOCTYPE", place="prologue", hint="summaries have none")
    if root.tag != "Version":
        raise InputError(file, f"no summary of the clearinghouse: its root is {root.tag}", place="prologue")
    return root


def _field_text(field: "etree._Element") -> str:
    outline = Outline()
    for value in field.findall("FieldValue"):
        for block in fragment_blocks(value.get("Value") or ""):
            outline.add_text(block.text, tight=block.tight)
    return "".join(section.text for section in outline.sections())


def _parse_date(text: str) -> str | None:
    """Return the date of the text in ISO's format: `1996 (revised 2013 Nov 5)` becomes `2013-11-05`."""
    dates = (*reversed(_REVISED.findall(text)), _NOTE.sub("", text))
    return next(filter(None, map(parse_journal_date, dates)), None)
