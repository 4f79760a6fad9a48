"""Text blocks of an HTML page: headings, paragraphs, list items and tables.

The words of inline elements are joined as they are displayed: `<b>para</b>cetamol` is one word, two cells or
paragraphs are two. Superscripts and subscripts are converted by `scripts`. A table becomes lines such as
`| a | b |`; a table with one column, a nested table or a heading arranges the page and becomes paragraphs.
"""

import re
from collections.abc import Collection, Iterator
from typing import NamedTuple

from meditron.sources.html_tree import Element, Page
from meditron.sources.numerals import roman_numeral
from meditron.sources.scripts import END, SUB, SUP, render_sup_and_sub_marks

__all__ = ["Block", "iterate_blocks"]

_BREAK = "\x04"  # a line break within a block; `html_tree` removes control characters from the text
_BLOCKS = frozenset({
    "address", "article", "aside", "blockquote", "body", "caption", "center", "dd", "details", "dir",
    "div", "dl", "dt", "fieldset", "figcaption", "figure", "footer", "form", "h1", "h2", "h3", "h4",
    "h5", "h6", "header", "hgroup", "hr", "legend", "li", "main", "menu", "nav", "ol", "p", "pre",
    "section", "summary", "table", "tbody", "td", "tfoot", "th", "thead", "tr", "ul",
})  # fmt: skip
_LISTS = frozenset({"ul", "ol", "menu", "dir"})
_SCRIPTS = {"sup": SUP, "sub": SUB}
_INDENT = "  "
_LONGEST_SPAN = 100  # columns or rows; larger numbers of `colspan` and `rowspan` are errors
_DEEPEST_INDENT = 8
_DEEPEST_SCRIPT = 4


class Block(NamedTuple):
    """A block of text."""

    level: int
    """1 to 6 for a heading, 0 for other text."""
    text: str
    tight: bool
    """True if the block is a line of a list or table, without a blank line before it."""


class _List:
    """An open list: its kind and the number of the next item."""

    def __init__(self, element: Element) -> None:
        self._ordered = element.tag == "ol"
        self._style = element.attributes.get("type", "1")
        start = element.attributes.get("start", "1")
        self._next = int(start) if re.fullmatch(r"-?[0-9]{1,6}", start) else 1

    def next_marker(self, item: Element) -> str:
        """Return the marker of the next item: `- `, `1. `, `a. `."""
        if not self._ordered:
            return "- "
        value = item.attributes.get("value", "")
        if re.fullmatch(r"-?[0-9]{1,6}", value):
            self._next = int(value)
        number, self._next = self._next, self._next + 1
        return f"{_format_number(number, self._style)}. "


def iterate_blocks(page: Page, start: int, end: int, skipped: Collection[int] = ()) -> Iterator[Block]:
    """Yield the blocks of a part of a page in order.

    Args:
        page: The page.
        start: Position of the part's first node.
        end: Position after the part.
        skipped: Positions of the elements to leave out with their content.
    """
    yield from _BlockRenderer(page, skipped).render(start, end)


class _BlockRenderer:
    def __init__(self, page: Page, skipped: Collection[int], *, in_cell: bool = False) -> None:
        self._page = page
        self._skipped = skipped
        self._in_cell = in_cell
        self._open: list[Element] = []
        self._pieces: list[str] = []
        self._scripts: list[str] = []
        self._lists: list[_List] = []
        self._marker: str | None = None  # of a list item whose text has not begun
        self._level = 0
        self._preformatted = 0
        self._ended = False  # True after a list or table, which a blank line separates from the next one

    def render(self, position: int, end: int) -> Iterator[Block]:
        nodes = self._page.nodes
        while position < end:
            while self._open and self._open[-1].end <= position:
                yield from self._close(self._open.pop())
            node = nodes[position]
            if isinstance(node, str):
                self._pieces.append(self._break_lines(node))
                position += 1
            elif position in self._skipped:
                position = node.end
            elif node.tag == "table" and not node.is_layout and (rows := self._rows(position, node)):
                yield from self._flush()
                for row in rows:
                    yield Block(0, row, tight=self._is_tight())
                self._ended = True
                position = node.end
            else:
                yield from self._open_element(node)
                position += 1
        while self._open:
            yield from self._close(self._open.pop())
        yield from self._flush()

    def _break_lines(self, text: str) -> str:
        return text.replace("\n", _BREAK) if self._preformatted else text

    def _open_element(self, element: Element) -> Iterator[Block]:
        tag = element.tag
        self._open.append(element)
        if tag in _BLOCKS:
            yield from self._flush()
        if tag == "br":
            self._pieces.append(_BREAK)
        elif tag in _SCRIPTS:
            # Deeper ones are written on the line: the time to convert nested scripts is quadratic.
            self._scripts.append(_SCRIPTS[tag] if len(self._scripts) < _DEEPEST_SCRIPT else "")
            self._pieces.append(self._scripts[-1])
        elif tag in _LISTS:
            self._lists.append(_List(element))
        elif tag == "li":
            self._marker = self._lists[-1].next_marker(element) if self._lists else "- "
        elif tag == "pre":
            self._preformatted += 1
        elif level := _heading_level(element):
            yield from self._flush()
            # A heading within a list or cell does not begin a section.
            self._level = 0 if self._lists or self._in_cell else level

    def _close(self, element: Element) -> Iterator[Block]:
        tag = element.tag
        if tag in _BLOCKS or _heading_level(element):
            yield from self._flush()
            self._level = 0
        if tag in _SCRIPTS:
            self._pieces.append(END if self._scripts.pop() else "")
        elif tag in _LISTS:
            self._lists.pop()
            self._ended = not self._lists
        elif tag == "li":
            self._marker = None
        elif tag == "pre":
            self._preformatted -= 1

    def _flush(self) -> Iterator[Block]:
        """Yield the text since the last block boundary."""
        # A script that contains a block is closed before the block's boundary and opened again after it.
        text = render_sup_and_sub_marks("".join(self._pieces) + END * len(list(filter(None, self._scripts))))
        self._pieces = list(self._scripts)
        lines = [" ".join(line.split()) for line in text.split(_BREAK)]
        if not any(lines):
            return
        if self._level:
            yield Block(self._level, " ".join(filter(None, lines)), tight=False)
            return
        if not self._lists and self._marker is None:
            self._ended = False
            yield Block(0, "\n".join(filter(None, lines)), tight=False)
            return
        indent = _INDENT * min(_DEEPEST_INDENT, max(0, len(self._lists) - 1))
        first, rest = indent + (self._marker or _INDENT), "\n" + indent + _INDENT
        self._marker = ""
        yield Block(0, first + rest.join(filter(None, lines)), tight=self._is_tight())

    def _is_tight(self) -> bool:
        ended, self._ended = self._ended, False
        return not ended

    def _rows(self, position: int, table: Element) -> list[str]:
        """Return the lines of a table; none if it has only one column."""
        rows: list[list[str]] = []
        caption = ""
        columns = 0
        spans: dict[int, int] = {}  # column → number of further rows that a cell above covers
        position += 1
        while position < table.end:
            node = self._page.nodes[position]
            if isinstance(node, str) or position in self._skipped:
                position = position + 1 if isinstance(node, str) else node.end
                continue
            if node.tag == "caption":
                caption, position = self._cell_text(position, node), node.end
            elif node.tag in {"td", "th"}:
                if not rows:
                    rows.append([])
                _add_cell(rows[-1], node, self._cell_text(position, node), spans)
                columns = max(columns, len(rows[-1]))
                position = node.end
            else:
                if node.tag == "tr":
                    rows.append([])
                position += 1
        if columns < 2:
            return []
        lines = [f"| {' | '.join(row)} |" for row in rows if any(row)]
        return [caption, *lines] if caption else lines

    def _cell_text(self, position: int, cell: Element) -> str:
        blocks = _BlockRenderer(self._page, self._skipped, in_cell=True).render(position + 1, cell.end)
        return " ".join(" ".join(block.text.split()) for block in blocks)


def _add_cell(row: list[str], cell: Element, text: str, spans: dict[int, int]) -> None:
    """Add a cell to a row, with empty cells for the columns that it or a cell above it covers."""
    while spans.get(len(row), 0) and len(row) < 2 * _LONGEST_SPAN:
        spans[len(row)] -= 1
        row.append("")
    rows, columns = _span(cell, "rowspan"), _span(cell, "colspan")
    for number in range(columns if len(row) < _LONGEST_SPAN else 1):
        if rows > 1:
            spans[len(row)] = rows - 1
        row.append("" if number else text)


def _span(cell: Element, name: str) -> int:
    value = cell.attributes.get(name, "1").strip()
    return min(int(value), _LONGEST_SPAN) if re.fullmatch("[0-9]{1,6}", value) and int(value) else 1


def _heading_level(element: Element) -> int:
    if len(element.tag) == 2 and element.tag[0] == "h" and element.tag[1] in "123456":
        return int(element.tag[1])
    if element.attributes.get("role") == "heading":
        level = element.attributes.get("aria-level", "2")
        return int(level) if level in {"1", "2", "3", "4", "5", "6"} else 2
    return 0


def _format_number(number: int, style: str) -> str:
    if style in {"a", "A"} and 1 <= number <= 26:
        return chr(ord(style) + number - 1)
    if style in {"i", "I"} and 1 <= number < 4_000:
        text = roman_numeral(number)
        return text if style == "i" else text.upper()
    return str(number)
