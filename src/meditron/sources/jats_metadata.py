"""Fields of a JATS article besides its text: identifiers, dates, licence, journal and type."""

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from meditron.sources.dates import iso_date, parse_iso_date
from meditron.sources.licences import combined_statement, creative_commons_link

if TYPE_CHECKING:
    from lxml import etree

__all__ = [
    "article_id",
    "article_language",
    "article_meta",
    "article_version",
    "is_retracted",
    "publication_date",
]

LANGUAGE = "{http://www.w3.org/XML/1998/namespace}lang"
_HREF = "{http://www.w3.org/1999/xlink}href"
_LICENCE_REFERENCE = "{http://www.niso.org/schemas/ali/1.0/}license_ref"
_PMC = re.compile(r"(?:PMC)?([0-9]+)", re.IGNORECASE)
_VERSION = re.compile(r"(?:PMC)?[0-9]+\.([0-9]{1,6})", re.IGNORECASE)
# Dates of manuscripts and of their deposit, which say nothing about the publication of the article.
_OTHER_DATES = frozenset(
    {"nihms-submitted", "pmc-release", "received", "accepted", "rev-recd", "rev-request", "retracted"}
    | {"retraction", "corrected", "ecorrected", "original-publication", "resent"}
)
# Article types of JATS → publication types of MEDLINE. Other articles have the type Journal Article only.
_PUBLICATION_TYPES = {
    "abstract": "Meeting Abstract",
    "article-commentary": "Comment",
    "brief-report": "Journal Article",
    "case-report": "Case Reports",
    "clinical-trial": "Clinical Trial",
    "correction": "Published Erratum",
    "editorial": "Editorial",
    "letter": "Letter",
    "meta-analysis": "Meta-Analysis",
    "news": "News",
    "obituary": "Obituary",
    "preprint": "Preprint",
    "randomized-controlled-trial": "Randomized Controlled Trial",
    "reply": "Comment",
    "research-article": "Journal Article",
    "retraction": "Retraction of Publication",
    "review-article": "Review",
    "systematic-review": "Systematic Review",
}
_RETRACTED_TITLE = re.compile(
    r"\W*(?:retracted(?: article)?\s*[:\]]|retraction (?:note|notice)\b)", re.IGNORECASE
)


def article_id(meta: "etree._Element", name: str) -> str:
    """Return the stable id of an article: of PMC, or else its DOI, its PMID, or the name of its file."""
    ids = _identifiers(meta)
    if match := _PMC.fullmatch(ids.get("pmc") or ids.get("pmcid") or ""):
        return f"pmc:PMC{match[1]}"
    if ids.get("doi"):
        return f"doi:{ids['doi']}"
    return f"pmid:{ids['pmid']}" if ids.get("pmid") else f"jats:{name}"


def article_version(meta: "etree._Element") -> int | None:
    """Return PMC's version number of an article (`PMC123.2`), if it is stated."""
    match = _VERSION.fullmatch(_identifiers(meta).get("pmcid-ver", ""))
    return int(match[1]) if match else None


def article_language(article: "etree._Element", meta: "etree._Element") -> str:
    """Return the language of an article: its own `xml:lang`, or its abstract's; `en` is the DTD's default."""
    abstract = meta.find("abstract")
    stated = article.get(LANGUAGE) or (None if abstract is None else abstract.get(LANGUAGE))
    return stated.lower() if stated else "en"


def is_retracted(article: "etree._Element", meta: "etree._Element", title: str) -> bool:
    """Return True for a retracted article and for the notice of a retraction.

    Publishers mark a retracted article by its type, by a related article of the type `retraction-forward`
    (the notice), or by its title ("RETRACTED: …").
    """
    related = {other.get("related-article-type") for other in meta.iterfind("related-article")}
    return (
        article.get("article-type") in {"retraction", "retracted-article"}
        or "retraction-forward" in related
        or _RETRACTED_TITLE.match(title) is not None
    )


def publication_date(meta: "etree._Element") -> str | None:
    """Return the first date of publication in ISO form, as precise as it is known: `2019-05-31`, `2019-05`.

    Of dates in the same year the most precise is taken, because the date of a collection or an issue has
    often no day. Dates of submission, deposit in PMC and retraction do not count; a preprint's does.
    """
    dates = [
        date
        for element in meta.iterfind("pub-date")
        if not {element.get("pub-type"), element.get("date-type")} & _OTHER_DATES
        and (date := _iso_date(element))
    ]
    return min(dates, key=lambda date: (date[:4], -len(date), date), default=None)


def _iso_date(element: "etree._Element") -> str | None:
    stated = parse_iso_date(element.get("iso-8601-date", ""))
    return stated or iso_date(*(element.findtext(part) or "" for part in ("year", "month", "day")))


def article_meta(article: "etree._Element", meta: "etree._Element") -> dict[str, Any]:
    """Return the fields of `Document.meta` of an article, without its abstracts in other languages."""
    ids = _identifiers(meta)
    journal = article.find("front/journal-meta")
    kind = article.get("article-type")
    types = [_PUBLICATION_TYPES.get(kind or "", "Journal Article")]
    subjects = (subject for group in meta.iterfind("article-categories/subj-group") for subject in group)
    return {
        "pmid": ids.get("pmid"),
        "doi": ids.get("doi"),
        "journal": None if journal is None else _journal(journal),
        "licence": _licence(meta),
        "date": publication_date(meta),
        "article_type": kind,
        "publication_types": types,
        "subjects": list(dict.fromkeys(_texts(child for child in subjects if child.tag == "subject"))),
        "keywords": list(dict.fromkeys(_keywords(meta))),
    }


def _identifiers(meta: "etree._Element") -> dict[str, str]:
    """Return the first identifier of each type."""
    ids: dict[str, str] = {}
    for element in meta.iterfind("article-id"):
        ids.setdefault(element.get("pub-id-type", ""), _text(element))
    return ids


def _journal(journal: "etree._Element") -> str | None:
    title = journal.find(".//journal-title")
    return None if title is None else _text(title) or None


def _licence(meta: "etree._Element") -> str | None:
    """Return the article's statement of its licence: a URL if that says all, or else its text.

    Some articles have a link to CC BY and a text that permits non-commercial use only, and some a link to a
    publisher's terms and a text that names a Creative Commons licence.
    """
    permissions = meta.find("permissions")
    around = meta if permissions is None else permissions  # without `permissions` before NLM 2.0
    licences = around.findall("license")
    urls = [licence.get(_HREF) or _reference(licence) for licence in licences]
    urls = [*(url.strip() for url in urls if url.startswith("http")), _reference(around)]
    statements = [*licences, *around.iterfind("copyright-statement")]
    texts = [_text(statement) for statement in statements]
    for statement, text in zip(statements, texts, strict=True):
        targets = (link.get(_HREF, "") for link in statement.iter("ext-link", "uri"))
        urls += [target for target in targets if creative_commons_link(target)]
        urls += [link] if (link := creative_commons_link(text)) else []
    return combined_statement([*urls, *texts])


def _reference(element: "etree._Element") -> str:
    """Return the URL of a licence in the element `license_ref` of NISO; empty without one."""
    reference = element.find(_LICENCE_REFERENCE)
    return "" if reference is None else _text(reference)


def _keywords(meta: "etree._Element") -> Iterator[str]:
    for group in meta.iterfind("kwd-group"):
        if group.get("kwd-group-type") not in {"abbreviations", "ABR"}:
            yield from _texts(group.iter("kwd"))


def _texts(elements: "Iterator[etree._Element]") -> Iterator[str]:
    return filter(None, map(_text, elements))


def _text(element: "etree._Element") -> str:
    return " ".join("".join(map(str, element.itertext())).split())
