"""Figures of a report as files: NAME.svg to show and NAME.csv with the values."""

import csv
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from meditron.report.pages import Link, Page
from meditron.report.svg import standalone_svg
from meditron.store.files import atomic_write, make_folder

__all__ = ["FIGURES", "ReportFigure", "add_figure", "figure_name", "write_figures"]

FIGURES = "figures"
"""The folder of the figures, beside the report."""


@dataclass(frozen=True, slots=True)
class ReportFigure:
    """A chart with its values."""

    name: str
    """Name of its files, without a suffix."""
    svg: str
    """The chart, as `charts` draws it."""
    caption: str
    headers: tuple[str, ...]
    """Columns of the CSV file."""
    rows: Sequence[Sequence[object]]


def figure_name(*parts: str) -> str:
    """Join parts to a file name: `finetune.sections`, `loss` → `finetune.sections-loss`."""
    return "-".join(re.sub(r"[^\w.]+", "-", part).strip("-.") for part in parts)


def add_figure(page: Page, figure: ReportFigure) -> None:
    """Put a figure on a page, with links to its files."""
    files = [Link(kind.upper(), f"{FIGURES}/{figure.name}.{kind}") for kind in ("svg", "csv")]
    page.figure(figure.svg, figure.caption, files)


def write_figures(folder: Path, figures: Iterable[ReportFigure]) -> None:
    """Write each figure's SVG and CSV into `figures/` of a run's folder, and remove those of earlier reports.

    Raises StorageError if a file cannot be written.
    """
    place = make_folder(folder / FIGURES)
    names = set()
    for figure in figures:
        names.add(figure.name)
        table = io.StringIO()
        rows = (map(_csv_cell, row) for row in (figure.headers, *figure.rows))
        # The line end is fixed, so that equal values give equal bytes on every system.
        csv.writer(table, lineterminator="\n").writerows(rows)
        for suffix, content in (("csv", table.getvalue()), ("svg", standalone_svg(figure.svg))):
            with atomic_write(place / f"{figure.name}.{suffix}", "w") as file:
                file.write(content)
    for svg in place.glob("*.svg"):
        # Only an SVG with a CSV of the same name is removed, so that a file that a user added stays.
        if svg.stem not in names and svg.with_suffix(".csv").is_file():
            svg.unlink()
            svg.with_suffix(".csv").unlink()


def _csv_cell(value: object) -> object:
    """Return a cell that no spreadsheet takes for a formula: tasks are named after users' files."""
    return f"'{value}" if isinstance(value, str) and value.startswith(("=", "+", "-", "@")) else value
