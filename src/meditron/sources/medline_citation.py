"""One PubmedArticle element to a document: a quick scan of its bytes, and lxml where the scan is unsure.

The scan knows one grammar: the DTD's order of elements as NLM's own files spell it. Another spelling of
what it reads (a comment, CDATA, another quote, an entity that is not XML's own, …) raises `Unusual`; then
lxml gets the same bytes, and its word is final. What the scan skips (authors, grants, references, attributes)
it does not check: a fault in there changes nothing that is read.

stringzilla's searches go through a citation at the speed of memory, several times CPython's.
"""

import re
import sys
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from stringzilla import count, find, find_first_of

from meditron.sources.document import Document, Section
from meditron.sources.medline_text import (
    SPECIAL,
    Unusual,
    decoded,
    flat_text,
    name_of,
    plain_text,
    text_of,
)

if TYPE_CHECKING:
    from lxml import etree

__all__ = ["parse", "scan"]

# Every quantifier is possessive: nothing here backtracks. What a cache will hold has a largest length.
# Between the PMID and the article come dates alone, without an A.
_HEAD = re.compile(
    rb"""<PubmedArticle>\s*+<MedlineCitation[ ][^>]*+>\s*+<PMID[ ]Version="([0-9]++)">([0-9]++)</PMID>
    [^A]*+(?<=<)Article[ ][^>]*+>\s*+<Journal>\s*+(?:<ISSN[^>]*+>[^<]*+</ISSN>\s*+)?+
    <JournalIssue[ ][^>]*+>\s*+(?:<Volume>[^<]*+</Volume>\s*+)?+(?:<Issue>[^<]*+</Issue>\s*+)?+
    <PubDate>\s*+<(?:Year|MedlineDate)>([^<]{0,80}+)</(?:Year|MedlineDate)>\s*+
    (?:<(?:Month|Day|Season)>[^<]*+</[A-Z][a-z]++>\s*+)*+</PubDate>\s*+</JournalIssue>\s*+
    (?:<Title>([^<]{0,800}+)</Title>\s*+)?+(?:<ISOAbbreviation>[^<]*+</ISOAbbreviation>\s*+)?+</Journal>\s*+
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
    </PublicationTypeList>\s*+<(?:VernacularTitle|ArticleDate[ ][^<>]*+|/Article)>""",
    re.VERBOSE,
)
_TYPE = re.compile(rb">([^<]*+)</PublicationType>")
_DESCRIPTOR = re.compile(rb"<DescriptorName [^>]*+(?<=\w\")>([^<]{0,400}+)</DescriptorName>")
_LOCATION = re.compile(rb'EIdType="doi" ValidYN="[YN]">([^<]*+)<')
_IDENTIFIERS = re.compile(
    rb"""<ArticleIdList>\s*+(?:<ArticleId[ ]IdType="(?!doi")[a-z-]++">[^<]*+</ArticleId>\s*+)*+
    (?:<ArticleId[ ]IdType="doi">([^<]*+)</ArticleId>\s*+)?+
    (?:<ArticleId[ ]IdType="[a-z-]++">[^<]*+</ArticleId>\s*+)*+</ArticleIdList>""",
    re.VERBOSE,
)
_LONGEST_TAG = 400
_LONGEST_LIST = 2000
_YEAR = re.compile(r"[12][0-9]{3}")


def scan(data: bytes) -> Document:
    """Read the bytes of one PubmedArticle element; Unusual where lxml must read them."""
    match = _HEAD.match(data)
    if match is None:
        raise Unusual
    version, pmid, date, journal, empty = match.groups()
    title, at = _content(data, match.end(), b"</ArticleTitle>", empty)
    place, sections, at = _scan_abstract(data, at)
    language, types, at = _scan_kind(data, at)
    end = _find(data, b"</MedlineCitation>", at)
    if find(data, b"RetractionIn", at, end) >= 0:
        raise Unusual
    mesh = _mesh(data, at, end)
    doi, end = _doi(data, end)
    if not doi and (location := _LOCATION.search(place)):
        doi = text_of(location[1])
    if _has_aside(data, end):
        raise Unusual
    return _document(
        pmid.decode(),
        int(version),
        title,
        sections,
        language=language,
        year=_year(date),
        journal=name_of(journal) if journal else None,
        types=types,
        mesh=mesh,
        doi=doi,
    )


def _document(
    pmid: str,
    version: int,
    title: str,
    sections: list[Section],
    *,
    language: str | None,
    year: int | None,
    journal: str | None,
    types: list[str],
    mesh: list[str],
    doi: str | None,
    retracted: bool = False,
) -> Document:
    meta: dict[str, Any] = {
        "pmid": pmid,
        "version": version,
        "journal": journal or None,
        "publication_types": types,
        "mesh": mesh,
        "doi": doi or None,
        "retracted": retracted or "Retracted Publication" in types,
    }
    return Document(f"pubmed:{pmid}", "pubmed", title, tuple(sections), language or None, year, meta)


def _has_aside(data: bytes, end: int) -> bool:
    """Whether a comment, CDATA or an instruction begins before `end`."""
    return bool(find(data, b"<!", 0, end) >= 0 or find(data, b"<?", 0, end) >= 0)


def _find(data: bytes, needle: bytes, start: int, end: int = sys.maxsize) -> int:
    found: int = find(data, needle, start, end)
    if found < 0:
        raise Unusual
    return found


def _content(data: bytes, start: int, closing: bytes, empty: bytes) -> tuple[str, int]:
    """The text of an element whose start tag ends at `start`, and where the element ends."""
    if empty:
        return "", start
    end = find_first_of(data, SPECIAL, start)
    if data.startswith(closing, end):
        return plain_text(data[start:end]), end + len(closing)
    end = _find(data, closing, start)
    return text_of(data[start:end]), end + len(closing)


def _scan_abstract(data: bytes, at: int) -> tuple[bytes, list[Section], int]:
    """Read on from the title: the locations, the sections, and where the authors or the language start."""
    match = _PLACE.match(data, at)
    if match is None:
        raise Unusual
    place, following = match.groups()
    sections: list[Section] = []
    if following != b"Abstract>":
        return place, sections, match.start(2) - 1
    at = match.end()
    while start := _section_start(data[at : data.find(b">", at, at + _LONGEST_TAG) + 1]):
        length, label, category, empty = start
        text, at = _content(data, at + length, b"</AbstractText>", empty)
        sections.append(Section(text, label, category))
    match = _AFTER_ABSTRACT.match(data, at)
    if match is None:
        raise Unusual
    return place, sections, match.start(1) - 1


@lru_cache(maxsize=1 << 12)
def _section_start(tag: bytes) -> tuple[int, str | None, str | None, bytes] | None:
    """Of an AbstractText's start tag its length, label, category, and `/` if it is all."""
    match = _SECTION.fullmatch(tag)
    if match is None:
        return None
    label, category, empty = match.groups()
    return len(tag), _printed(label), _printed(category), empty


def _printed(raw: bytes | None) -> str | None:
    return None if raw is None else decoded(raw)


def _scan_kind(data: bytes, at: int) -> tuple[str, list[str], int]:
    """Read language and publication types; the article's end."""
    if data.startswith(b"<AuthorList", at):
        at = _find(data, b"</AuthorList>", at) + len(b"</AuthorList>")
    language = _LANGUAGE.match(data, at)
    if language is None:
        raise Unusual
    start = _find(data, b"<PublicationTypeList>", at)
    at = _find(data, b"</PublicationTypeList>", start, start + _LONGEST_LIST) + len(b"</PublicationTypeList>")
    types = _types(data[start : data.find(b">", at, at + _LONGEST_TAG) + 1])
    return language[1].decode(), list(types), _find(data, b"</Article>", at)


@lru_cache(maxsize=1 << 12)
def _types(raw: bytes) -> list[str]:
    """The types in a PublicationTypeList with the tag that follows it."""
    match = _TYPES.fullmatch(raw)
    if match is None:
        raise Unusual
    return [text_of(kind) for kind in _TYPE.findall(match[1])]


def _mesh(data: bytes, start: int, end: int) -> list[str]:
    start = find(data, b"<MeshHeadingList", start, end)
    if start < 0:
        return []
    names = _DESCRIPTOR.findall(data, start, end)
    if len(names) != count(data, b"<DescriptorName", start, end):
        raise Unusual
    return list(map(name_of, names))


def _doi(data: bytes, at: int) -> tuple[str | None, int]:
    """The DOI among the article's own identifiers, and their end. The lists of its references come later."""
    if find(data, b"<PubmedData>", at) < 0:
        return None, len(data)
    start = _find(data, b"<ArticleIdList>", at)
    # A reference's own list would follow a Citation.
    if not data.startswith(b"</PublicationStatus>", data.rfind(b"<", at, start)):
        raise Unusual
    match = _IDENTIFIERS.match(data, start)
    if match is None:
        raise Unusual
    return text_of(match[1]) if match[1] else None, match.end()


@lru_cache(maxsize=1 << 12)
def _year(date: bytes) -> int | None:
    return _first_year(text_of(date))


def _first_year(date: str) -> int | None:
    """1998 in `1998 Dec-1999 Jan`."""
    match = _YEAR.search(date)
    return int(match[0]) if match else None


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
    title = _first(article, "ArticleTitle") or (book and _first(article, "Book/BookTitle")) or ""
    sections = [
        Section(flat_text(part), part.get("Label"), part.get("NlmCategory"))
        for part in article.iterfind("Abstract/AbstractText")
    ]
    types = "PublicationType" if book else "PublicationTypeList/PublicationType"
    names = citation.iterfind("MeshHeadingList/MeshHeading/DescriptorName")
    identifiers = element.iterfind("PubmedBookData/ArticleIdList/*" if book else "PubmedData/ArticleIdList/*")
    doi = next((flat_text(other) for other in identifiers if other.get("IdType") == "doi"), None)
    corrections = citation.iterfind("CommentsCorrectionsList/CommentsCorrections")
    return _document(
        flat_text(pmid),
        int(pmid.get("Version", "1")),
        title,
        sections,
        language=_first(article, "Language"),
        year=_first_year(_first(article, f"{date}/Year") or _first(article, f"{date}/MedlineDate") or ""),
        journal=_first(article, "Book/BookTitle" if book else "Journal/Title"),
        types=[flat_text(kind) for kind in article.iterfind(types)],
        mesh=[flat_text(name) for name in names],
        doi=doi or _first(article, "ELocationID[@EIdType='doi']"),
        retracted=any(entry.get("RefType") == "RetractionIn" for entry in corrections),
    )


def _first(element: "etree._Element", path: str) -> str | None:
    found = element.find(path)
    return None if found is None else flat_text(found)
