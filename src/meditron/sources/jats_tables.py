"""Conversion of tables in JATS (XHTML and OASIS) to lines of text: `| dose | 5 mg |`.

A cell that spans several columns or rows is written once, in its first position; the other positions are
empty, so that the columns stay aligned and no text is repeated. Rows without text are left out.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lxml import etree

__all__ = ["table_lines"]

_ROWS = frozenset({"tr", "row"})
_CELLS = frozenset({"td", "th", "entry"})
_GROUPS = frozenset({"thead", "tbody", "tfoot", "tgroup"})
_ONE = frozenset({None, "1"})  # values of colspan and rowspan
_MAX_COLUMNS = 100  # up to which spans are kept; bounds the size of hostile tables


def table_lines(table: "etree._Element", text_of: "Callable[[etree._Element], str]") -> list[str]:
    """Return the rows of a `table`, `array` or `tgroup` as lines of text.

    Args:
        table: The element.
        text_of: Function that returns the text of a cell as one line.
    """
    lines: list[str] = []
    _add_rows(table, text_of, _column_numbers(table), lines)
    return lines


def _add_rows(
    element: "etree._Element",
    text_of: "Callable[[etree._Element], str]",
    columns: dict[str, int],
    lines: list[str],
) -> None:
    covered: dict[int, int] = {}  # column → number of further rows that a cell above covers
    for child in element:
        if child.tag in _ROWS:
            cells = _row_cells(child, text_of, columns, covered)
            if any(cells):
                lines.append("|" + "".join(f" {cell} |" if cell else " |" for cell in cells))
        elif child.tag in _GROUPS:
            _add_rows(child, text_of, columns, lines)
        elif child.tag == "caption":
            lines.append(text_of(child))


def _row_cells(
    row: "etree._Element",
    text_of: "Callable[[etree._Element], str]",
    columns: dict[str, int],
    covered: dict[int, int],
) -> list[str]:
    cells: list[str] = []
    for cell in row:
        tag = cell.tag
        if tag not in _CELLS:
            continue
        if covered:
            _add_covered(cells, covered)
        cells.append(text_of(cell) if len(cell) else " ".join((cell.text or "").split()))
        columns_spanned, rows_spanned = cell.get("colspan"), cell.get("rowspan")
        if columns_spanned in _ONE and rows_spanned in _ONE and tag != "entry":
            continue  # nearly every cell
        first = len(cells) - 1
        width, height = _spans(cell, columns)
        width = max(1, min(width, _MAX_COLUMNS - first))
        if height > 1 and first < _MAX_COLUMNS:
            covered.update(dict.fromkeys(range(first, first + width), height - 1))
        cells += [""] * (width - 1)
    _add_covered(cells, covered)
    return cells


def _add_covered(cells: list[str], covered: dict[int, int]) -> None:
    """Add empty cells for the positions that cells of earlier rows cover."""
    while rows := covered.get(len(cells)):
        covered[len(cells)] = rows - 1
        cells.append("")


def _spans(cell: "etree._Element", columns: dict[str, int]) -> tuple[int, int]:
    """Return the numbers of columns and rows of a cell."""
    width = _number(cell.get("colspan"), 1)
    height = _number(cell.get("rowspan"), 1)
    if cell.tag == "entry":
        first, last = columns.get(cell.get("namest", "")), columns.get(cell.get("nameend", ""))
        width = last - first + 1 if first is not None and last is not None else 1
        height = _number(cell.get("morerows"), 0) + 1
    return width, height


def _number(value: str | None, default: int) -> int:
    text = (value or "").strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) < 6 else default


def _column_numbers(table: "etree._Element") -> dict[str, int]:
    """Return the number of each named column of an OASIS table."""
    names = (spec.get("colname") for spec in table.iter("colspec"))
    return {name: number for number, name in enumerate(names) if name}
