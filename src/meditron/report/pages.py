"""Report pages: one HTML file each, with no script and no reference to anything outside it."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meditron.core.disclaimer import ADVISORY
from meditron.core.errors import StorageError
from meditron.core.units import is_figure
from meditron.version import __version__

if TYPE_CHECKING:
    from jinja2 import Template

__all__ = ["Link", "Page"]

_COLOURS = 6  # of `--series-…` in pages.css


@dataclass(frozen=True, slots=True)
class Link:
    """A table's cell that leads to another file of the run: `href` is relative to the page."""

    text: str
    href: str

    def __post_init__(self) -> None:
        if re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*:|[/\\]", self.href):
            raise ValueError(f"{self.href} is not relative")


class Page:
    """A report, put down block by block. All text is escaped; only `figure` takes markup, from `charts`."""

    def __init__(self, title: str, subtitle: str = "") -> None:
        self.title, self.subtitle = title, subtitle
        self._blocks: list[dict[str, Any]] = []
        self._speakers: dict[str, int] = {}

    def section(self, heading: str) -> None:
        """Begin a section."""
        number = 1 + sum(block["kind"] == "section" for block in self._blocks)
        self._blocks.append({"kind": "section", "text": heading, "id": f"s{number}"})

    def text(self, text: str) -> None:
        """Paragraphs, apart by an empty line."""
        self._blocks.append({"kind": "text", "paragraphs": [p for p in text.split("\n\n") if p.strip()]})

    def key_values(self, facts: Mapping[str, object]) -> None:
        """Names and their values, one a line."""
        self._blocks.append({"kind": "facts", "facts": {name: str(value) for name, value in facts.items()}})

    def table(
        self, headers: Sequence[str], rows: Sequence[Sequence[object]], caption: str | None = None
    ) -> None:
        """A table of texts, numbers and `Link`s; columns that hold only figures stand flush right."""
        cells = [[_cell(value) for value in row] for row in rows]
        if any(len(row) != len(headers) for row in cells):
            raise ValueError(f"every row needs {len(headers)} cells")
        figures = [
            bool(cells) and all(row[column]["figure"] for row in cells) for column in range(len(headers))
        ]
        block = {"kind": "table", "headers": headers, "rows": cells, "figures": figures, "caption": caption}
        self._blocks.append(block)

    def figure(self, svg: str, caption: str) -> None:
        """A chart of `charts`, with what it shows."""
        self._blocks.append({"kind": "figure", "svg": svg, "caption": caption})

    def code(self, text: str, language: str = "") -> None:
        """Something to type or to copy, in the language named: its lines and spaces are kept."""
        self._blocks.append({"kind": "code", "text": text, "language": language})

    def details(self, summary: str, text: str) -> None:
        """A text that is folded away until asked for; its lines and spaces are kept."""
        self._blocks.append({"kind": "details", "summary": summary, "text": text})

    def passage(self, pieces: Sequence[tuple[str, str, bool]]) -> None:
        """A text in pieces of (text, whose it is, whether it is stressed); lines and spaces are kept.

        Each has its speaker's colour, the same on all of the page; what is stressed is bold and underlined.
        """
        spans = [
            {"text": text, "who": who, "stressed": stressed, "colour": self._colour(who)}
            for text, who, stressed in pieces
        ]
        self._blocks.append({"kind": "passage", "spans": spans})

    def _colour(self, who: str) -> int:
        return 1 + self._speakers.setdefault(who, len(self._speakers)) % _COLOURS

    def render(self) -> str:
        """The page."""
        style = Path(__file__).with_name("pages.css").read_text(encoding="utf-8")
        return _template().render(
            page=self, blocks=self._blocks, style=style, advisory=ADVISORY, version=__version__
        )

    def write(self, path: Path) -> None:
        """Write the page under a temporary name and put it in its place whole.

        StorageError where the disk will not take it.
        """
        page = self.render()
        draft = path.with_name(f".{path.name}.part")
        try:
            draft.unlink(missing_ok=True)  # of a killed run; or a link, which is never written through
            with draft.open("x", encoding="utf-8") as file:
                file.write(page)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(path)
        except OSError as error:
            draft.unlink(missing_ok=True)
            raise StorageError(f"{path}: {error.strerror or error}") from error


def _cell(value: object) -> dict[str, Any]:
    """A cell's text, where it leads to, whether it is a figure, and the interval behind that figure."""
    text, href = (value.text, value.href) if isinstance(value, Link) else (str(value), "")
    figure, bracket, ends = text.partition(" [") if is_figure(text) else (text, "", "")
    return {"text": figure, "ends": f"{bracket}{ends}".strip(), "href": href, "figure": is_figure(text)}


@cache
def _template() -> "Template":
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))
