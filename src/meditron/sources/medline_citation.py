"""Conversion of one MEDLINE citation to a document, from a match of the grammar or from lxml's tree.

`document_from_match` reads citations that match `medline_grammar.CITATION`, which is fast. It raises
NeedsLxml for those that only lxml can read. `document_from_element` reads lxml's tree of any well-formed
citation. Both give the same document.
"""

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import msgspec
from stringzilla import find

from meditron.sources.dates import parse_journal_date
from meditron.sources.document import Document, Section
from meditron.sources.medline_text import (
    NeedsLxml,
    cache_short_inputs,
    cached_text_of,
    element_text,
    text_of,
    texts_of,
    unescape_references,
)

if TYPE_CHECKING:
    from lxml import etree

__all__ = ["NotACitation", "document_from_element", "document_from_match", "retracted_pmids"]

_LabelAndCategory = tuple[str | None, str | None]  # label and category of a section

_NAME = re.compile(rb">([^<]*+)</")
_DESCRIPTOR = re.compile(rb"<DescriptorName [^>]*+>([^<]*+)<")
_DOI = re.compile(rb'<ArticleId IdType="doi">([^<]++)<')
_LOCATION = re.compile(rb'<ELocationID (?:ValidYN="[^"]*+" )?+EIdType="doi"[^>]*+>([^<]++)<')
_ATTRIBUTE = re.compile(rb' ([A-Za-z]++)="([^"]*+)"')
_ENGLISH = ["eng"]
_DATE_PART = re.compile(rb"<([A-Za-z]++)>([^<]*+)</")
_YEAR = re.compile(r"[12][0-9]{3}")
_NUMBER = re.compile("[0-9]{1,12}")


class NotACitation(Exception):
    """Well-formed XML that is not a citation; the message has the reason."""


def document_from_match(match: re.Match[bytes]) -> Document:
    """Return the document of a match of `medline_grammar.CITATION`; NeedsLxml if only lxml can read it."""
    version, pmid, date, journal, title, locations, abstract, languages, types, *more = match.groups()
    corrections, mesh, others, identifiers = more
    if corrections and find(corrections, b'"Retraction') >= 0:  # RetractionIn, RetractionOf
        raise NeedsLxml
    doi = (identifiers and _DOI.search(identifiers)) or (locations and _LOCATION.search(locations))
    raw_texts = [doi[1] if doi else b"", title or b""]
    labels, categories = _parse_abstract_texts(abstract, raw_texts) if abstract else ((), ())
    texts = texts_of(raw_texts)
    if doi and not texts[0]:
        raise NeedsLxml  # the first DOI is empty; `document_from_element` also looks for a second one
    return _build_document(
        pmid.decode(),
        int(version),
        texts[1],
        tuple(map(Section, texts[2:], labels, categories)),
        list(_element_texts(languages)),
        *(_dates_from_xml(date) if date else (None, None)),
        cached_text_of(journal) if journal else None,
        list(_element_texts(types)) if types else [],
        list(map(cached_text_of, _DESCRIPTOR.findall(mesh))) if mesh else [],
        texts[0],
        False,
        [_parse_other_abstract(part) for part in others.split(b"</OtherAbstract>")[:-1]] if others else [],
    )


def _parse_abstract_texts(data: bytes, raw_texts: list[bytes]) -> tuple[list[str | None], list[str | None]]:
    """Return the labels and the categories of consecutive AbstractText elements.

    Args:
        data: The bytes of the elements, without other elements between them.
        raw_texts: List to which the bytes of each text are appended.
    """
    labels, categories = [], []
    *parts, rest = data.split(b"</AbstractText>")
    for part in parts:
        tag, _, raw = part.partition(b">")
        label, category, empty = _parse_abstract_tag(tag)
        while empty:
            labels.append(label)
            categories.append(category)
            raw_texts.append(b"")
            tag, _, raw = raw.partition(b">")
            label, category, empty = _parse_abstract_tag(tag)
        labels.append(label)
        categories.append(category)
        raw_texts.append(raw)
    for tag in rest.split(b">")[:-1]:
        label, category, _ = _parse_abstract_tag(tag)
        labels.append(label)
        categories.append(category)
        raw_texts.append(b"")
    return labels, categories


@cache_short_inputs
def _element_texts(data: bytes) -> tuple[str, ...]:
    """Return the texts of consecutive elements, such as those of a list of Language elements."""
    return tuple(map(text_of, _NAME.findall(data)))


@cache_short_inputs
def _parse_abstract_tag(tag: bytes) -> tuple[str | None, str | None, bool]:
    """Parse an AbstractText start tag, given without its `>`.

    Returns:
        The label, the category, and True if the element is empty (`<AbstractText/>`).
    """
    printed = {name: unescape_references(value).decode() for name, value in _ATTRIBUTE.findall(tag)}
    return printed.get(b"Label"), printed.get(b"NlmCategory"), tag.endswith(b"/")


def _parse_other_abstract(data: bytes) -> dict[str, Any]:
    """Return the fields of an OtherAbstract, given its bytes up to the end tag."""
    tag, _, inner = data.partition(b">")
    inner = b"<" + inner.partition(b"<")[2]  # skip text before the first element
    printed = {name: value.decode() for name, value in _ATTRIBUTE.findall(tag)}
    raw_texts: list[bytes] = []
    labels, categories = _parse_abstract_texts(inner.partition(b"<CopyrightInformation>")[0], raw_texts)
    sections = list(map(Section, texts_of(raw_texts), labels, categories))
    return _other_abstract_fields(printed.get(b"Language"), printed.get(b"Type"), sections)


@cache_short_inputs
def _dates_from_xml(raw: bytes) -> tuple[int | None, str | None]:
    """Return the year and the date of the children of PubDate, given their bytes."""
    return _dates({name.decode(): text_of(text) for name, text in _DATE_PART.findall(raw)})


def _dates(parts: Mapping[str, str]) -> tuple[int | None, str | None]:
    """Return the first year of a PubDate (1998 of `1998 Dec-1999 Jan`), and its date in ISO 8601.

    Args:
        parts: Name of a child of PubDate → its text.
    """
    date = parts.get("Year") or parts.get("MedlineDate") or ""
    first = _YEAR.search(date)
    if parts.get("Year"):
        date = " ".join(filter(None, (date, *map(parts.get, ("Season", "Month", "Day")))))
    return int(first[0]) if first else None, parse_journal_date(date)


def _build_document(
    pmid: str,
    version: int,
    title: str,
    sections: tuple[Section, ...],
    languages: list[str],
    year: int | None,
    date: str | None,
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
        "date": date,
        "other_abstracts": others,
    }
    language = "eng" if languages == _ENGLISH else _text_language(title, sections, languages)
    retracted = retracted or "Retracted Publication" in types
    return Document("pubmed:" + pmid, "pubmed", title, sections, language, year, version, retracted, meta)


def _text_language(title: str, sections: tuple[Section, ...], languages: list[str]) -> str | None:
    """Return the language of the title and abstract, which may differ from the language of the article.

    NLM puts only English abstracts into Abstract, and translates titles into English, in brackets.
    """
    if "eng" in languages or title.startswith("[") or any(section.text for section in sections):
        return "eng"
    return next(filter(None, languages), None)


def document_from_element(element: "etree._Element") -> Document:
    """Return the document of one PubmedArticle, MedlineCitation or PubmedBookArticle, given lxml's tree.

    For a chapter of a book, `title` is the title of the chapter, or else of the book, and `journal` is the
    title of the book.

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
    dois = [element_text(other) for other in identifiers if other.get("IdType") == "doi"]
    dois += [element_text(place) for place in article.iterfind("ELocationID[@EIdType='doi']")]
    corrections = citation.iterfind("CommentsCorrectionsList/CommentsCorrections")
    return _build_document(
        _require_number(element_text(pmid), "PMID"),
        int(_require_number(pmid.get("Version", "1"), "version")),
        _first_child_text(article, "ArticleTitle")
        or (book and _first_child_text(article, "Book/BookTitle"))
        or "",
        tuple(_sections_from_element(article, "Abstract/AbstractText")),
        [element_text(language) for language in article.iterfind("Language")],
        *_dates(
            {
                name: text
                for name in ("Year", "MedlineDate", "Season", "Month", "Day")
                if (text := _first_child_text(article, f"{date}/{name}"))
            }
        ),
        _first_child_text(article, "Book/BookTitle" if book else "Journal/Title"),
        [element_text(kind) for kind in article.iterfind(types)],
        [element_text(name) for name in citation.iterfind("MeshHeadingList/MeshHeading/DescriptorName")],
        next(filter(None, dois), None),
        any(entry.get("RefType") == "RetractionIn" for entry in corrections),
        [
            _other_abstract_fields(
                other.get("Language"), other.get("Type"), _sections_from_element(other, "AbstractText")
            )
            for other in citation.iterfind("OtherAbstract")
        ],
    )


def retracted_pmids(element: "etree._Element") -> list[str]:
    """Return the PMIDs of the articles that a citation, which is a retraction notice, retracts."""
    notices = element.iterfind(".//CommentsCorrectionsList/CommentsCorrections[@RefType='RetractionOf']")
    pmids = [_first_child_text(notice, "PMID") or "" for notice in notices]
    return [pmid for pmid in pmids if _NUMBER.fullmatch(pmid)]


def _sections_from_element(element: "etree._Element", path: str) -> list[Section]:
    return [
        Section(element_text(part), part.get("Label"), part.get("NlmCategory"))
        for part in element.iterfind(path)
    ]


def _other_abstract_fields(language: str | None, kind: str | None, sections: list[Section]) -> dict[str, Any]:
    return {
        "language": "eng" if language is None else language,  # the DTD's default
        "type": kind,
        "sections": [msgspec.to_builtins(section) for section in sections],
    }


def _require_number(text: str, name: str) -> str:
    if not _NUMBER.fullmatch(text):
        raise NotACitation(f"its {name} is not a number: {text[:40]!r}")
    return text


def _first_child_text(element: "etree._Element", path: str) -> str | None:
    child = element.find(path)
    return None if child is None else element_text(child)
