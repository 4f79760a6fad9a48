"""A recipe's text: parsed, overridden by `--set`, and searched for the line of a key."""

import difflib
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from meditron.core.errors import RecipeError, UsageError
from meditron.core.redaction import redact

__all__ = ["Place", "RecipeText", "apply_override", "nearest", "read_toml"]

Place = tuple[str | int, ...]
"""Position of a value: table names, keys, and indices into arrays of tables."""

_MAX_BYTES = 1 << 20
"""Largest recipe file: 1 MiB. A recipe is written by hand; the template has 6 KB."""
_MAX_DEPTH = 16
"""Deepest nesting of tables and lists in a recipe; the schema's own is 5."""
_INT64 = 1 << 63  # TOML's integers are 64-bit and signed; Python's reader accepts any

_HEADER = re.compile(r"\s*(\[\[?)([^\[\]]+)\]\]?\s*(#.*)?$")
_KEY = re.compile(r"\s*([A-Za-z0-9_.\-\"' ]+?)\s*=")


def nearest(word: str, words: Iterable[str]) -> str:
    """Return `: did you mean 'learning_rate'?` for the most similar word; empty if none is similar."""
    close = difflib.get_close_matches(word, sorted(words), n=1)
    return f": did you mean '{close[0]}'?" if close else ""


@dataclass(frozen=True)
class RecipeText:
    """A recipe's file and the overrides applied to it."""

    path: Path
    text: str
    raw: Mapping[str, Any]
    """The parsed values, after the overrides."""
    overrides: dict[Place, str] = field(default_factory=dict)
    """Place → the `--set` that set it."""

    def where(self, place: Place) -> str:
        """Return `recipes/x.toml:24`, or the `--set` that gave the value; the file alone without a line."""
        line, depth = _find_line(self.text, place)
        for overridden, override in self.overrides.items():
            common = _common_length(overridden, place)
            if common == len(overridden) or common == len(place) > depth:
                public = redact(override)  # an address in it may have a login or a signature
                return f"--set {public if len(public) <= 80 else public[:80] + '…'}"
        return f"{self.path}:{line}" if line else f"{self.path}"

    def where_value(self, table: Place, value: str) -> str:
        """Return where a table has this value; the table's place if the value is a default."""
        inner: Any = self.raw
        for part in table:
            inner = inner[part]
        return self.where((*table, *next((place for place, leaf in _leaves(inner) if leaf == value), ())))


def read_toml(path: Path, overrides: Sequence[str] = ()) -> tuple[dict[str, Any], RecipeText]:
    """Read a recipe as a plain mapping and apply the overrides.

    Raises:
        UsageError: there is no such file, or an override is malformed.
        RecipeError: the file is not TOML, or an override does not fit its tables.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
        if len(content) > _MAX_BYTES:
            raise RecipeError(f"{path}: larger than {_MAX_BYTES:,} bytes; is it a recipe?")
        text = content.decode("utf-8")
        raw = _parsed(text)
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"no recipe at {path}", hint=_list_recipes(path)) from None
    except IsADirectoryError:
        raise UsageError(f"{path} is a folder, not a recipe", hint=_list_recipes(path / "x")) from None
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: not UTF-8 at byte {error.start}") from None
    except OSError as error:
        raise UsageError(f"{path}: {(error.strerror or 'cannot be read').lower()}") from None
    except ValueError as error:
        message = str(error)
        raise RecipeError(f"{path}: {message[:1].lower()}{message[1:]}", hint="recipes are TOML") from None
    places = {apply_override(raw, override): override for override in overrides}
    recipe_text = RecipeText(path, text, raw, places)
    _check_bounds(raw, recipe_text)
    return raw, recipe_text


def _parsed(text: str) -> dict[str, Any]:
    """Parse TOML; ValueError also for values nested deeper than Python's stack."""
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError("values are nested too deeply") from None


def _check_bounds(raw: dict[str, Any], text: RecipeText) -> None:
    """Refuse nesting and integers beyond what TOML and the stages can represent.

    Raises:
        RecipeError: with the file and the line.
    """
    waiting: list[tuple[Place, object]] = [((), raw)]
    while waiting:
        place, value = waiting.pop()
        if len(place) > _MAX_DEPTH:
            raise RecipeError(f"{text.where(place[:2])}: nested more than {_MAX_DEPTH} levels deep")
        if isinstance(value, int) and not -_INT64 <= value < _INT64:
            # A number of thousands of digits is not printed.
            got = str(value) if value.bit_length() <= 100 else f"a number of {value.bit_length()} bits"
            name = ".".join(map(str, place))
            raise RecipeError(f"{text.where(place)}: {name}: must be a 64-bit integer, got {got}")
        waiting += [((*place, key), inner) for key, inner in _items(value)]


def _items(value: object) -> Iterable[tuple[str | int, object]]:
    if isinstance(value, dict):
        return value.items()
    return enumerate(value) if isinstance(value, list) else ()


def _leaves(value: object) -> Iterator[tuple[Place, object]]:
    """Yield the place and value of everything that is neither table nor list."""
    if not isinstance(value, dict | list):
        yield (), value
    for key, inner in _items(value):
        for place, leaf in _leaves(inner):
            yield (key, *place), leaf


def _list_recipes(path: Path) -> str | None:
    folders = (path.parent, Path("recipes"))
    recipes = sorted(
        {str(file) for folder in folders for file in folder.glob("*.toml") if file.name != "pyproject.toml"}
    )
    return f"recipes here: {', '.join(recipes)}" if recipes else None


def apply_override(raw: dict[str, Any], override: str) -> Place:
    """Set `a.b=c` in the parsed recipe; the value is parsed as TOML, else it is a string."""
    key, equals, text = override.partition("=")
    if not equals:
        raise UsageError(f"--set {override} has no value", hint="write --set table.key=value")
    table: object = raw
    place: Place = ()
    *parents, last = _split_key(key)
    for part in parents:
        index, table = _enter(table, part, override)
        place = (*place, index)
    if not isinstance(table, dict):
        raise RecipeError(f"--set {override}: {'.'.join(parents)} is not a table")
    table[last] = _override_value(text)
    return (*place, last)


def _enter(table: object, part: str, override: str) -> tuple[str | int, object]:
    """Go one level down: return the key, or the index of a named table, and its value."""
    if isinstance(table, dict):
        return part, table.setdefault(part, {})
    if not isinstance(table, list):
        raise RecipeError(f"--set {override}: the parent of '{part}' is not a table")
    names = [entry.get("name") for entry in table if isinstance(entry, dict)]
    if part not in names:
        listed = [name for name in names if isinstance(name, str)]
        raise RecipeError(
            f"--set {override}: no table is named '{part}'{nearest(part, listed)}",
            hint=f"named tables: {', '.join(listed)}" if listed else None,
        )
    index = names.index(part)
    return index, table[index]


def _split_key(key: str) -> list[str]:
    """Split a dotted key by TOML's rules, which allow quoted parts."""
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


def _override_value(text: str) -> object:
    try:
        values = _parsed(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    except ValueError as error:
        raise UsageError(f"--set …={text[:40]}…: {error}") from None
    # A line break in the text would let it set further keys.
    return values["value"] if len(values) == 1 else text


def _common_length(a: Place, b: Place) -> int:
    """Return the number of leading parts that two places share."""
    pairs = enumerate(zip(a, b, strict=False))
    return next((depth for depth, (x, y) in pairs if x != y), min(len(a), len(b)))


def _find_line(text: str, place: Place) -> tuple[int | None, int]:
    """Return the line (from 1) of the deepest part of `place` in the text, and that part's depth."""
    best, depth = None, 0
    for number, candidate in _places(text):
        common = _common_length(candidate, place)
        if common > depth and common in (len(candidate), len(place)):
            best, depth = number, common
    return best, depth


def _places(text: str) -> Iterator[tuple[int, Place]]:
    """Yield the line and place of every table header and key.

    Reads line by line, so keys inside multi-line values are not seen.
    """
    table: Place = ()
    counts: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if header := _HEADER.match(line):
            parts = _unquoted(header[2])
            if header[1] == "[[":
                counts[parts[0]] = counts.get(parts[0], -1) + 1
            index: Place = (counts[parts[0]],) if parts[0] in counts else ()
            table = (parts[0], *index, *parts[1:])
            yield number, table
        elif key := _KEY.match(line):
            yield number, (*table, *_unquoted(key[1]))


def _unquoted(key: str) -> list[str]:
    return [part.strip().strip("\"'") for part in key.split(".")]
