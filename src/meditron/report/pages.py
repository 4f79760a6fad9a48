"""Report pages: one HTML file each, with no script and no reference to anything outside the run."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from meditron.core.disclaimer import DISCLAIMER
from meditron.core.units import is_numeric_cell
from meditron.store.files import atomic_write
from meditron.version import __version__

if TYPE_CHECKING:
    from jinja2 import Template

__all__ = ["Filter", "Link", "Page", "QuestionItem", "QuestionOption"]

_COLOURS = 6  # variables `--series-…` in static/variables.css


@dataclass(frozen=True, slots=True)
class Link:
    """A link to another file of the run; `href` is relative to the page."""

    text: str
    href: str

    def __post_init__(self) -> None:
        # Any other link would leave the run's folder, or break when the folder is moved.
        if re.match(r"[\x00-\x20]*([a-zA-Z][a-zA-Z0-9+.-]*:|[/\\])", self.href):
            raise ValueError(f"{self.href} is not relative")


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """A group of radio buttons, one of which is chosen: everything, or the items of one class."""

    name: str
    options: Mapping[str, str]
    """Text of a button → class of the items that it shows. Classes are names of the program's own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionOption:
    """One option of a question."""

    letter: str
    text: str
    gold: bool
    chosen_by: str
    """Names of the models that chose it; empty if none did."""


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionItem:
    """One question in a list that can be filtered."""

    heading: str
    context: str
    text: str
    options: Sequence[QuestionOption]
    unparsed: str
    """Names of the models whose answer names no option; empty if there are none."""
    outputs: Mapping[str, str]
    """Name → generated text."""
    classes: Sequence[str]
    """Classes by which filters find the item."""


class Page:
    """A report, built block by block.

    All text is escaped. Only `figure` takes markup, which must be from `charts`.
    """

    def __init__(self, title: str, subtitle: str = "") -> None:
        self.title, self.subtitle = title, subtitle
        self._blocks: list[dict[str, Any]] = []
        self._speakers: dict[str, int] = {}

    def section(self, heading: str) -> None:
        """Begin a section."""
        # Numbered ids are unique even if two sections have the same heading.
        number = 1 + sum(block["kind"] == "section" for block in self._blocks)
        self._blocks.append({"kind": "section", "text": heading, "id": f"s{number}"})

    def lead(self, answer: str, text: str) -> None:
        """Add a short answer in bold with the sentence that explains it."""
        self._blocks.append({"kind": "lead", "answer": answer, "text": text})

    def text(self, text: str) -> None:
        """Add paragraphs; an empty line separates them."""
        self._blocks.append({"kind": "text", "paragraphs": [p for p in text.split("\n\n") if p.strip()]})

    def key_values(self, values: Mapping[str, object]) -> None:
        """Add names with their values, one per line."""
        self._blocks.append(
            {"kind": "key_values", "values": {name: str(value) for name, value in values.items()}}
        )

    def table(
        self, headers: Sequence[str], rows: Sequence[Sequence[object]], caption: str | None = None
    ) -> None:
        """Add a table of texts, numbers and `Link`s; columns of numbers are aligned right."""
        cells = [[_table_cell(value) for value in row] for row in rows]
        # A missing cell would shift values into a wrong column without notice.
        if any(len(row) != len(headers) for row in cells):
            raise ValueError(f"every row needs {len(headers)} cells")
        figures = [
            bool(cells) and all(row[column]["figure"] for row in cells) for column in range(len(headers))
        ]
        block = {"kind": "table", "headers": headers, "rows": cells, "figures": figures, "caption": caption}
        self._blocks.append(block)

    def figure(self, svg: str, caption: str, files: Sequence[Link] = ()) -> None:
        """Add a chart with its caption and links to its files."""
        self._blocks.append({"kind": "figure", "svg": svg, "caption": caption, "files": files})

    def code(self, text: str, language: str = "") -> None:
        """Add a command or code to copy; lines and spaces are kept."""
        self._blocks.append({"kind": "code", "text": text, "language": language})

    def details(self, summary: str, text: str) -> None:
        """Add a folded text; lines and spaces are kept."""
        self._blocks.append({"kind": "details", "summary": summary, "text": text})

    def links(self, links: Sequence[Link]) -> None:
        """Add links to other files of the run."""
        self._blocks.append({"kind": "links", "links": links})

    def questions(self, filters: Sequence[Filter], items: Sequence[QuestionItem]) -> None:
        """Add a list of questions with filters; ValueError for a class that is no simple name."""
        names = {name for each in filters for name in each.options.values()}
        # They become style rules, where nothing is escaped.
        if bad := [name for name in names if not re.fullmatch(r"[a-z][a-z0-9-]*", name)]:
            raise ValueError(f"{bad[0]!r} is not the name of a class")
        self._blocks.append({"kind": "questions", "filters": filters, "items": items})

    @contextmanager
    def folded(self, summary: str) -> Iterator[None]:
        """Fold away the blocks that are added inside this context."""
        self._blocks.append({"kind": "fold", "summary": summary})
        yield
        self._blocks.append({"kind": "end_fold"})

    def passage(self, pieces: Sequence[tuple[str, str, bool]]) -> None:
        """Add a text in pieces of (text, speaker, stressed); lines and spaces are kept.

        Each speaker has the same colour on the whole page. Stressed pieces are bold and underlined.
        """
        spans = [
            {"text": text, "who": who, "stressed": stressed, "colour": self._speaker_colour(who)}
            for text, who, stressed in pieces
        ]
        self._blocks.append({"kind": "passage", "spans": spans})

    def _speaker_colour(self, who: str) -> int:
        return 1 + self._speakers.setdefault(who, len(self._speakers)) % _COLOURS

    def render(self) -> str:
        """Return the page as HTML."""
        folder = Path(__file__).parent
        files = (folder / "static/variables.css", folder / "pages.css")
        style = "".join(file.read_text(encoding="utf-8") for file in files)
        return _page_template().render(
            page=self, blocks=self._blocks, style=style, advisory=DISCLAIMER, version=__version__
        )

    def write(self, path: Path) -> None:
        """Write the page atomically; StorageError if it cannot be written."""
        with atomic_write(path) as file:
            # A run is named after its recipe's file, whose name need not be UTF-8.
            file.write(self.render().encode(errors="replace"))


def _table_cell(value: object) -> dict[str, Any]:
    """Return a cell's text and link, whether it is a number, and the interval that follows the number."""
    text, href = (value.text, value.href) if isinstance(value, Link) else (str(value), "")
    figure, bracket, ends = text.partition(" [") if is_numeric_cell(text) else (text, "", "")
    return {"text": figure, "ends": f"{bracket}{ends}".strip(), "href": href, "figure": is_numeric_cell(text)}


@cache
def _page_template() -> "Template":
    # jinja2 is imported at the first page, because commands that only print tables do not need it.
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(Path(__file__).with_name("page.html").read_text(encoding="utf-8"))
