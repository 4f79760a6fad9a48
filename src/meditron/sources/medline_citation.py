"""One citation to a document: from a match of the grammar, or from lxml's tree.

`scan` reads what `medline_grammar` has proven, and raises Unusual for what it leaves to lxml. `parse` reads lxml's
tree of any well-formed citation, and its word is final.
"""

import re
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import msgspec
from stringzilla import find

from meditron.sources.document import Document, Section
from meditron.sources.medline_text import Unusual, flat_text, name_of, text_of

if TYPE_CHECKING:
    from lxml import etree

__all__ = ["Malformed", "parse", "scan"]

_FIELDS = ("pmid", "version", "date", "journal", "title", "locations", "sections", "languages", "types")
_FIELDS += ("corrections", "mesh", "identifiers")
_NAME = re.compile(rb">([^<]*+)</")
_DESCRIPTOR = re.compile(rb"<DescriptorName [^>]*+>([^<]*+)<")
_DOI = re.compile(rb'<ArticleId IdType="doi">([^<]*+)<')
_LOCATION = re.compile(rb'<ELocationID (?:ValidYN="[^"]*+" )?+EIdType="doi"[^>]*+>([^<]*+)<')
_ATTRIBUTE = re.compile(rb' ([A-Za-z]++)="([^"]*+)"')
_YEAR = re.compile(r"[12][0-9]{3}")
_NUMBER = re.compile("[0-9]{1,12}")


class Malformed(Exception):
    """Raised for well-formed XML that is no citation; says why."""


def scan(match: re.Match[bytes]) -> Document:
    """Read what `medline_grammar.CITATION` matched; Unusual where lxml must read it."""
    pmid, version, date, journal, title, locations, sections, languages, types, *more = match.group(*_FIELDS)
    corrections, mesh, identifiers = more
    if corrections and find(corrections, b"RetractionIn") >= 0:
        raise Unusual
    return _document(
        pmid.decode(),
        int(version),
        text_of(title) if title else "",
        _scan_sections(sections) if sections else [],
        languages=list(map(name_of, _NAME.findall(languages))),
        year=_year(date) if date else None,
        journal=name_of(journal) if journal else None,
        types=list(map(name_of, _NAME.findall(types))) if types else [],
        mesh=list(map(name_of, _DESCRIPTOR.findall(mesh))) if mesh else [],
        doi=_first_text(_DOI, identifiers) or _first_text(_LOCATION, locations),
    )


def _first_text(pattern: re.Pattern[bytes], data: bytes | None) -> str | None:
    return next(filter(None, map(text_of, pattern.findall(data))), None) if data else None


def _scan_sections(data: bytes) -> list[Section]:
    """The AbstractText elements of proven bytes that hold nothing else."""
    sections = []
    at = 0
    while (start := find(data, b"<AbstractText", at)) >= 0:
        at = data.index(b">", start)
        label, category, empty = _heading(data[start:at])
        text = ""
        if not empty:
            start, at = at + 1, find(data, b"</AbstractText>", at)
            text = text_of(data[start:at])
        sections.append(Section(text, label, category))
    return sections


@lru_cache(maxsize=1 << 12)
def _heading(tag: bytes) -> tuple[str | None, str | None, bool]:
    """The label and the category in an AbstractText's start tag, without its `>`, and whether it is empty."""
    printed = dict(_ATTRIBUTE.findall(tag))
    label, category = printed.get(b"Label"), printed.get(b"NlmCategory")
    return (
        None if label is None else label.decode(),
        None if category is None else category.decode(),
        tag.endswith(b"/"),
    )


@lru_cache(maxsize=1 << 12)
def _year(raw: bytes) -> int | None:
    return _first_year(text_of(raw[raw.index(b">") + 1 : raw.rindex(b"<")]))


def _first_year(date: str) -> int | None:
    """1998 in `1998 Dec-1999 Jan`."""
    match = _YEAR.search(date)
    return int(match[0]) if match else None


def _document(
    pmid: str,
    version: int,
    title: str,
    sections: list[Section],
    *,
    languages: list[str],
    year: int | None,
    journal: str | None,
    types: list[str],
    mesh: list[str],
    doi: str | None,
    retracted: bool = False,
    others: list[dict[str, Any]] | None = None,
) -> Document:
    meta: dict[str, Any] = {
        "pmid": pmid,
        "version": version,
        "journal": journal or None,
        "languages": languages,
        "publication_types": types,
        "mesh": mesh,
        "doi": doi or None,
        "retracted": retracted or "Retracted Publication" in types,
        "other_abstracts": others or [],
    }
    language = _language(title, sections, languages)
    return Document(f"pubmed:{pmid}", "pubmed", title, tuple(sections), language, year, meta)


def _language(title: str, sections: list[Section], languages: list[str]) -> str | None:
    """The language of the text, which is not the article's.

    NLM puts English abstracts alone into Abstract, and translates titles into English, in brackets.
    """
    if languages == ["eng"] or title.startswith("[") or any(section.text for section in sections):
        return "eng"
    return "eng" if "eng" in languages else next(filter(None, languages), None)


def parse(element: "etree._Element") -> Document:
    """Read lxml's tree of one PubmedArticle, MedlineCitation or PubmedBookArticle.

    Of a book's chapter the title is the chapter's own, else the book's; its journal is the book.

    Raises:
        Malformed: it has no PMID, or no article, or one of its numbers is none.
    """
    book = element.tag == "PubmedBookArticle"
    old = element.tag == "MedlineCitation"
    citation = element if old else element.find("BookDocument" if book else "MedlineCitation")
    article = citation if book or citation is None else citation.find("Article")
    pmid = None if citation is None else citation.find("PMID")
    if citation is None or article is None or pmid is None:
        raise Malformed("a citation lacks its PMID or its article")
    date = "Book/PubDate" if book else "Journal/JournalIssue/PubDate"
    types = "PublicationType" if book else "PublicationTypeList/PublicationType"
    identifiers = element.iterfind(f"{'PubmedBookData' if book else 'PubmedData'}/ArticleIdList/ArticleId")
    dois = [flat_text(other) for other in identifiers if other.get("IdType") == "doi"]
    dois += [flat_text(place) for place in article.iterfind("ELocationID[@EIdType='doi']")]
    corrections = citation.iterfind("CommentsCorrectionsList/CommentsCorrections")
    return _document(
        _number(flat_text(pmid), "PMID"),
        int(_number(pmid.get("Version", "1"), "version")),
        _first(article, "ArticleTitle") or (book and _first(article, "Book/BookTitle")) or "",
        _sections(article, "Abstract/AbstractText"),
        languages=[flat_text(language) for language in article.iterfind("Language")],
        year=_first_year(_first(article, f"{date}/Year") or _first(article, f"{date}/MedlineDate") or ""),
        journal=_first(article, "Book/BookTitle" if book else "Journal/Title"),
        types=[flat_text(kind) for kind in article.iterfind(types)],
        mesh=[flat_text(name) for name in citation.iterfind("MeshHeadingList/MeshHeading/DescriptorName")],
        doi=next(filter(None, dois), None),
        retracted=any(entry.get("RefType") == "RetractionIn" for entry in corrections),
        others=[_other_abstract(other) for other in citation.iterfind("OtherAbstract")],
    )


def _sections(element: "etree._Element", path: str) -> list[Section]:
    return [
        Section(flat_text(part), part.get("Label"), part.get("NlmCategory"))
        for part in element.iterfind(path)
    ]


def _other_abstract(element: "etree._Element") -> dict[str, Any]:
    return {
        "language": element.get("Language", "eng"),  # the DTD's default
        "type": element.get("Type"),
        "sections": [msgspec.to_builtins(section) for section in _sections(element, "AbstractText")],
    }


def _number(text: str, name: str) -> str:
    if not _NUMBER.fullmatch(text):
        raise Malformed(f"its {name} is not a number: {text[:40]!r}")
    return text


def _first(element: "etree._Element", path: str) -> str | None:
    found = element.find(path)
    return None if found is None else flat_text(found)
