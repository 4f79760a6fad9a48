"""One PubmedArticle element to a document: a quick scan of its bytes, and lxml where the scan is unsure.

The scan knows one grammar: the DTD's order of elements as NLM's own files spell it. Another spelling of
what it reads (a comment, CDATA, another quote, an entity that is not XML's own, …) raises `Unusual`; then
lxml gets the same bytes, and its word is final. Inline markup is always lxml's to read. What the scan skips
(authors, grants, references) it does not check: a fault in there changes nothing that is read.
"""

import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from meditron.ground.errors import MissingExtra
from meditron.sources.document import Document, Section

try:
    from lxml import etree
except ImportError as missing:
    raise MissingExtra("lxml", "corpus") from missing

__all__ = ["Unusual", "parse", "scan", "xml_parser"]

# Every quantifier is possessive: nothing here backtracks.
_HEAD = re.compile(
    rb"""<PubmedArticle>\s*+<MedlineCitation[ ][^<>]*+>\s*+<PMID[ ]Version="([0-9]++)">([0-9]++)</PMID>\s*+
    (?:<Date[A-Z][a-z]++>\s*+(?:<[A-Z][a-z]++>[0-9]*+</[A-Z][a-z]++>\s*+)*+</Date[A-Z][a-z]++>\s*+)*+
    <Article[ ][^<>]*+>\s*+<Journal>\s*+(?:<ISSN[^<>]*+>[^<]*+</ISSN>\s*+)?+
    <JournalIssue[ ][^<>]*+>\s*+(?:<Volume>[^<]*+</Volume>\s*+)?+(?:<Issue>[^<]*+</Issue>\s*+)?+
    <PubDate>\s*+<(?:Year|MedlineDate)>([^<]*+)</(?:Year|MedlineDate)>\s*+
    (?:<(?:Month|Day|Season)>[^<]*+</[A-Z][a-z]++>\s*+)*+</PubDate>\s*+</JournalIssue>\s*+
    (?:<Title>([^<]*+)</Title>\s*+)?+(?:<ISOAbbreviation>[^<]*+</ISOAbbreviation>\s*+)?+</Journal>\s*+
    <ArticleTitle(/?+)>""",
    re.VERBOSE,
)
_PLACE = re.compile(
    rb"""\s*+(?:<Pagination>\s*+(?:<[A-Za-z]++>[^<]*+</[A-Za-z]++>\s*+)*+</Pagination>\s*+)?+
    ((?:<ELocationID[ ]EIdType="[a-z]++"[ ]ValidYN="[YN]">[^<]*+</ELocationID>\s*+)*+)
    <(Abstract>|AuthorList[ ]|Language>)""",
    re.VERBOSE,
)
_SECTION = re.compile(
    rb"""\s*+<AbstractText(?:[ ]Label="([^"<&\s]*+(?:[ ][^"<&\s]*+)*+)")?+
    (?:[ ]NlmCategory="([A-Z]*+)")?+(/?+)>""",
    re.VERBOSE,
)
_AFTER_ABSTRACT = re.compile(
    rb"""\s*+(?:<CopyrightInformation>[^<]*+</CopyrightInformation>\s*+)?+</Abstract>\s*+
    <(AuthorList[ ]|Language>)""",
    re.VERBOSE,
)
_LANGUAGE = re.compile(rb"\s*+<Language>([a-z]++)</Language>")
_TYPES = re.compile(
    rb"""<PublicationTypeList>\s*+((?:<PublicationType[ ]UI="[^"<]*+">[^<]*+</PublicationType>\s*+)++)
    </PublicationTypeList>\s*+(?:<VernacularTitle|<ArticleDate|</Article>)""",
    re.VERBOSE,
)
_TYPE = re.compile(rb">([^<]*+)</PublicationType>")
_DESCRIPTOR = re.compile(rb"<DescriptorName [^<>]*+>([^<]*+)</DescriptorName>")
_LOCATION = re.compile(rb'EIdType="doi" ValidYN="[YN]">([^<]*+)<')
_IDENTIFIERS = re.compile(
    rb"""<ArticleIdList>\s*+
    ((?:<ArticleId[ ]IdType="[a-z-]++">[^<]*+</ArticleId>\s*+)*+)</ArticleIdList>""",
    re.VERBOSE,
)
_DOI = re.compile(rb'IdType="doi">([^<]*+)<')
_REFERENCE = re.compile(rb"&(?:#([0-9]{1,7})|#x([0-9A-Fa-f]{1,6})|(amp|lt|gt|quot|apos));|&")
_ENTITIES = {b"amp": b"&", b"lt": b"<", b"gt": b">", b"quot": b'"', b"apos": b"'"}
_LESS_THAN = ord("<")
_TAG = re.compile(rb"(<[^<>]*+>)")
_PAIRS = {b"<%s>" % name: b"</%s>" % name for name in (b"i", b"b", b"u", b"sub", b"sup")}
_CONTROL = bytes(range(0x20))
_SPECIAL = _CONTROL + b"&<>"  # what a text without any of these needs no look at
_ILLEGAL = _CONTROL.translate(None, b"\t\n\r")
_BLANKS = bytes.maketrans(b"\t\n\r", b"   ")
# U+2000 to U+205F; the other wide ones begin with E1 or E3.
_WIDE_SPACE = re.compile(rb"\xe2(?:\x80[\x80-\x8a\xa8\xa9\xaf]|\x81\x9f)")
_YEAR = re.compile(r"[12][0-9]{3}")


class Unusual(Exception):
    """The scan met something that it leaves to lxml."""


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

    pmid: str
    version: int
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
    match = _HEAD.match(data)
    if match is None:
        raise Unusual
    version, pmid, date, journal, empty = match.groups()
    fields = _Fields(pmid.decode(), int(version), year=_year(_name(date)))
    fields.journal = _name(journal) if journal else None
    fields.title, at = _content(data, match.end(), b"</ArticleTitle>", empty)
    at = _scan_abstract(data, at, fields)
    at = _scan_kind(data, at, fields)
    end = _find(data, b"</MedlineCitation>", at)
    if data.find(b"RetractionIn", at, end) >= 0:
        raise Unusual
    fields.mesh = _mesh(data, at, end)
    end = _scan_identifiers(data, end, fields)
    if _has_aside(data, end):
        raise Unusual
    return fields.document()


def _has_aside(data: bytes, end: int) -> bool:
    """Whether a comment, CDATA or an instruction begins before `end`; a single byte is found ten times faster."""
    for mark in (b"!", b"?"):
        at = data.find(mark, 0, end)
        while at > 0:
            if data[at - 1] == _LESS_THAN:
                return True
            at = data.find(mark, at + 1, end)
    return False


def _find(data: bytes, needle: bytes, start: int) -> int:
    found = data.find(needle, start)
    if found < 0:
        raise Unusual
    return found


def _content(data: bytes, start: int, closing: bytes, empty: bytes) -> tuple[str, int]:
    """The text of an element whose start tag ends at `start`, and where the element ends."""
    if empty:
        return "", start
    end = data.find(b"<", start)  # most texts have no markup, and one byte is found faster than many
    if not data.startswith(closing, end):
        end = _find(data, closing, start)
    return _text(data[start:end]), end + len(closing)


def _scan_abstract(data: bytes, at: int, fields: _Fields) -> int:
    """Read from the title's end to the start of the list of authors or the language."""
    match = _PLACE.match(data, at)
    if match is None:
        raise Unusual
    place, following = match.groups()
    if doi := place and _LOCATION.search(place):
        fields.electronic_doi = _text(doi[1])
    if following != b"Abstract>":
        return match.start(2) - 1
    at = match.end()
    while section := _SECTION.match(data, at):
        label, category, empty = section.groups()
        text, at = _content(data, section.end(), b"</AbstractText>", empty)
        fields.sections.append(Section(text, _printed(label), _printed(category)))
    match = _AFTER_ABSTRACT.match(data, at)
    if match is None:
        raise Unusual
    return match.start(1) - 1


def _scan_kind(data: bytes, at: int, fields: _Fields) -> int:
    """Read language and publication types; the article's end."""
    if data.startswith(b"<AuthorList", at):
        at = _find(data, b"</AuthorList>", at) + len(b"</AuthorList>")
    language = _LANGUAGE.match(data, at)
    types = _TYPES.match(data, _find(data, b"<PublicationTypeList", at))
    if language is None or types is None:
        raise Unusual
    fields.language = language[1].decode()
    fields.types = [_name(kind) for kind in _TYPE.findall(types[1])]
    return _find(data, b"</Article>", types.end() - len(b"</Article>"))


def _mesh(data: bytes, start: int, end: int) -> list[str]:
    start = data.find(b"<MeshHeadingList", start, end)
    if start < 0:
        return []
    names = _DESCRIPTOR.findall(data, start, end)
    if len(names) != data.count(b"<DescriptorName", start, end):
        raise Unusual
    return [_name(name) for name in names]


def _scan_identifiers(data: bytes, at: int, fields: _Fields) -> int:
    """Read the article's own identifiers; their end. The lists of its references come later."""
    if data.find(b"<PubmedData>", at) < 0:
        return len(data)
    start = _find(data, b"<ArticleIdList>", at)
    # A reference's own list would follow a Citation.
    if not data.startswith(b"</PublicationStatus>", data.rfind(b"<", at, start)):
        raise Unusual
    found = _IDENTIFIERS.match(data, start)
    if found is None:
        raise Unusual
    if doi := _DOI.search(found[1]):
        fields.doi = _text(doi[1])
    return found.end()


@lru_cache(maxsize=1 << 10)
def _year(date: str | None) -> int | None:
    """The first year in a date: 1998 in `1998 Dec-1999 Jan`."""
    match = _YEAR.search(date or "")
    return int(match[0]) if match else None


def _text(raw: bytes) -> str:
    """All text in the element in its order, nothing in the place of markup, white space collapsed."""
    if len(raw.translate(None, _SPECIAL)) < len(raw):
        raw = _bare(raw)
    text = raw.decode() if raw.isascii() else _narrowed(raw)
    return " ".join(text.split()) if "  " in text else text.strip(" ")


_name = lru_cache(maxsize=1 << 14)(_text)  # journals, types and descriptors come again and again


def _bare(raw: bytes) -> bytes:
    """The text without its markup, references resolved, ASCII's white space as blanks.

    Tags are taken out here if they are the usual five, in pairs without nesting; others are lxml's.
    """
    pieces = _TAG.split(raw)
    texts, tags = pieces[::2], pieces[1::2]
    bare = b"".join(texts)
    if [_PAIRS.get(tag) for tag in tags[::2]] != tags[1::2] or b"<" in bare or b">" in bare:
        return _marked_up(raw).encode()
    if b"&" in bare:  # within each piece: a tag inside of a reference does not make it whole
        bare = b"".join([_REFERENCE.sub(_character, text) if b"&" in text else text for text in texts])
    if len(bare.translate(None, _CONTROL)) == len(bare):
        return bare
    if len(bare.translate(None, _ILLEGAL)) < len(bare):
        raise Unusual
    return bare.translate(_BLANKS)


def _marked_up(raw: bytes) -> str:
    try:
        return _flat(etree.fromstring(b"<x>" + raw + b"</x>", _FRAGMENTS))
    except etree.XMLSyntaxError as error:
        raise Unusual from error


def _character(match: re.Match[bytes]) -> bytes:
    decimal, hexadecimal, name = match.groups()
    if name:
        return _ENTITIES[name]
    code = int(decimal) if decimal else int(hexadecimal, 16) if hexadecimal else 0
    if code < 32 or 0xD7FF < code < 0xE000 or 0xFFFD < code < 0x10000 or code > 0x10FFFF:
        raise Unusual
    return chr(code).encode()


def _narrowed(raw: bytes) -> str:
    """Text beyond ASCII with a blank for each white space beyond ASCII."""
    if b"\xef" in raw and b"\xef\xbf" in raw:  # U+FFFE and U+FFFF, which XML forbids, begin so
        raise Unusual
    text = _decode(raw).replace("\xa0", " ")
    if _WIDE_SPACE.search(raw) or "\x85" in text or b"\xe1" in raw or b"\xe3" in raw:
        return " ".join(text.split())
    return text


def _printed(raw: bytes | None) -> str | None:
    return None if raw is None else _decode(raw)


def _decode(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise Unusual from error


def _flat(element: etree._Element) -> str:
    return " ".join("".join(map(str, element.itertext())).split())


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
    fields.year = _year(_first(article, f"{date}/Year") or _first(article, f"{date}/MedlineDate"))
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
