"""One PubmedArticle element to a document: a quick walk over its bytes, and lxml where the walk is unsure.

The walk (`scan`) knows elements, attributes in double quotes, the five entities of XML and character references.
It raises `Unusual` for anything else (comments, CDATA, processing instructions, tags that do not balance, …);
then `parse` gives the same bytes to lxml, whose word is final. Inline markup is always lxml's to read.
What the walk skips (authors, references, …) it checks for balanced tags and sound UTF-8 only.
"""

import re
from dataclasses import dataclass, field
from typing import Any

from meditron.ground.errors import MissingExtra
from meditron.sources.document import Document, Section

try:
    from lxml import etree
except ImportError as missing:
    raise MissingExtra("lxml", "corpus") from missing

__all__ = ["Unusual", "parse", "scan", "xml_parser"]

_TAG = re.compile(rb'\s*+<([A-Za-z]++)((?:[^<>"\']++|"[^<"]*+")*+)>')
_LABELS = re.compile(rb'(?: Label="([^"&\s]*(?: [^"&\s]*)*)")?(?: NlmCategory="([A-Z]*)")?/?')
_VERSION = re.compile(rb' Version="([0-9]+)"')
_LOCATION = re.compile(rb' EIdType="([a-z]+)" ValidYN="[YN]"')
_ID_TYPE = re.compile(rb' IdType="([a-z-]+)"')
_REF_TYPE = re.compile(rb' RefType="([A-Za-z]+)"')
_REFERENCE = re.compile(r"&(?:#([0-9]{1,7})|#x([0-9A-Fa-f]{1,6})|(amp|lt|gt|quot|apos));|&")
_ENTITIES = {"amp": "&", "lt": "<", "gt": ">", "quot": '"', "apos": "'"}
_FORBIDDEN = bytes(set(range(32)) - {9, 10, 13})
_YEAR = re.compile(r"[12][0-9]{3}")


class Unusual(Exception):
    """The walk met something that it leaves to lxml."""


def xml_parser() -> etree.XMLParser:
    """A parser that expands no entity, opens no file, reaches no network and refuses absurd sizes."""
    return etree.XMLParser(
        resolve_entities=False,
        load_dtd=False,
        no_network=True,
        huge_tree=False,
        remove_comments=True,
        remove_pis=True,
    )


_FRAGMENTS = xml_parser()


@dataclass(slots=True)
class _Fields:
    """What either reading finds."""

    pmid: str = ""
    version: int = 1
    title: str = ""
    sections: list[Section] = field(default_factory=list)
    language: str | None = None
    year: int | None = None
    journal: str | None = None
    types: list[str] = field(default_factory=list)
    mesh: list[str] = field(default_factory=list)
    doi: str | None = None
    electronic_doi: str | None = None
    retracted_by: bool = False

    def document(self) -> Document:
        meta: dict[str, Any] = {
            "pmid": self.pmid,
            "version": self.version,
            "journal": self.journal or None,
            "publication_types": self.types,
            "mesh": self.mesh,
            "doi": self.doi or self.electronic_doi or None,
            "retracted": self.retracted_by or "Retracted Publication" in self.types,
        }
        sections = tuple(self.sections)
        return Document(
            f"pubmed:{self.pmid}", "pubmed", self.title, sections, self.language or None, self.year, meta
        )


def scan(data: bytes) -> Document:
    """Read the bytes of one PubmedArticle element; Unusual where lxml must read them."""
    if b"<!" in data or b"<?" in data or data.count(b"<") != 2 * data.count(b"</") + data.count(b"/>"):
        raise Unusual
    if len(data.translate(None, _FORBIDDEN)) != len(data):
        raise Unusual
    _decode(data)
    fields = _Fields()
    ((_, _, start, stop),) = _children(data, 0, len(data))
    for name, _, start, stop in _children(data, start, stop):
        if name == b"MedlineCitation":
            _scan_citation(data, start, stop, fields)
        elif name == b"PubmedData":
            _scan_pubmed_data(data, start, stop, fields)
    if not fields.pmid:
        raise Unusual
    return fields.document()


def _children(data: bytes, start: int, stop: int) -> list[tuple[bytes, bytes, int, int]]:
    """The child elements in data[start:stop]: name, raw attributes, where the content starts and ends.

    An element ends at the first closing tag of its name. Were an element of the same name inside it, something
    would be left over: the children must fill the span but for white space.
    """
    found = []
    while match := _TAG.match(data, start, stop):
        name, attributes = match.groups()
        begin = match.end()
        if attributes.endswith(b"/"):
            found.append((name, attributes, begin, begin))
            start = begin
            continue
        closing = b"</" + name + b">"
        end = data.find(closing, begin, stop)
        if end < 0:
            raise Unusual
        found.append((name, attributes, begin, end))
        start = end + len(closing)
    if data[start:stop].strip():
        raise Unusual
    return found


def _scan_citation(data: bytes, start: int, stop: int, fields: _Fields) -> None:
    for name, attributes, a, b in _children(data, start, stop):
        if name == b"PMID":
            fields.pmid = _text(data[a:b])
            fields.version = int(_attribute(_VERSION, attributes))
        elif name == b"Article":
            _scan_article(data, a, b, fields)
        elif name == b"CommentsCorrectionsList":
            fields.retracted_by = b"RetractionIn" in data[a:b] and _is_retracted(data, a, b)
        elif name == b"MeshHeadingList":
            for _, _, heading, end in _children(data, a, b):
                fields.mesh += [
                    _text(data[i:j])
                    for tag, _, i, j in _children(data, heading, end)
                    if tag == b"DescriptorName"
                ]


def _scan_article(data: bytes, start: int, stop: int, fields: _Fields) -> None:
    for name, attributes, a, b in _children(data, start, stop):
        if name == b"ArticleTitle":
            fields.title = _text(data[a:b])
        elif name == b"Abstract":
            fields.sections += [
                _section(data, attrs, i, j)
                for tag, attrs, i, j in _children(data, a, b)
                if tag == b"AbstractText"
            ]
        elif name == b"Journal":
            _scan_journal(data, a, b, fields)
        elif name == b"Language":
            fields.language = fields.language or _text(data[a:b])
        elif name == b"PublicationTypeList":
            fields.types = [
                _text(data[i:j]) for tag, _, i, j in _children(data, a, b) if tag == b"PublicationType"
            ]
        elif name == b"ELocationID" and _attribute(_LOCATION, attributes) == b"doi":
            fields.electronic_doi = fields.electronic_doi or _text(data[a:b])


def _scan_journal(data: bytes, start: int, stop: int, fields: _Fields) -> None:
    for name, _, a, b in _children(data, start, stop):
        if name == b"Title":
            fields.journal = _text(data[a:b])
        elif name == b"JournalIssue":
            for part, _, i, j in _children(data, a, b):
                if part == b"PubDate":
                    date = {tag: _text(data[k:m]) for tag, _, k, m in _children(data, i, j)}
                    fields.year = _year(date.get(b"Year"), date.get(b"MedlineDate"))


def _scan_pubmed_data(data: bytes, start: int, stop: int, fields: _Fields) -> None:
    for name, _, a, b in _children(data, start, stop):
        if name == b"ArticleIdList":
            for _, attributes, i, j in _children(data, a, b):
                if _attribute(_ID_TYPE, attributes) == b"doi":
                    fields.doi = fields.doi or _text(data[i:j])


def _is_retracted(data: bytes, start: int, stop: int) -> bool:
    entries = _children(data, start, stop)
    return any(_attribute(_REF_TYPE, attributes) == b"RetractionIn" for _, attributes, _, _ in entries)


def _section(data: bytes, attributes: bytes, start: int, stop: int) -> Section:
    match = _LABELS.fullmatch(attributes)
    if match is None:
        raise Unusual
    label, category = (part if part is None else part.decode() for part in match.groups())
    return Section(_text(data[start:stop]), label, category)


def _attribute(form: re.Pattern[bytes], attributes: bytes) -> bytes:
    match = form.fullmatch(attributes)
    if match is None:
        raise Unusual
    return match[1]


def _year(year: str | None, medline_date: str | None) -> int | None:
    """The year of publication: of `1998 Dec-1999 Jan` the first."""
    match = _YEAR.search(year or medline_date or "")
    return int(match[0]) if match else None


def _text(raw: bytes) -> str:
    """All text in the element in its order, nothing in the place of markup, white space collapsed."""
    if b"<" in raw or b">" in raw:
        try:
            return _flat(etree.fromstring(b"<x>" + raw + b"</x>", _FRAGMENTS))
        except etree.XMLSyntaxError as error:
            raise Unusual from error
    text = _decode(raw)
    if "&" in text:
        text = _REFERENCE.sub(_character, text)
    return " ".join(text.split())


def _character(match: re.Match[str]) -> str:
    decimal, hexadecimal, name = match.groups()
    if name:
        return _ENTITIES[name]
    code = int(decimal) if decimal else int(hexadecimal, 16) if hexadecimal else 0
    if code < 32 or 0xD7FF < code < 0xE000 or 0xFFFD < code < 0x10000 or code > 0x10FFFF:
        raise Unusual
    return chr(code)


def _decode(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise Unusual from error


def _flat(element: etree._Element) -> str:
    return " ".join("".join(element.itertext()).split())


def parse(element: etree._Element) -> Document | None:
    """Read lxml's tree of one PubmedArticle or PubmedBookArticle; None where it has no PMID.

    Of a book's chapter the title is the chapter's own, else the book's; its journal is the book.
    """
    book = element.tag == "PubmedBookArticle"
    citation = element.find("BookDocument" if book else "MedlineCitation")
    article = citation if book or citation is None else citation.find("Article")
    pmid = None if citation is None else citation.find("PMID")
    if citation is None or article is None or pmid is None or not _flat(pmid):
        return None
    date = "Book/PubDate" if book else "Journal/JournalIssue/PubDate"
    fields = _Fields(_flat(pmid), int(pmid.get("Version", "1")))
    fields.title = _first(article, "ArticleTitle") or (
        _first(article, "Book/BookTitle") or "" if book else ""
    )
    fields.sections = [
        Section(_flat(part), part.get("Label"), part.get("NlmCategory"))
        for part in article.iterfind("Abstract/AbstractText")
    ]
    fields.language = _first(article, "Language")
    fields.year = _year(_first(article, f"{date}/Year"), _first(article, f"{date}/MedlineDate"))
    fields.journal = _first(article, "Book/BookTitle" if book else "Journal/Title")
    types = "PublicationType" if book else "PublicationTypeList/PublicationType"
    fields.types = [_flat(kind) for kind in article.iterfind(types)]
    fields.mesh = [_flat(name) for name in citation.iterfind("MeshHeadingList/MeshHeading/DescriptorName")]
    identifiers = element.iterfind("PubmedBookData/ArticleIdList/*" if book else "PubmedData/ArticleIdList/*")
    fields.doi = next((_flat(other) for other in identifiers if other.get("IdType") == "doi"), None)
    fields.electronic_doi = _first(article, "ELocationID[@EIdType='doi']")
    corrections = citation.iterfind("CommentsCorrectionsList/CommentsCorrections")
    fields.retracted_by = any(entry.get("RefType") == "RetractionIn" for entry in corrections)
    return fields.document()


def _first(element: etree._Element, path: str) -> str | None:
    found = element.find(path)
    return None if found is None else _flat(found)
