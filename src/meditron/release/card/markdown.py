"""A model card as Markdown: the same blocks as `ground.pages.Page`, so that one text makes both."""

import re
from collections.abc import Mapping, Sequence
from typing import Protocol

from meditron.core.console import sanitize_terminal
from meditron.core.redaction import redact

__all__ = ["Markdown", "Published", "Sheet", "public"]

# What Markdown (with GitHub's tables, strikes and formulas) would take for itself, and nothing more: people
# read the source too. Brackets alone are text, as no text of a card can define what they would refer to.
_ACTIVE = re.compile(
    r"[\\`*|$]"
    r"|<(?=[A-Za-z/!?])"  # a tag
    r"|\](?=[(\[:])"  # a link, or what defines one
    r"|&(?=#?\w+;)"  # an entity
    r"|~(?=~)"
    r"|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])"  # an emphasis; inside a word an underscore is one
    r"|^(?:[#>]|[+-]+(?=\s|$)|---)"  # a heading, a quotation, a list, a line
)
_NUMBERED = re.compile(r"^(\d{1,9})(?=[.)](?:\s|$))")


# An absolute path, or one in a home folder: the whole text, or a part of it.
_ALONE = re.compile(r"\s*(?:file:(?://)?)?(?:/|~\w*/)(?P<path>.+)", re.DOTALL)
_WITHIN = re.compile(r"(?<![\w/.:~-])(?:file:(?://)?)?(?:/|~\w*/)(?:[\w.@+=-]+/)+(?P<name>[\w.@+:=-]+)")


def public(text: str) -> str:
    """Return a text without addresses' credentials and queries, and with names instead of absolute paths."""
    if (whole := _ALONE.fullmatch(text)) and not re.search(r"[\s,;]/", text.strip()):
        text = whole["path"].rstrip("/").rpartition("/")[2]
    return _WITHIN.sub(lambda path: path["name"], redact(text))


class Sheet(Protocol):
    """What a card's text is put down on: Markdown, or a page for the browser."""

    def section(self, heading: str) -> None:
        """Begin a section."""

    def text(self, text: str) -> None:
        """Paragraphs, apart by an empty line."""

    def key_values(self, facts: Mapping[str, object]) -> None:
        """Names and their values, one a line."""

    def table(
        self, headers: Sequence[str], rows: Sequence[Sequence[object]], caption: str | None = None
    ) -> None:
        """A table of texts."""

    def code(self, text: str, language: str = "") -> None:
        """Something to type or to copy."""


class Markdown:
    """A sheet that becomes a Markdown document; every text is escaped, whatever it came from."""

    def __init__(self, title: str) -> None:
        self._blocks = [f"# {_plain(title)}"]

    def section(self, heading: str) -> None:
        """Begin a section."""
        self._blocks.append(f"## {_plain(heading)}")

    def text(self, text: str) -> None:
        """Paragraphs, apart by an empty line."""
        self._blocks += [_plain(paragraph) for paragraph in text.split("\n\n") if paragraph.strip()]

    def key_values(self, facts: Mapping[str, object]) -> None:
        """Names and their values, as a list."""
        self._blocks.append("\n".join(f"- {_plain(name)}: {_plain(value)}" for name, value in facts.items()))

    def table(
        self, headers: Sequence[str], rows: Sequence[Sequence[object]], caption: str | None = None
    ) -> None:
        """A table, with its caption above it."""
        if caption:
            self._blocks.append(f"**{_plain(caption)}**")
        lines = [_row(headers), _row(["---"] * len(headers), raw=True), *map(_row, rows)]
        self._blocks.append("\n".join(lines))

    def code(self, text: str, language: str = "") -> None:
        """A fenced block; the fence is longer than any in the text."""
        longest = max((len(ticks) for ticks in re.findall(r"`+", text)), default=0)
        fence = "`" * max(3, longest + 1)
        self._blocks.append(f"{fence}{language}\n{text}\n{fence}")

    def render(self) -> str:
        """The document."""
        return "\n\n".join(self._blocks) + "\n"


def _row(cells: Sequence[object], *, raw: bool = False) -> str:
    return f"| {' | '.join(str(cell) if raw else _plain(cell) for cell in cells)} |"


def _plain(value: object) -> str:
    """A text in one line that no reader of Markdown takes for anything else."""
    line = " ".join(sanitize_terminal(str(value)).split())
    return _NUMBERED.sub(r"\1\\", _ACTIVE.sub(r"\\\g<0>", line))


class Published:
    """A sheet on which nothing is put down that only its writer's machine or account should know."""

    def __init__(self, sheet: Sheet) -> None:
        self._sheet = sheet

    def section(self, heading: str) -> None:
        """See `Sheet`."""
        self._sheet.section(public(heading))

    def text(self, text: str) -> None:
        """See `Sheet`."""
        self._sheet.text("\n\n".join(map(public, text.split("\n\n"))))

    def key_values(self, facts: Mapping[str, object]) -> None:
        """See `Sheet`."""
        self._sheet.key_values({public(name): public(str(value)) for name, value in facts.items()})

    def table(
        self, headers: Sequence[str], rows: Sequence[Sequence[object]], caption: str | None = None
    ) -> None:
        """See `Sheet`."""
        cells = [[public(str(cell)) for cell in row] for row in rows]
        self._sheet.table([public(header) for header in headers], cells, caption and public(caption))

    def code(self, text: str, language: str = "") -> None:
        """See `Sheet`; commands and prompts hold paths within the run's folder only."""
        self._sheet.code(redact(text), language)
