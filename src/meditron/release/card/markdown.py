"""Writers of model cards.

All writers have the methods of `report.pages.Page`, so that the same code writes Markdown and HTML.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Protocol

from meditron.core.console import sanitize_terminal
from meditron.core.redaction import redact

__all__ = ["CardWriter", "MarkdownWriter", "RedactingWriter", "without_secrets_and_paths"]

# Only active characters of Markdown (with GitHub's tables, strikes and formulas) are escaped, because people
# read the source too. Brackets alone are not escaped: they are plain text, because no text of a card can
# define a link reference.
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


# Patterns of a path that is absolute or in a home folder: as the whole text, and inside a text.
_WHOLE_PATH = re.compile(r"\s*(?:file:(?://)?)?(?:/|~\w*/)(?P<path>.+)", re.DOTALL)
_INNER_PATH = re.compile(r"(?<![\w/.:~-])(?:file:(?://)?)?(?:/|~\w*/)(?:[\w.@+=-]+/)+(?P<name>[\w.@+:=-]+)")


def without_secrets_and_paths(text: str) -> str:
    """Return a text without the credentials and queries of URLs, and with file names for absolute paths."""
    if (whole := _WHOLE_PATH.fullmatch(text)) and not re.search(r"[\s,;]/", text.strip()):
        text = whole["path"].rstrip("/").rpartition("/")[2]
    return _INNER_PATH.sub(lambda path: path["name"], redact(text))


class CardWriter(Protocol):
    """A writer of a card's blocks: Markdown, or a page for the browser."""

    def section(self, heading: str) -> None:
        """Begin a section."""

    def text(self, text: str) -> None:
        """Add paragraphs; an empty line separates them."""

    def key_values(self, values: Mapping[str, object]) -> None:
        """Add names with their values, one per line."""

    def table(
        self, headers: Sequence[str], rows: Sequence[Sequence[object]], caption: str | None = None
    ) -> None:
        """Add a table of texts."""

    def code(self, text: str, language: str = "") -> None:
        """Add a command or code to copy."""


class MarkdownWriter:
    """A writer of Markdown; all text is escaped, whatever its origin."""

    def __init__(self, title: str) -> None:
        self._blocks = [f"# {_escape(title)}"]

    def section(self, heading: str) -> None:
        """Begin a section."""
        self._blocks.append(f"## {_escape(heading)}")

    def text(self, text: str) -> None:
        """Add paragraphs; an empty line separates them."""
        self._blocks += [_escape(paragraph) for paragraph in text.split("\n\n") if paragraph.strip()]

    def key_values(self, values: Mapping[str, object]) -> None:
        """Add names with their values, as a list."""
        self._blocks.append(
            "\n".join(f"- {_escape(name)}: {_escape(value)}" for name, value in values.items())
        )

    def table(
        self, headers: Sequence[str], rows: Sequence[Sequence[object]], caption: str | None = None
    ) -> None:
        """Add a table with its caption above it."""
        if caption:
            self._blocks.append(f"**{_escape(caption)}**")
        lines = [_table_row(headers), _table_row(["---"] * len(headers), raw=True), *map(_table_row, rows)]
        self._blocks.append("\n".join(lines))

    def code(self, text: str, language: str = "") -> None:
        """Add a fenced block; the fence is longer than any in the text."""
        longest = max((len(ticks) for ticks in re.findall(r"`+", text)), default=0)
        fence = "`" * max(3, longest + 1)
        self._blocks.append(f"{fence}{language}\n{text}\n{fence}")

    def render(self) -> str:
        """Return the document."""
        return "\n\n".join(self._blocks) + "\n"


def _table_row(cells: Sequence[object], *, raw: bool = False) -> str:
    return f"| {' | '.join(str(cell) if raw else _escape(cell) for cell in cells)} |"


def _escape(value: object) -> str:
    """Return a text on one line, escaped."""
    line = " ".join(sanitize_terminal(str(value)).split())
    return _NUMBERED.sub(r"\1\\", _ACTIVE.sub(r"\\\g<0>", line))


class RedactingWriter:
    """A writer that removes credentials and absolute paths before it passes text on."""

    def __init__(self, writer: CardWriter) -> None:
        self._writer = writer

    def section(self, heading: str) -> None:
        """Write as `CardWriter` does."""
        self._writer.section(without_secrets_and_paths(heading))

    def text(self, text: str) -> None:
        """Write as `CardWriter` does."""
        self._writer.text("\n\n".join(map(without_secrets_and_paths, text.split("\n\n"))))

    def key_values(self, values: Mapping[str, object]) -> None:
        """Write as `CardWriter` does."""
        self._writer.key_values(
            {
                without_secrets_and_paths(name): without_secrets_and_paths(str(value))
                for name, value in values.items()
            }
        )

    def table(
        self, headers: Sequence[str], rows: Sequence[Sequence[object]], caption: str | None = None
    ) -> None:
        """Write as `CardWriter` does."""
        cells = [[without_secrets_and_paths(str(cell)) for cell in row] for row in rows]
        self._writer.table(
            [without_secrets_and_paths(header) for header in headers],
            cells,
            caption and without_secrets_and_paths(caption),
        )

    def code(self, text: str, language: str = "") -> None:
        """Write as `CardWriter` does.

        Paths are kept, because commands only have paths inside the run's folder.
        """
        self._writer.code(redact(text), language)
