"""Conversion of one MEDLINE citation to a document: from a match of the grammar, or from lxml's tree.

`scan` reads citations that match `medline_grammar.CITATION` and raises NeedsLxml for those that need lxml.
`parse` reads lxml's tree of any well-formed citation; its result is the reference.
"""

import re
from typing import TYPE_CHECKING, Any

import msgspec
from stringzilla import find

from meditron.sources.document import Document, Section
from meditron.sources.medline_text import (
    NeedsLxml,
    cache_short,
    cached_text_of,
    flat_text,
    text_of,
    texts_of,
    unescape,
)

if TYPE_CHECKING:
    from lxml import etree

__all__ = ["NotACitation", "parse", "scan"]

_Heading = tuple[str | None, str | None]  # a label and a category

_NAME = re.compile(rb">([^<]*+)</")
_DESCRIPTOR = re.compile(rb"<DescriptorName [^>]*+>([^<]*+)<")
_DOI = re.compile(rb'<ArticleId IdType="doi">([^<]++)<')
_LOCATION = re.compile(rb'<ELocationID (?:ValidYN="[^"]*+" )?+EIdType="doi"[^>]*+>([^<]++)<')
_ATTRIBUTE = re.compile(rb' ([A-Za-z]++)="([^"]*+)"')
_ENGLISH = ["eng"]
_YEAR = re.compile(r"[12][0-9]{3}")
_NUMBER = re.compile("[0-9]{1,12}")


class NotACitation(Exception):
    """Well-formed XML that is not a citation; the message gives the reason."""


def scan(match: re.Match[bytes]) -> Document:
    """Read a match of `medline_grammar.CITATION`; NeedsLxml if only lxml can read the citation."""
    version, pmid, date, journal, title, locations, abstract, languages, types, *more = match.groups()
    corrections, mesh, others, identifiers = more
    if corrections and find(corrections, b"RetractionIn") >= 0:
        raise NeedsLxml
    doi = (identifiers and _DOI.search(identifiers)) or (locations and _LOCATION.search(locations))
    raws = [doi[1] if doi else b"", title or b""]
    labels, categories = _abstract(abstract, raws) if abstract else ((), ())
    texts = texts_of(raws)
    if doi and not texts[0]:
        raise NeedsLxml  # an empty DOI; a second one may follow, which only `parse` looks for
    return _document(
        pmid.decode(),
        int(version),
        texts[1],
        tuple(map(Section, texts[2:], labels, categories)),
        list(_names(languages)),
        _year(date) if date else None,
        cached_text_of(journal) if journal else None,
        list(_names(types)) if types else [],
        list(map(cached_text_of, _DESCRIPTOR.findall(mesh))) if mesh else [],
        texts[0],
        False,
        [_scan_other(part) for part in others.split(b"</OtherAbstract>")[:-1]] if others else [],
    )


def _abstract(data: bytes, raws: list[bytes]) -> tuple[list[str | None], list[str | None]]:
    """Return the labels and categories of AbstractText elements; the bytes contain no other elements.

    The bytes of each text are appended to `raws`.
    """
    labels, categories = [], []
    *parts, rest = data.split(b"</AbstractText>")
    for part in parts:
        tag, _, raw = part.partition(b">")
        label, category, empty = _heading(tag)
        while empty:
            labels.append(label)
            categories.append(category)
            raws.append(b"")
            tag, _, raw = raw.partition(b">")
            label, category, empty = _heading(tag)
        labels.append(label)
        categories.append(category)
        raws.append(raw)
    for tag in rest.split(b">")[:-1]:
        label, category, _ = _heading(tag)
        labels.append(label)
        categories.append(category)
        raws.append(b"")
    return labels, categories


@cache_short
def _names(data: bytes) -> tuple[str, ...]:
    """Return the texts of consecutive elements."""
    return tuple(map(text_of, _NAME.findall(data)))


@cache_short
def _heading(tag: bytes) -> tuple[str | None, str | None, bool]:
    """Return label, category and emptiness (`<AbstractText/>`) of a start tag, given without its `>`."""
    printed = {name: unescape(value).decode() for name, value in _ATTRIBUTE.findall(tag)}
    return printed.get(b"Label"), printed.get(b"NlmCategory"), tag.endswith(b"/")


def _scan_other(data: bytes) -> dict[str, Any]:
    """Read the bytes of an OtherAbstract up to its end tag."""
    tag, _, inner = data.partition(b">")
    inner = b"<" + inner.partition(b"<")[2]  # text before the first element is not read
    printed = {name: value.decode() for name, value in _ATTRIBUTE.findall(tag)}
    raws: list[bytes] = []
    labels, categories = _abstract(inner.partition(b"<CopyrightInformation>")[0], raws)
    sections = list(map(Section, texts_of(raws), labels, categories))
    return _other_abstract(printed.get(b"Language"), printed.get(b"Type"), sections)


@cache_short
def _year(raw: bytes) -> int | None:
    return _first_year(text_of(raw[raw.index(b">") + 1 : raw.rindex(b"<")]))


def _first_year(date: str) -> int | None:
    """Return the first year in a date: 1998 of `1998 Dec-1999 Jan`."""
    match = _YEAR.search(date)
    return int(match[0]) if match else None


def _document(
    pmid: str,
    version: int,
    title: str,
    sections: tuple[Section, ...],
    languages: list[str],
    year: int | None,
    journal: str | None,
    types: list[str],
    mesh: list[str],
    doi: str | None,
    retracted: bool,
    others: list[dict[str, Any]],
) -> Document:
    meta: dict[str, Any] = {
        "pmid": pmid,
        "journal": journal or None,
        "languages": languages,
        "publication_types": types,
        "mesh": mesh,
        "doi": doi or None,
        "other_abstracts": others,
    }
    language = "eng" if languages == _ENGLISH else _language(title, sections, languages)
    retracted = retracted or "Retracted Publication" in types
    return Document("pubmed:" + pmid, "pubmed", title, sections, language, year, version, retracted, meta)


def _language(title: str, sections: tuple[Section, ...], languages: list[str]) -> str | None:
    """Return the language of the text, which may differ from the article's.

    NLM puts only English abstracts into Abstract, and translates titles into English, in brackets.
    """
    if "eng" in languages or title.startswith("[") or any(section.text for section in sections):
        return "eng"
    return next(filter(None, languages), None)


def parse(element: "etree._Element") -> Document:
    """Read lxml's tree of one PubmedArticle, MedlineCitation or PubmedBookArticle.

    The title of a book's chapter is the chapter's own, else the book's; its journal is the book.

    Raises:
        NotACitation: The PMID or the article is missing, or a number is not numeric.
    """
    book = element.tag == "PubmedBookArticle"
    old = element.tag == "MedlineCitation"
    citation = element if old else element.find("BookDocument" if book else "MedlineCitation")
    article = citation if book or citation is None else citation.find("Article")
    pmid = None if citation is None else citation.find("PMID")
    if citation is None or article is None or pmid is None:
        raise NotACitation("a citation lacks its PMID or its article")
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
        tuple(_sections(article, "Abstract/AbstractText")),
        [flat_text(language) for language in article.iterfind("Language")],
        _first_year(_first(article, f"{date}/Year") or _first(article, f"{date}/MedlineDate") or ""),
        _first(article, "Book/BookTitle" if book else "Journal/Title"),
        [flat_text(kind) for kind in article.iterfind(types)],
        [flat_text(name) for name in citation.iterfind("MeshHeadingList/MeshHeading/DescriptorName")],
        next(filter(None, dois), None),
        any(entry.get("RefType") == "RetractionIn" for entry in corrections),
        [
            _other_abstract(other.get("Language"), other.get("Type"), _sections(other, "AbstractText"))
            for other in citation.iterfind("OtherAbstract")
        ],
    )


def _sections(element: "etree._Element", path: str) -> list[Section]:
    return [
        Section(flat_text(part), part.get("Label"), part.get("NlmCategory"))
        for part in element.iterfind(path)
    ]


def _other_abstract(language: str | None, kind: str | None, sections: list[Section]) -> dict[str, Any]:
    return {
        "language": "eng" if language is None else language,  # the DTD's default
        "type": kind,
        "sections": [msgspec.to_builtins(section) for section in sections],
    }


def _number(text: str, name: str) -> str:
    if not _NUMBER.fullmatch(text):
        raise NotACitation(f"its {name} is not a number: {text[:40]!r}")
    return text


def _first(element: "etree._Element", path: str) -> str | None:
    child = element.find(path)
    return None if child is None else flat_text(child)
