"""Reading of a recipe's text: parsing, values replaced by `--set`, and the line of each key for errors."""

import difflib
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from meditron.core.errors import RecipeError, UsageError
from meditron.core.redaction import redact

__all__ = ["Place", "RecipeText", "apply_override", "nearest_word_hint", "read_toml"]

Place = tuple[str | int, ...]
"""Position of a value in a recipe: table names, keys, and indices into arrays of tables."""

_MAX_BYTES = 1 << 20
"""Largest accepted recipe file: 1 MiB. Recipes are written by hand; the template has 6 KB."""
_MAX_DEPTH = 16
"""Deepest accepted nesting of tables and lists in a recipe; valid recipes have at most 5 levels."""
_INT64 = 1 << 63  # TOML's integers are 64-bit and signed; Python's reader accepts any

_HEADER = re.compile(r"\s*(\[\[?)([^\[\]]+)\]\]?\s*(#.*)?$")
_POSITION = re.compile(r" \(at line (\d+), column (\d+)\)$")  # end of tomllib's messages
_KEY = re.compile(r"\s*([A-Za-z0-9_.\-\"' ]+?)\s*=")


def nearest_word_hint(word: str, words: Iterable[str]) -> str:
    """Return the end of an error message, `: did you mean 'learning_rate'?`; empty if no word is similar."""
    close = difflib.get_close_matches(word, sorted(words), n=1)
    return f": did you mean '{close[0]}'?" if close else ""


@dataclass(frozen=True)
class RecipeText:
    """The text of a recipe's file, its parsed values, and the overrides applied to them."""

    path: Path
    text: str
    parsed: Mapping[str, Any]
    """The parsed values, after the overrides."""
    overrides: dict[Place, str] = field(default_factory=dict)
    """Place → the `--set` option that set its value."""

    def location_of(self, place: Place) -> str:
        """Return the origin of a value for errors: `recipes/x.toml:24`, or the `--set` option that set it.

        If no line is found, only the file is named.
        """
        line, depth = _find_line(self.text, place)
        for overridden, override in self.overrides.items():
            common = _common_length(overridden, place)
            if common == len(overridden) or common == len(place) > depth:
                public = redact(override)  # an address in it may have a login or a signature
                return f"--set {public if len(public) <= 80 else public[:80] + '…'}"
        return f"{self.path}:{line}" if line else f"{self.path}"

    def contains_value(self, table: Place, value: str) -> bool:
        """Return True if the recipe or an override writes a value in a table."""
        table_value: Any = self.parsed
        for part in table:
            table_value = table_value[part]
        return any(leaf == value for _, leaf in _leaf_values(table_value))

    def location_of_value(self, table: Place, value: str) -> str:
        """Return the origin of a value in a table; that of the table if the value is a default."""
        table_value: Any = self.parsed
        for part in table:
            table_value = table_value[part]
        return self.location_of(
            (*table, *next((place for place, leaf in _leaf_values(table_value) if leaf == value), ()))
        )


def read_toml(path: Path, overrides: Sequence[str] = ()) -> tuple[dict[str, Any], RecipeText]:
    """Read a recipe's file as nested dicts and apply the overrides to them.

    Raises:
        UsageError: there is no such file, or an override is malformed.
        RecipeError: the file is not TOML, or an override does not fit its tables.
    """
    try:
        with path.open("rb") as file:
            content = file.read(_MAX_BYTES + 1)
        # One byte more than allowed is read, so that a huge or endless file is not read to its end.
        if len(content) > _MAX_BYTES:
            raise RecipeError(f"{path}: larger than {_MAX_BYTES:,} bytes; is it a recipe?")
        text = content.decode("utf-8")
        raw = _parse_toml(text)
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(f"no recipe at {path}", hint=_recipes_hint(path)) from None
    except IsADirectoryError:
        raise UsageError(f"{path} is a folder, not a recipe", hint=_recipes_hint(path / "x")) from None
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}: not UTF-8 at byte {error.start}") from None
    except OSError as error:
        raise UsageError(f"{path}: {(error.strerror or 'cannot be read').lower()}") from None
    except ValueError as error:
        raise RecipeError(f"{path}{_syntax_problem(str(error))}", hint="recipes are TOML") from None
    places = {apply_override(raw, override): override for override in overrides}
    recipe_text = RecipeText(path, text, raw, places)
    _check_bounds(raw, recipe_text)
    return raw, recipe_text


def _syntax_problem(message: str) -> str:
    """Return the end of an error, `:1: invalid value at column 8`, from the message of the TOML reader."""
    message = f"{message[:1].lower()}{message[1:]}"
    if position := _POSITION.search(message):
        return f":{position[1]}: {message[: position.start()]} at column {position[2]}"
    return f": {message}"


def _parse_toml(text: str) -> dict[str, Any]:
    """Parse TOML; ValueError if it is not valid or nested deeper than Python's stack allows."""
    try:
        return tomllib.loads(text)
    except RecursionError:
        raise ValueError("values are nested too deeply") from None


def _check_bounds(raw: dict[str, Any], text: RecipeText) -> None:
    """Refuse values that are nested too deeply, and integers that do not fit in TOML's 64 bits.

    Raises:
        RecipeError: such a value exists; the error names the file and the line.
    """
    unchecked_values: list[tuple[Place, object]] = [((), raw)]
    while unchecked_values:
        place, value = unchecked_values.pop()
        if len(place) > _MAX_DEPTH:
            raise RecipeError(f"{text.location_of(place[:2])}: nested more than {_MAX_DEPTH} levels deep")
        if isinstance(value, int) and not -_INT64 <= value < _INT64:
            # Of a huge number only the size is printed.
            got = str(value) if value.bit_length() <= 100 else f"a number of {value.bit_length()} bits"
            name = ".".join(map(str, place))
            raise RecipeError(f"{text.location_of(place)}: {name}: must be a 64-bit integer, got {got}")
        unchecked_values += [((*place, key), inner) for key, inner in _child_items(value)]


def _child_items(value: object) -> Iterable[tuple[str | int, object]]:
    if isinstance(value, dict):
        return value.items()
    return enumerate(value) if isinstance(value, list) else ()


def _leaf_values(value: object) -> Iterator[tuple[Place, object]]:
    """Yield the place and the value of every value that is neither a table nor a list."""
    if not isinstance(value, dict | list):
        yield (), value
    for key, inner in _child_items(value):
        for place, leaf in _leaf_values(inner):
            yield (key, *place), leaf


def _recipes_hint(path: Path) -> str | None:
    folders = (path.parent, Path("recipes"))
    recipes = sorted(
        {str(file) for folder in folders for file in folder.glob("*.toml") if file.name != "pyproject.toml"}
    )
    return f"recipes here: {', '.join(recipes)}" if recipes else None


def apply_override(raw: dict[str, Any], override: str) -> Place:
    """Set one `a.b=c` in the parsed recipe; the value is read as TOML, or as a string if it is not TOML."""
    key, equals, text = override.partition("=")
    if not equals:
        raise UsageError(f"--set {override} has no value", hint="write --set table.key=value")
    # Errors show the key only: the value may be an address with a login.
    table: object = raw
    place: Place = ()
    *parents, last = _split_key(key)
    for part in parents:
        index, table = _enter_table(table, part, key)
        place = (*place, index)
    if not isinstance(table, dict):
        raise RecipeError(f"--set {key}: {'.'.join(parents)} is not a table")
    table[last] = _parse_override_value(text)
    return (*place, last)


def _enter_table(table: object, part: str, key: str) -> tuple[str | int, object]:
    """Look up `part` in a table: return its key, or its index in an array of named tables, and its value."""
    if isinstance(table, dict):
        return part, table.setdefault(part, {})
    if not isinstance(table, list):
        raise RecipeError(f"--set {key}: the parent of '{part}' is not a table")
    names = [entry.get("name") for entry in table if isinstance(entry, dict)]
    if part not in names:
        listed = [name for name in names if isinstance(name, str)]
        raise RecipeError(
            f"--set {key}: no table is named '{part}'{nearest_word_hint(part, listed)}",
            hint=f"named tables: {', '.join(listed)}" if listed else None,
        )
    index = names.index(part)
    return index, table[index]


def _split_key(key: str) -> list[str]:
    """Split a dotted key by TOML's rules, which allow quoted parts."""
    try:
        node: Any = _parse_toml(f"{key} = 0")
    except ValueError:
        raise UsageError(f"--set {key}: not a dotted key", hint="write --set table.key=value") from None
    parts: list[str] = []
    while isinstance(node, dict):
        if len(parts) == _MAX_DEPTH:
            raise UsageError(f"--set {key[:40]}…: more than {_MAX_DEPTH} parts")
        ((part, node),) = node.items()
        parts.append(part)
    return parts


def _parse_override_value(text: str) -> object:
    try:
        values = _parse_toml(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    except ValueError as error:
        raise UsageError(f"--set …={text[:40]}…: {error}") from None
    # A line break in the text could define further keys; then the whole text is a string.
    return values["value"] if len(values) == 1 else text


def _common_length(a: Place, b: Place) -> int:
    """Return the number of parts at the beginning in which two places agree."""
    pairs = enumerate(zip(a, b, strict=False))
    return next((depth for depth, (x, y) in pairs if x != y), min(len(a), len(b)))


def _find_line(text: str, place: Place) -> tuple[int | None, int]:
    """Return the line (from 1) of the key or table that leads deepest into `place`, and its depth."""
    best, depth = None, 0
    for number, candidate in _places_by_line(text):
        common = _common_length(candidate, place)
        if common > depth and common in (len(candidate), len(place)):
            best, depth = number, common
    return best, depth


def _places_by_line(text: str) -> Iterator[tuple[int, Place]]:
    """Yield the line number and the place of every table header and key.

    The text is read line by line, so keys inside multi-line values are not found.
    """
    table: Place = ()
    array_lengths: dict[str, int] = {}
    for number, line in enumerate(text.splitlines(), start=1):
        if header := _HEADER.match(line):
            parts = _unquoted_key_parts(header[2])
            if header[1] == "[[":
                array_lengths[parts[0]] = array_lengths.get(parts[0], -1) + 1
            index: Place = (array_lengths[parts[0]],) if parts[0] in array_lengths else ()
            table = (parts[0], *index, *parts[1:])
            yield number, table
        elif key := _KEY.match(line):
            yield number, (*table, *_unquoted_key_parts(key[1]))


def _unquoted_key_parts(key: str) -> list[str]:
    return [part.strip().strip("\"'") for part in key.split(".")]
