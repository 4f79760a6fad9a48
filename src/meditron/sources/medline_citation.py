"""One PubmedArticle element to a document: a quick scan of its bytes, and lxml where the scan is unsure.

The scan knows one grammar: the DTD's order of elements as NLM's own files spell it. Another spelling of
what it reads (a comment, CDATA, another quote, an entity that is not XML's own, …) raises `Unusual`; then
lxml gets the same bytes, and its word is final. What the scan skips
(authors, grants, references) it does not check: a fault in there changes nothing that is read.
"""

import re
from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from meditron.sources.document import Document, Section
from meditron.sources.medline_text import Unusual, decoded, flat_text, name_of, text_of

if TYPE_CHECKING:
    from lxml import etree

__all__ = ["parse", "scan"]

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
    (?:<ArticleId[ ]IdType="[a-z-]++">[^<]*+</ArticleId>\s*+)*+</ArticleIdList>""",
    re.VERBOSE,
)
_DOI = re.compile(rb'IdType="doi">([^<]*+)<')
_LESS_THAN = ord("<")
_YEAR = re.compile(r"[12][0-9]{3}")


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
    fields = _Fields(pmid.decode(), int(version), year=_year(name_of(date)))
    fields.journal = name_of(journal) if journal else None
    fields.title, at = _content(data, match.end(), b"</ArticleTitle>", empty)
    place, at = _scan_abstract(data, at, fields)
    at = _scan_kind(data, at, fields)
    end = _find(data, b"</MedlineCitation>", at)
    if data.find(b"RetractionIn", at, end) >= 0:
        raise Unusual
    fields.mesh = _mesh(data, at, end)
    doi, end = _doi(data, end)
    fields.doi = text_of(doi[1]) if doi else None
    if not fields.doi and (doi := _LOCATION.search(place)):
        fields.electronic_doi = text_of(doi[1])
    if _has_aside(data, end):
        raise Unusual
    return fields.document()


def _has_aside(data: bytes, end: int) -> bool:
    """Whether a comment, CDATA or an instruction begins before `end`: one byte is found faster than two."""
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
    return text_of(data[start:end]), end + len(closing)


def _scan_abstract(data: bytes, at: int, fields: _Fields) -> tuple[bytes, int]:
    """Read on from the title: the locations, and where the list of authors or the language starts."""
    match = _PLACE.match(data, at)
    if match is None:
        raise Unusual
    place, following = match.groups()
    if following != b"Abstract>":
        return place, match.start(2) - 1
    at = match.end()
    while section := _SECTION.match(data, at):
        label, category, empty = section.groups()
        text, at = _content(data, section.end(), b"</AbstractText>", empty)
        fields.sections.append(Section(text, _printed(label), _printed(category)))
    match = _AFTER_ABSTRACT.match(data, at)
    if match is None:
        raise Unusual
    return place, match.start(1) - 1


def _scan_kind(data: bytes, at: int, fields: _Fields) -> int:
    """Read language and publication types; the article's end."""
    if data.startswith(b"<AuthorList", at):
        at = _find(data, b"</AuthorList>", at) + len(b"</AuthorList>")
    language = _LANGUAGE.match(data, at)
    types = _TYPES.match(data, _find(data, b"<PublicationTypeList", at))
    if language is None or types is None:
        raise Unusual
    fields.language = language[1].decode()
    fields.types = [name_of(kind) for kind in _TYPE.findall(types[1])]
    return _find(data, b"</Article>", types.end() - len(b"</Article>"))


def _mesh(data: bytes, start: int, end: int) -> list[str]:
    start = data.find(b"<MeshHeadingList", start, end)
    if start < 0:
        return []
    names = _DESCRIPTOR.findall(data, start, end)
    if len(names) != data.count(b"<DescriptorName", start, end):
        raise Unusual
    return [name_of(name) for name in names]


def _doi(data: bytes, at: int) -> tuple[re.Match[bytes] | None, int]:
    """The DOI among the article's own identifiers, and their end. The lists of its references come later."""
    if data.find(b"<PubmedData>", at) < 0:
        return None, len(data)
    start = _find(data, b"<ArticleIdList>", at)
    # A reference's own list would follow a Citation.
    if not data.startswith(b"</PublicationStatus>", data.rfind(b"<", at, start)):
        raise Unusual
    found = _IDENTIFIERS.match(data, start)
    if found is None:
        raise Unusual
    return _DOI.search(data, start, found.end()), found.end()


@lru_cache(maxsize=1 << 10)
def _year(date: str | None) -> int | None:
    """The first year in a date: 1998 in `1998 Dec-1999 Jan`."""
    match = _YEAR.search(date or "")
    return int(match[0]) if match else None


def _printed(raw: bytes | None) -> str | None:
    return None if raw is None else decoded(raw)


def parse(element: "etree._Element") -> Document | None:
    """Read lxml's tree of one PubmedArticle or PubmedBookArticle; None where it has no PMID.

    Of a book's chapter the title is the chapter's own, else the book's; its journal is the book.
    """
    book = element.tag == "PubmedBookArticle"
    citation = element.find("BookDocument" if book else "MedlineCitation")
    article = citation if book or citation is None else citation.find("Article")
    pmid = None if citation is None else citation.find("PMID")
    if citation is None or article is None or pmid is None or not flat_text(pmid):
        return None
    date = "Book/PubDate" if book else "Journal/JournalIssue/PubDate"
    fields = _Fields(flat_text(pmid), int(pmid.get("Version", "1")))
    fields.title = _first(article, "ArticleTitle") or (
        _first(article, "Book/BookTitle") or "" if book else ""
    )
    fields.sections = [
        Section(flat_text(part), part.get("Label"), part.get("NlmCategory"))
        for part in article.iterfind("Abstract/AbstractText")
    ]
    fields.language = _first(article, "Language")
    fields.year = _year(_first(article, f"{date}/Year") or _first(article, f"{date}/MedlineDate"))
    fields.journal = _first(article, "Book/BookTitle" if book else "Journal/Title")
    types = "PublicationType" if book else "PublicationTypeList/PublicationType"
    fields.types = [flat_text(kind) for kind in article.iterfind(types)]
    fields.mesh = [
        flat_text(name) for name in citation.iterfind("MeshHeadingList/MeshHeading/DescriptorName")
    ]
    identifiers = element.iterfind("PubmedBookData/ArticleIdList/*" if book else "PubmedData/ArticleIdList/*")
    fields.doi = next((flat_text(other) for other in identifiers if other.get("IdType") == "doi"), None)
    fields.electronic_doi = _first(article, "ELocationID[@EIdType='doi']")
    corrections = citation.iterfind("CommentsCorrectionsList/CommentsCorrections")
    fields.retracted_by = any(entry.get("RefType") == "RetractionIn" for entry in corrections)
    return fields.document()


def _first(element: "etree._Element", path: str) -> str | None:
    found = element.find(path)
    return None if found is None else flat_text(found)
