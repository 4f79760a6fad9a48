"""Metadata that an HTML page states about itself: title, language, date, licence and canonical address."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from meditron.sources.dates import parse_iso_date
from meditron.sources.html_tree import Element, Page
from meditron.sources.licences import combined_statement, creative_commons_link

__all__ = ["page_language", "page_metadata", "page_title"]

# In the order of precedence. Dublin Core's names are written with `DC.`, `dc:` or `dcterms.`.
_TITLES = ("citation_title", "dcterms.title", "dc.title", "og:title")
_DATES = (
    "citation_publication_date",
    "citation_date",
    "dcterms.issued",
    "dcterms.date",
    "dc.date.issued",
    "dc.date",
    "article:published_time",
    "datepublished",
    "date",
    "dcterms.modified",
    "article:modified_time",
    "last-modified",
)
_LICENCES = ("dcterms.license", "dcterms.rights", "dc.rights.license", "dc.rights", "copyright")
_LANGUAGES = ("citation_language", "dcterms.language", "dc.language", "content-language")
_JSON_DATE = re.compile(r'"date(?:Published|Issued)"\s*:\s*"([^"]{4,40})"')
_JSON_LICENCE = re.compile(r'"license"\s*:\s*"([^"]{4,300})"')
_LANGUAGE = re.compile(r"[A-Za-z]{2,3}(?=$|[-_])")
_LONGEST_STATEMENT = 500


def page_title(page: Page, headings: Sequence[str]) -> str:
    """Return the title of a page.

    Args:
        page: The page.
        headings: The headings of level 1 of its main content. If there is exactly one, it is the title.
    """
    if len(headings) == 1:
        return headings[0]
    stated = _meta_values(page)
    titles = [stated[name] for name in _TITLES if name in stated]
    titles += [element.attributes["text"] for element in page.head if element.tag == "title"]
    return titles[0] if titles else ""


def page_language(page: Page) -> str | None:
    """Return the language that the page states, as a code of two or three letters."""
    stated = _meta_values(page)
    for text in (page.language, *(stated.get(name, "") for name in _LANGUAGES)):
        if match := _LANGUAGE.match(text.strip()):
            return match[0].lower()
    return None


def page_metadata(page: Page) -> dict[str, Any]:
    """Return the metadata with the keys `date`, `licence` and `url`, those that the page states."""
    stated = _meta_values(page)
    metadata = {
        "date": next(filter(None, map(parse_iso_date, _dates(page, stated))), None),
        "licence": _licence(page, stated),
        "url": next(filter(None, map(_absolute, (_link(page, "canonical"), stated.get("og:url")))), None),
    }
    return {key: value for key, value in metadata.items() if value}


def _meta_values(page: Page) -> Mapping[str, str]:
    values: dict[str, str] = {}
    for element in page.head:
        attributes = element.attributes
        name = next(
            (
                attributes[key]
                for key in ("name", "property", "itemprop", "http-equiv")
                if attributes.get(key)
            ),
            "",
        )
        value = " ".join(attributes.get("content", "").split())
        if element.tag == "meta" and name and value:
            values.setdefault(name.lower().replace("dc:", "dc.").replace("dcterms:", "dcterms."), value)
    return values


def _link(page: Page, relation: str) -> str | None:
    for element in page.head:
        if element.tag == "link" and relation in element.attributes.get("rel", "").lower().split():
            return element.attributes.get("href") or None
    return None


def _absolute(address: str | None) -> str | None:
    """Return an address if it is complete: what a relative one names is not known from the page alone."""
    return address if address and re.match(r"https?://[^/]", address, re.IGNORECASE) else None


def _dates(page: Page, stated: Mapping[str, str]) -> list[str]:
    dates = [stated[name] for name in _DATES if name in stated]
    dates += [
        match[1] for element in page.head if (match := _JSON_DATE.search(element.attributes.get("text", "")))
    ]
    elements = (node for node in page.nodes if isinstance(node, Element) and node.tag == "time")
    return dates + [
        node.attributes.get("datetime", "") for node in elements if node.attributes.get("itemprop")
    ]


def _licence(page: Page, stated: Mapping[str, str]) -> str | None:
    """Return the page's statement of its licence: a licence link or rights metadata, or else a CC link."""
    statements = [_link(page, "license"), *(stated.get(name) for name in _LICENCES)]
    statements += [
        match[1]
        for element in page.head
        if (match := _JSON_LICENCE.search(element.attributes.get("text", "")))
    ]
    links = [node for node in page.nodes if isinstance(node, Element) and node.tag in {"a", "link"}]
    statements += [
        node.attributes.get("href")
        for node in links
        if "license" in node.attributes.get("rel", "").lower().split()
    ]
    # A page may link to the licence of a picture, so links without `rel` count only if there is nothing else.
    return combined_statement(
        statement[:_LONGEST_STATEMENT] for statement in statements if statement
    ) or next(filter(None, (creative_commons_link(node.attributes.get("href", "")) for node in links)), None)
