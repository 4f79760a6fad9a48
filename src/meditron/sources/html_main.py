"""Selection of a page's main content: what remains without navigation, banners, footers and forms.

The main-content mode of resiliparse 2.0.1 is not used: it drops bulleted lists without links, which contain
recommendations and dosages in guidelines, and needs quadratic time for deeply nested elements.
"""

import re
from collections.abc import Iterator

from meditron.sources.html_tree import Element, Page

__all__ = ["main_content"]

_MAIN_TAGS = frozenset({"main", "article"})
_MAIN_NAMES = frozenset({
    "content", "main", "maincontent", "main-content", "page-content", "article-body", "articlebody",
    "entry-content", "post-content", "mw-content-text", "bodycontent",
})  # fmt: skip
_ALWAYS_FURNITURE = frozenset({"nav", "menu"})
_OUTSIDE_FURNITURE = frozenset({"header", "footer", "aside"})  # in an article they belong to it
_ROLES = frozenset({
    "navigation", "banner", "contentinfo", "search", "complementary", "menu", "menubar", "toolbar",
    "dialog", "alertdialog", "tablist",
})  # fmt: skip
_NAME = re.compile(
    r"(?:(?:site|page|global|main|top|bottom|left|right|mobile|primary|secondary)[-_]?)?"
    r"(?:nav|navbar|navigation|navigator|menu|breadcrumbs?|cookies?|consent|gdpr|sidebar|share|sharing|social|"
    r"skip(?:-?(?:link|nav|to)\w*)?|pagination|pager|footer|masthead|banner|newsletter|subscribe|"
    r"advert\w*|ads?|promo|comments?|login|signin|search|toolbar|modal|popup|overlay|vector-toc|mw-editsection|"
    r"noprint|printfooter|catlinks|mw-jump-link)"
    r"(?:[-_](?:nav|bar|menu|links?|list|container|wrapper|box|content|form|buttons?|icons?|block|widget|area))*",
    re.IGNORECASE,
)
_HIDDEN = re.compile(r"(?:display\s*:\s*none|visibility\s*:\s*hidden)", re.IGNORECASE)
# An element with a class such as `menu` that holds more than this share of the text holds the content too:
# names such as `has-sidebar` and `nav-open` occur on the whole page.
_LARGEST_NAMED = 0.4
_SMALLEST_MAIN = 0.5
_MIN_LINKS = 3
_LINK_LIST = 0.8


def main_content(page: Page) -> tuple[list[tuple[int, int]], set[int]]:
    """Select the main content of a page.

    Elements that the source's rules keep are the main content, if there are any. Otherwise it is the element
    `main`, the article or an element named `content` that has at least half of the text, or else the body.

    Returns:
        The ranges of positions of the main content, in order, and the positions of the elements in them that
        are left out.
    """
    if kept := _outermost(page, "keep"):
        dropped = {position for position, element in _elements(page) if element.rule == "drop"}
        return kept, dropped
    skipped = _furniture(page)
    remaining = _text_sums(page, skipped)
    total = max(1, remaining[-1])
    for candidate in (_is_main, _is_article, _is_named_content):
        for position, element in _elements(page):
            length = remaining[element.end] - remaining[position]
            if candidate(element) and position not in skipped and length >= _SMALLEST_MAIN * total:
                return [(position, element.end)], skipped
    return [(0, len(page.nodes))], skipped


def _elements(page: Page) -> Iterator[tuple[int, Element]]:
    return ((i, node) for i, node in enumerate(page.nodes) if isinstance(node, Element))


def _outermost(page: Page, rule: str) -> list[tuple[int, int]]:
    ranges: list[tuple[int, int]] = []
    for position, element in _elements(page):
        if element.rule == rule and (not ranges or position >= ranges[-1][1]):
            ranges.append((position, element.end))
    return ranges


def _is_main(element: Element) -> bool:
    return element.tag == "main" or element.attributes.get("role") == "main"


def _is_article(element: Element) -> bool:
    return element.tag == "article"


def _is_named_content(element: Element) -> bool:
    return any(name.lower() in _MAIN_NAMES for name in _names(element))


def _names(element: Element) -> list[str]:
    return f"{element.attributes.get('class', '')} {element.attributes.get('id', '')}".split()


def _furniture(page: Page) -> set[int]:
    """Return the positions of the elements that are not content."""
    total = next((element.length for _, element in _elements(page)), 0)
    has_main = any(_is_main(element) or element.tag == "article" for _, element in _elements(page))
    first_heading = next((i for i, element in _elements(page) if element.tag in {"h1", "h2"}), 0)
    skipped: set[int] = set()
    position = inside_main_until = 0
    while position < len(page.nodes):
        element = page.nodes[position]
        if isinstance(element, str):
            position += 1
            continue
        if element.tag in _MAIN_TAGS or _is_main(element):
            inside_main_until = max(inside_main_until, element.end)
        inside = position < inside_main_until
        outside = not inside if has_main else position < first_heading
        if _is_furniture(element, total, inside=inside) or _is_link_list(element, outside=outside):
            skipped.add(position)
            position = element.end
        else:
            position += 1
    return skipped


def _is_furniture(element: Element, total: int, *, inside: bool) -> bool:
    attributes = element.attributes
    if element.rule == "drop":
        return True
    if element.tag in {"html", "body", *_MAIN_TAGS}:
        return False
    hidden = attributes.get("hidden", "until-found").lower() != "until-found"
    if hidden or _HIDDEN.search(attributes.get("style", "")):
        return True
    if element.tag in _ALWAYS_FURNITURE or (element.tag in _OUTSIDE_FURNITURE and not inside):
        return element.tag != "header" or element.length <= _LARGEST_NAMED * total
    named = attributes.get("role") in _ROLES or any(map(_NAME.fullmatch, _names(element)))
    return named and element.length <= _LARGEST_NAMED * total


def _is_link_list(element: Element, *, outside: bool) -> bool:
    """Return True for a list of links: navigation outside of the content, or a table of contents."""
    if element.tag not in {"ul", "ol"} or element.links < _MIN_LINKS or element.link_share < _LINK_LIST:
        return False
    return outside or element.page_links == 0


def _text_sums(page: Page, skipped: set[int]) -> list[int]:
    """Return for each position the number of characters before it that are not skipped."""
    sums = [0]
    skipped_until = 0
    for position, node in enumerate(page.nodes):
        if position in skipped and not isinstance(node, str):
            skipped_until = max(skipped_until, node.end)
        counts = isinstance(node, str) and position >= skipped_until
        sums.append(sums[-1] + (len("".join(node.split())) if counts and isinstance(node, str) else 0))
    return sums
