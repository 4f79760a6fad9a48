"""HTML as a flat list of texts and elements, parsed by the HTML5 parser of resiliparse (Lexbor).

All later steps are passes over this list: none is recursive, so that a page of deeply nested elements neither
overflows a stack nor takes quadratic time.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from meditron.core.errors import MissingExtra, SourceError
from meditron.sources.mathml import math_text

if TYPE_CHECKING:
    from resiliparse.parse.html import HTMLTree

__all__ = ["Element", "Page", "TooManyElements", "parse_page"]

_MAX_NODES = 1_000_000
# Elements whose content is no text of the page. Forms remain: many sites put the whole page into one.
_WITHOUT_TEXT = frozenset({
    "script", "style", "noscript", "template", "svg", "iframe", "object", "embed", "canvas", "video",
    "audio", "map", "head", "title", "button", "select", "input", "textarea", "datalist", "dialog",
})  # fmt: skip
_CONTROL = re.compile("[\x00-\x08\x0b\x0e-\x1f\x7f\u00ad\u200b\ufeff]")
_HEADINGS = frozenset({"h1", "h2", "h3", "h4", "h5", "h6"})
_RULE = "data-source-rule"


class TooManyElements(ValueError):
    """The page has more elements and texts than are read, which bounds the memory."""


@dataclass(slots=True, eq=False)
class Element:
    """An element of a page: its position in the list, and counts of the characters before and in it."""

    tag: str
    attributes: dict[str, str]
    end: int = 0
    """Position in the list after the element's content."""
    text_before: int = 0
    """Number of characters, without white space, before the element."""
    text_after: int = 0
    """Number of characters before the element's end."""
    linked_before: int = 0
    """Number of characters of links before the element."""
    linked_after: int = 0
    links: int = 0
    """Number of links in the element."""
    page_links: int = 0
    """Number of links in the element that lead to other pages."""
    is_layout: bool = False
    """True for a table that contains another table or a heading: it arranges the page."""

    @property
    def length(self) -> int:
        """Number of characters in the element, without white space."""
        return self.text_after - self.text_before

    @property
    def link_share(self) -> float:
        """Share of the element's characters that are in links."""
        return (self.linked_after - self.linked_before) / max(1, self.length)

    @property
    def rule(self) -> str | None:
        """The rule of the source that selects this element: `keep` or `drop`."""
        return self.attributes.get(_RULE)


@dataclass(slots=True)
class Page:
    """A parsed page."""

    nodes: list[Element | str]
    """The elements of the body, each before its content, and the texts."""
    head: list[Element] = field(default_factory=list)
    """The elements of the head: `title`, `meta`, `link`. The text of the title is its attribute `text`."""
    language: str = ""
    """The `lang` attribute of the page."""


def parse_page(html: str, keep: tuple[str, ...] = (), drop: tuple[str, ...] = ()) -> Page:
    """Parse a page or a fragment of a page.

    Args:
        html: The page.
        keep: CSS selectors; an element that one of them matches has the rule `keep`.
        drop: CSS selectors; an element that one of them matches has the rule `drop`.

    Raises:
        TooManyElements: The page has more than a million elements and texts.
        SourceError: A selector is not valid.
    """
    try:
        from resiliparse.parse.html import HTMLTree
    except ImportError as error:
        raise MissingExtra("resiliparse", "corpus") from error
    tree = HTMLTree.parse(html)
    _mark_selected(tree, keep, "keep")
    _mark_selected(tree, drop, "drop")
    document = tree.document
    root = None if document is None else document.query_selector("html")
    language = "" if root is None else root.getattr("lang") or root.getattr("xml:lang") or ""
    head = [] if tree.head is None else list(_head_elements(tree.head))
    nodes = [] if tree.body is None else _Flattener().flatten(tree.body)
    return Page(nodes, head, language)


def _mark_selected(tree: "HTMLTree", selectors: tuple[str, ...], rule: str) -> None:
    for selector in selectors:
        try:
            found = [] if tree.document is None else tree.document.query_selector_all(selector)
        except ValueError as error:
            raise SourceError(
                f"no CSS selector: '{selector}'", hint="examples: main, #content, .box"
            ) from error
        for element in found:
            element.setattr(_RULE, rule)


def _head_elements(head: Any) -> Iterator[Element]:  # noqa: ANN401
    for node in head.query_selector_all("title, meta, link, script[type='application/ld+json']"):
        attributes = _attributes(node)
        if node.tag in {"title", "script"}:
            attributes["text"] = " ".join(node.text.split())
        yield Element(node.tag, attributes)


def _attributes(node: Any) -> dict[str, str]:  # noqa: ANN401
    return {name: node.getattr(name) or "" for name in node.attrs}


class _Flattener:
    def __init__(self) -> None:
        self._nodes: list[Element | str] = []
        self._open: list[Element] = []
        self._tables: list[Element] = []
        self._text = self._linked = self._links = 0

    def flatten(self, body: Any) -> list[Element | str]:  # noqa: ANN401
        """Return the elements and texts of a tree in document order."""
        node, inside = body, self._enter(body)
        while True:
            following = node.first_child if inside else None
            while following is None:
                if inside:
                    self._leave()
                if not self._open:
                    return self._nodes
                following = node.next_sibling
                if following is None:
                    node, inside = node.parent, True
            node, inside = following, self._enter(following)

    def _enter(self, node: Any) -> bool:  # noqa: ANN401
        """Add a node; return True if its children follow."""
        name = node.tag
        if name == "#text":
            self._add_text(_CONTROL.sub("", node.value))
        elif name == "math":
            self._add_text(_render_math(node))
        elif not name.startswith("#") and name not in _WITHOUT_TEXT:
            self._open_element(name, _attributes(node))
            return True
        return False

    def _add_text(self, text: str) -> None:
        self._nodes.append(text)
        self._check_count()
        length = len(text) - sum(map(text.count, " \n\t\r"))
        self._text += length
        if self._links:
            self._linked += length

    def _open_element(self, tag: str, attributes: dict[str, str]) -> None:
        element = Element(tag, attributes, text_before=self._text, linked_before=self._linked)
        self._nodes.append(element)
        self._check_count()
        self._open.append(element)
        if self._tables and (tag == "table" or tag in _HEADINGS):
            self._tables[-1].is_layout = True
        if tag == "table":
            element.is_layout = attributes.get("role") in {"presentation", "none"}
            self._tables.append(element)
        if tag == "a" and "href" in attributes:
            self._links += 1
            element.links = 1
            element.page_links = not attributes["href"].startswith("#")

    def _leave(self) -> None:
        element = self._open.pop()
        element.end = len(self._nodes)
        element.text_after, element.linked_after = self._text, self._linked
        if element.tag == "a" and "href" in element.attributes:
            self._links -= 1
        if self._tables and self._tables[-1] is element:
            self._tables.pop()
        if self._open:
            self._open[-1].links += element.links
            self._open[-1].page_links += element.page_links

    def _check_count(self) -> None:
        if len(self._nodes) > _MAX_NODES:
            raise TooManyElements(f"more than {_MAX_NODES:,} elements")


def _render_math(node: Any) -> str:  # noqa: ANN401
    from lxml import etree, html

    try:
        return math_text(html.fragment_fromstring(node.html)) or str(node.text)
    except (etree.LxmlError, RecursionError):
        return str(node.text)
