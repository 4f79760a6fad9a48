"""Tables for a terminal, a log or a pipe.

No number and no name is cut or broken. Sentences wrap between words. If a table is still too wide for the
terminal, each row is printed as a block of its own: the first cell, then one `header  value` line per column.
A pipe or a log gets the table in one piece, however wide.
"""

import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from meditron.core.console import info, sanitize_terminal
from meditron.core.units import is_numeric_cell

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

__all__ = ["layout_table", "print_table"]

_UNLIMITED = 10_000  # columns of a stream that is not a terminal
_NARROWEST_LABEL = 12  # columns of a header beside its value


def print_table(
    headers: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    title: str | None = None,
    answer: bool = False,
) -> None:
    """Print a table with columns of numbers aligned right.

    Args:
        headers: One for each column.
        rows: Cells of any type; control characters are replaced.
        title: Printed above the table.
        answer: True for the output that a command was run for: it goes to stdout, even with `--quiet`.
            Otherwise the table goes to stderr, beside the progress.
    """
    from rich.console import Console

    cells = [[sanitize_terminal(str(value)) for value in row] for row in rows]
    caption = None if title is None else sanitize_terminal(title)
    stream = sys.stdout if answer else sys.stderr
    # A closed stream is None.
    width = Console(file=stream).width if stream is not None and stream.isatty() else _UNLIMITED
    if answer and width < _UNLIMITED:
        terminal = Console(highlight=False, markup=False, emoji=False)
        terminal.print(layout_table(headers, cells, width, caption))
        return
    text = _render_text(headers, cells, width, caption)
    if answer:
        print(f"{text}\n", flush=True)  # noqa: T201
    else:
        info(text)


def layout_table(
    headers: Sequence[str], rows: Sequence[Sequence[str]], width: int, title: str | None = None
) -> "RenderableType":
    """Lay out a table for lines of `width` columns; `rows` hold no control characters."""
    from rich.console import Group
    from rich.text import Text

    columns = [_Column(header, [row[place] for row in rows]) for place, header in enumerate(headers)]
    caption = [Text(title, style="italic")] if title else []
    if sum(column.least for column in columns) + _frame_width(len(columns)) <= width:
        return Group(*caption, _rich_table(columns, width))
    return Group(*caption, *_stacked_rows(headers, rows, width))


def _render_text(headers: Sequence[str], rows: Sequence[Sequence[str]], width: int, title: str | None) -> str:
    plain = _plain_console(width)
    with plain.capture() as captured:
        plain.print(layout_table(headers, rows, width, title))
    return "\n".join(line.rstrip() for line in captured.get().splitlines()).strip("\n")


def _plain_console(width: int) -> "Console":
    from rich.console import Console

    return Console(width=width, markup=False, highlight=False, emoji=False, color_system=None)


class _Column:
    """A column, its natural width, and the width below which a number or a name would be broken."""

    def __init__(self, header: str, cells: Sequence[str]) -> None:
        from rich.cells import cell_len

        self.header, self.cells = header, cells
        self.numeric = bool(cells) and all(is_numeric_cell(cell) for cell in cells)
        self.natural = max(map(cell_len, (header, *cells)))
        whole = [cell_len(cell) for cell in cells if is_numeric_cell(cell)]
        words = [
            cell_len(word) for cell in (header, *cells) if not is_numeric_cell(cell) for word in cell.split()
        ]
        self.least = max([*whole, *words, 1])


def _frame_width(columns: int) -> int:
    """Return the width of the paddings, dividers and edges of rich's SIMPLE_HEAD box, in characters."""
    return 3 * columns + 1


def _rich_table(columns: Sequence[_Column], width: int) -> "RenderableType":
    from rich import box
    from rich.table import Table
    from rich.text import Text

    widths = [column.natural for column in columns]
    while sum(widths) + _frame_width(len(widths)) > width:
        # Headers of number columns wrap first, then the widest text column, so that a sentence wraps before a
        # name.
        places = [place for place, column in enumerate(columns) if widths[place] > column.least]
        widths[max(places, key=lambda place: (columns[place].numeric, widths[place]))] -= 1
    wrapped = any(
        len(cell) > size for column, size in zip(columns, widths, strict=True) for cell in column.cells
    )
    # Rows are separated by an empty line if a row takes several lines.
    table = Table(box=box.SIMPLE_HEAD, leading=int(wrapped))
    for column, size in zip(columns, widths, strict=True):
        table.add_column(
            Text(column.header), justify="right" if column.numeric else "left", width=size, overflow="fold"
        )
    for cells in zip(*(column.cells for column in columns), strict=True):
        table.add_row(*map(Text, cells))
    return table


def _stacked_rows(
    headers: Sequence[str], rows: Sequence[Sequence[str]], width: int
) -> "Iterator[RenderableType]":
    """Yield each row as a block: its first cell, then a line for each further cell that is not empty."""
    from rich.cells import cell_len
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    indent, gap = 2, 2
    values = max((cell_len(cell) for row in rows for cell in row[1:] if is_numeric_cell(cell)), default=8)
    longest = max(map(cell_len, headers[1:]), default=0)
    label = min(longest, width - indent - gap - max(8, values))
    for row in rows:
        yield Text(row[0], style="bold", overflow="fold")
        lines = [(header, cell) for header, cell in zip(headers[1:], row[1:], strict=True) if cell]
        if label < min(longest, _NARROWEST_LABEL):
            # A number beside its header would be broken over two lines, so the number is printed below the
            # header.
            for header, cell in lines:
                yield Padding(Text(header, style="dim", overflow="fold"), (0, 0, 0, indent))
                yield Padding(Text(cell, overflow="fold"), (0, 0, 0, 2 * indent))
        else:
            block = Table.grid(padding=(0, gap, 0, 0))
            block.add_column(width=label, overflow="fold")
            block.add_column(width=width - indent - label - gap, overflow="fold")
            for header, cell in lines:
                block.add_row(Text(header, style="dim"), Text(cell))
            yield Padding(block, (0, 0, 0, indent))
        yield Text("")
