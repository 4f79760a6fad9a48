"""Tables on a terminal of a given width: no number is cut, and rows can always be told apart.

A table that is too wide has its texts wrapped. If that is not enough, its columns are printed in blocks, one
below the other, each led by the columns that name a row. If not even one column fits beside those, every row
is printed as a list of `header: value` lines.
"""

import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from meditron.core.units import is_figure

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["layout"]

_TEXT = 16  # characters that a text column keeps at least; longer words are folded, never cut
_HEADER = 10


def layout(
    headers: Sequence[str], rows: Sequence[Sequence[str]], width: int, title: str | None = None
) -> "Iterator[RenderableType]":
    """Lay out a table.

    Args:
        headers: one for each column.
        rows: cells without control characters.
        width: characters of a line.
        title: printed above the table.
    """
    from rich.text import Text

    columns = [_Column(header, [row[place] for row in rows]) for place, header in enumerate(headers)]
    blocks = _blocks(columns, rows, width)
    if title:
        yield Text(title, style="italic")
    if blocks is None:
        yield from _records(headers, rows, width)
        return
    for block in blocks:
        yield _table([columns[place] for place in block], width, leave_out_empty=len(blocks) > 1)


class _Column:
    """A column, its natural width, and the width below which a number would be cut."""

    def __init__(self, header: str, cells: Sequence[str]) -> None:
        from rich.cells import cell_len

        self.header, self.cells = header, cells
        self.numeric = bool(cells) and all(is_figure(cell) for cell in cells)
        self.natural = max(map(cell_len, (header, *cells)))
        words = max((cell_len(word) for word in header.split()), default=0)
        texts = [cell_len(cell) for cell in cells if not is_figure(cell)]
        numbers = [cell_len(cell) for cell in cells if is_figure(cell)]
        self.least = max([*numbers, min(max(texts, default=0), _TEXT), min(words, _HEADER), 1])


def _blocks(columns: Sequence[_Column], rows: Sequence[Sequence[str]], width: int) -> list[list[int]] | None:
    """Divide the columns into tables that fit; None if the naming columns leave no room for another."""
    every = list(range(len(columns)))
    if _least(columns) <= width:
        return [every]
    names = next((n for n in every if len({tuple(row[:n]) for row in rows}) == len(rows)), 1)
    names = max(1, names)
    blocks: list[list[int]] = []
    for place in every[names:]:
        if not blocks or _least([columns[p] for p in (*blocks[-1], place)]) > width:
            blocks.append(every[:names])
        blocks[-1] = [*blocks[-1], place]
    if not blocks or any(_least([columns[place] for place in block]) > width for block in blocks):
        return None
    return blocks


def _least(columns: Sequence[_Column]) -> int:
    return sum(column.least for column in columns) + _frame(len(columns))


def _frame(columns: int) -> int:
    """Characters of a table of rich's SIMPLE_HEAD that are not cells: paddings, dividers, edges."""
    return 3 * columns + 1


def _table(columns: Sequence[_Column], width: int, *, leave_out_empty: bool) -> "RenderableType":
    from rich import box
    from rich.table import Table
    from rich.text import Text

    widths = [column.natural for column in columns]
    while sum(widths) + _frame(len(widths)) > width:
        # Headers of numbers give way first, then the widest text: a sentence before a name.
        places = [place for place, column in enumerate(columns) if widths[place] > column.least]
        widths[max(places, key=lambda place: (columns[place].numeric, widths[place]))] -= 1
    folded = any(
        len(cell) > size for column, size in zip(columns, widths, strict=True) for cell in column.cells
    )
    drawn = Table(box=box.SIMPLE_HEAD, leading=int(folded))
    for column, size in zip(columns, widths, strict=True):
        drawn.add_column(
            Text(column.header), justify="right" if column.numeric else "left", width=size, overflow="fold"
        )
    for cells in zip(*(column.cells for column in columns), strict=True):
        if any(cells[1:]) or not leave_out_empty:
            drawn.add_row(*(Text(_folded(cell, size)) for cell, size in zip(cells, widths, strict=True)))
    return drawn


def _folded(text: str, width: int) -> str:
    """Break words that are longer than a line, behind a separator of paths and names if there is one."""
    words = []
    for word in text.split(" "):
        line, lines = "", []
        for piece in re.findall(r"[^/:._-]*[/:._-]?", word) if len(word) > width else [word]:
            if line and len(line) + len(piece) > width:
                lines.append(line)
                line = ""
            line += piece
        words.append("\n".join([*lines, line]))
    return " ".join(words)


def _records(headers: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> "Iterator[RenderableType]":
    from rich.table import Table
    from rich.text import Text

    label = min(max(map(len, headers), default=0), max(8, width // 3))
    for row in rows:
        drawn = Table.grid(padding=(0, 2, 0, 0))
        drawn.add_column(width=label, overflow="fold")
        drawn.add_column(width=max(8, width - label - 4), overflow="fold")
        for header, cell in zip(headers, row, strict=True):
            drawn.add_row(Text(_folded(header, label), style="bold"), Text(_folded(cell, width - label - 4)))
        yield drawn
        yield Text("")
