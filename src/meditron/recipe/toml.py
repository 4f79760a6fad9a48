"""A recipe's text: read, overridden by `--set`, and searched for the line that an error speaks of."""

import difflib
import re
import tomllib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from meditron.core.errors import RecipeError, UsageError

__all__ = ["Source", "nearest", "read"]

Place = tuple[str | int, ...]
"""Where a value stands: table names, keys, and indices into arrays of tables."""

_MAX_BYTES = 1 << 20
"""Largest recipe file: 1 MiB. A recipe is written by hand; the template has 6 KB."""
_MAX_DEPTH = 16
"""Deepest nesting of tables and lists in a recipe; the schema's own is 5."""
_INT64 = 1 << 63  # TOML's integers are 64-bit and signed; Python's reader takes any

_HEADER = re.compile(r"\s*(\[\[?)([^\[\]]+)\]\]?\s*(#.*)?$")
_KEY = re.compile(r"\s*([A-Za-z0-9_.\-\"' ]+?)\s*=")


def nearest(word: str, words: Iterable[str]) -> str:
    """`: did you mean 'learning_rate'?` for the word that is written most like this one, else nothing."""
    close = difflib.get_close_matches(word, sorted(words), n=1)
    return f": did you mean '{close[0]}'?" if close else ""


@dataclass(frozen=True)
class Source:
    """A recipe's file and what `--set` laid over it."""

    path: Path
    text: str
    overrides: dict[Place, str] = field(default_factory=dict)
    """Place → the `--set` that was laid over it."""

    def where(self, place: Place) -> str:
        """`recipes/x.toml:24`, or the `--set` that brought the value; the file alone without a line."""
        line, depth = _find(self.text, place)
        for overridden, text in self.overrides.items():
            common = _common(overridden, place)
            if common == len(overridden) or common == len(place) > depth:
                return f"--set {text if len(text) <= 80 else text[:80] + '…'}"
        return f"{self.path}:{line}" if line else f"{self.path}"


def read(path: Path, overrides: Sequence[str] = ()) -> tuple[dict[str, Any], Source]:
    """Read a recipe as a plain mapping and lay the overrides over it.

    UsageError where there is no such file, RecipeError where it is not TOML or an override cannot be laid.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
        if len(content) > _MAX_BYTES:
            raise RecipeError(f"{path}: larger than {_MAX_BYTES:,} bytes; is it a recipe?")
        text = content.decode("utf-8")
        raw = _parsed(text)
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"no recipe at {path}", hint=_offer(path)) from None
    except IsADirectoryError:
        raise UsageError(f"{path} is a folder, not a recipe", hint=_offer(path / "x")) from None
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: not UTF-8 at byte {error.start}") from None
    except OSError as error:
        raise UsageError(f"{path}: {(error.strerror or 'cannot be read').lower()}") from None
    except ValueError as error:
        raise RecipeError(f"{path}: {_first_lower(str(error))}", hint="recipes are TOML") from None
    source = Source(path, text, {_lay(raw, override): override for override in overrides})
    _check_bounds(raw, source)
    return raw, source


def _parsed(text: str) -> dict[str, Any]:
    """Parse TOML; ValueError also for values nested deeper than Python's stack."""
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError("values are nested too deeply") from None


def _check_bounds(raw: dict[str, Any], source: Source) -> None:
    """Refuse nesting and integers beyond what TOML and the stages can represent.

    Raises:
        RecipeError: with the file and the line.
    """
    waiting: list[tuple[Place, object]] = [((), raw)]
    while waiting:
        place, value = waiting.pop()
        if len(place) > _MAX_DEPTH:
            raise RecipeError(f"{source.where(place[:2])}: nested more than {_MAX_DEPTH} levels deep")
        if isinstance(value, int) and not -_INT64 <= value < _INT64:
            name = ".".join(map(str, place))
            raise RecipeError(f"{source.where(place)}: {name}: must be a 64-bit integer, got {_brief(value)}")
        if isinstance(value, dict):
            waiting += [((*place, key), item) for key, item in value.items()]
        elif isinstance(value, list):
            waiting += [((*place, index), item) for index, item in enumerate(value)]


def _brief(number: int) -> str:
    return str(number) if number.bit_length() <= 100 else f"a number of {number.bit_length()} bits"


def _offer(path: Path) -> str | None:
    folders = (path.parent, Path("recipes"))
    found = sorted(
        {str(file) for folder in folders for file in folder.glob("*.toml") if file.name != "pyproject.toml"}
    )
    return f"recipes here: {', '.join(found)}" if found else None


def _first_lower(text: str) -> str:
    return text[:1].lower() + text[1:]


def _lay(raw: dict[str, Any], override: str) -> Place:
    """Lay `a.b=c` over the mapping; the value is read as TOML, else it is a string."""
    key, equals, text = override.partition("=")
    if not equals:
        raise UsageError(f"--set {override} has no value", hint="write --set table.key=value")
    table: object = raw
    place: Place = ()
    *parents, last = _split(key)
    for part in parents:
        index, table = _enter(table, part, override)
        place = (*place, index)
    if not isinstance(table, dict):
        raise RecipeError(f"--set {override}: {'.'.join(parents)} is not a table")
    table[last] = _value(text)
    return (*place, last)


def _enter(table: object, part: str, override: str) -> tuple[str | int, object]:
    """One step down: the key, or the index of a named table, and what stands there."""
    if isinstance(table, dict):
        return part, table.setdefault(part, {})
    if not isinstance(table, list):
        raise RecipeError(f"--set {override}: what stands before '{part}' is not a table")
    names = [entry.get("name") for entry in table if isinstance(entry, dict)]
    if part not in names:
        listed = [name for name in names if isinstance(name, str)]
        raise RecipeError(
            f"--set {override}: no table is named '{part}'{nearest(part, listed)}",
            hint=f"named tables: {', '.join(listed)}" if listed else None,
        )
    index = names.index(part)
    return index, table[index]


def _split(key: str) -> list[str]:
    """A dotted key into its parts, by TOML's own rules (so parts may be quoted)."""
    try:
        node: Any = _parsed(f"{key} = 0")
    except ValueError:
        raise UsageError(f"--set {key}: not a dotted key", hint="write --set table.key=value") from None
    parts: list[str] = []
    while isinstance(node, dict):
        if len(parts) == _MAX_DEPTH:
            raise UsageError(f"--set {key[:40]}…: more than {_MAX_DEPTH} parts")
        ((part, node),) = node.items()
        parts.append(part)
    return parts


def _value(text: str) -> object:
    try:
        values = _parsed(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    except ValueError as error:
        raise UsageError(f"--set …={text[:40]}…: {error}") from None
    return values["value"] if len(values) == 1 else text


def _common(one: Place, other: Place) -> int:
    """How many parts two places have in common, from the top."""
    return next(
        (n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )


def _find(text: str, place: Place) -> tuple[int | None, int]:
    """Line (from 1) of the deepest part of `place` that the text has, and how many parts that is."""
    best, depth = None, 0
    for number, found in _places(text):
        common = _common(found, place)
        if common > depth and common in (len(found), len(place)):
            best, depth = number, common
    return best, depth


def _places(text: str) -> Iterable[tuple[int, Place]]:
    """Every table header and key of a TOML text with its place, as far as single lines can tell."""
    table: Place = ()
    counts: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if header := _HEADER.match(line):
            parts = _bare(header[2])
            if header[1] == "[[":
                counts[parts[0]] = counts.get(parts[0], -1) + 1
            index: Place = (counts[parts[0]],) if parts[0] in counts else ()
            table = (parts[0], *index, *parts[1:])
            yield number, table
        elif key := _KEY.match(line):
            yield number, (*table, *_bare(key[1]))


def _bare(key: str) -> list[str]:
    return [part.strip().strip("\"'") for part in key.split(".")]
