"""Options that commands share, and options generated from the tables of a recipe."""

import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.resources import files
from inspect import Parameter as SignatureParameter
from inspect import Signature, signature
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args

from cyclopts import ArgumentCollection, CoercionError, Group, Parameter
from cyclopts.validators import Number

__all__ = [
    "GENERAL",
    "OPTIONS",
    "STDIN",
    "Context",
    "EngineName",
    "Json",
    "Out",
    "RecipeFile",
    "Seed",
    "Set",
    "default_text",
    "emit",
    "emit_line",
    "flags_from",
    "refuse_fractions",
]

Function = TypeVar("Function", bound=Callable[..., Any])

# Escaped in JSON for a stdout that is not UTF-8: every reader of JSON takes the escapes.
_NOT_ASCII = re.compile("[^\n -~]")
# Surrogates, which UTF-8 cannot encode, and control characters, which JSON allows but a terminal would obey.
_UNPRINTED = re.compile("[\x7f-\x9f\ud800-\udfff]")
STDIN = "\0-"
"""Replacement of a lone `-` before parsing, which would read it as a flag; nobody can type a NUL."""

OPTIONS = Group("Options", sort_key=0)
"""Options of one command that belong to no other group; groups of `flags_from` come after them."""
GENERAL = Group("General options", sort_key=100)
"""Options of every command, shown last in its help."""

Json = Annotated[bool, Parameter(name="--json", group=GENERAL, help="Print one JSON object on stdout.")]
EngineName = Annotated[
    Literal["torch", "llama.cpp"] | None,
    Parameter(help="Inference engine; by default llama.cpp for a quantized GGUF file, else torch."),
]
Seed = Annotated[int, Parameter(validator=Number(gte=0, lt=1 << 63))]
"""A seed in the range that torch, numpy and llama.cpp all accept."""
Context = Annotated[
    int | None,
    Parameter(
        validator=Number(gte=1),
        help="Context length in tokens; by default the model's, limited by memory in llama.cpp.",
    ),
]
RecipeFile = Annotated[Path, Parameter(help="Path of the recipe, a TOML file.")]
Set = Annotated[
    tuple[str, ...],
    Parameter(
        name="--set",
        help="Override a recipe value: table.key=value. The value is read as TOML, or as a string if it is "
        "not TOML. Repeatable.",
    ),
]
Out = Annotated[Path, Parameter(help="Folder that holds runs.")]


def flags_from(
    table: str, groups: Mapping[str, Sequence[str]], *, names: Mapping[str, str] | None = None
) -> Callable[[Function], Function]:
    """Add keys of a recipe's table to a command as flags.

    Type, choices, bounds, default and help of each flag are those of the table's config class. They come from
    the package's JSON Schema of recipes, because importing the config classes would slow down `--help`.

    The command takes the flags that were given, by key, as `**settings`; the config class fills in the rest.

    Args:
        table: A recipe's table, such as `evaluate`.
        groups: Heading in the help → keys of the table.
        names: Key → flag, where the flag is not the key with dashes (`{"methods": "--method"}`).
    """

    def add(command: Function) -> Function:
        parameters = signature(command).parameters.values()
        properties = _table_properties(table)
        flags = [
            SignatureParameter(
                key,
                SignatureParameter.KEYWORD_ONLY,
                default=_default(properties[key]),
                annotation=_flag(properties[key], Group(title, sort_key=place), (names or {}).get(key)),
            )
            for place, (title, keys) in enumerate(groups.items(), start=1)
            for key in keys
        ]
        named = [each for each in parameters if each.kind is not SignatureParameter.VAR_KEYWORD]
        command.__signature__ = Signature([*named, *flags])  # type: ignore[attr-defined]
        command.__annotations__ |= {flag.name: flag.annotation for flag in flags}
        return command

    return add


@cache
def _schema() -> dict[str, Any]:
    """Read the JSON Schema of recipes, without importing `meditron.recipe`."""
    schema = files("meditron").joinpath("recipe", "recipe.schema.json").read_text(encoding="utf-8")
    parsed: dict[str, Any] = json.loads(schema)
    return parsed


def _table_properties(table: str) -> dict[str, Any]:
    reference = str(_schema()["properties"][table]["$ref"])
    properties: dict[str, Any] = _schema()["$defs"][reference.rpartition("/")[2]]["properties"]
    return properties


_BOUNDS = {"gte": "minimum", "gt": "exclusiveMinimum", "lte": "maximum", "lt": "exclusiveMaximum"}
"""Bounds of `cyclopts.validators.Number` → the same in JSON Schema."""


def _flag(key: Mapping[str, Any], group: Group, name: str | None) -> Any:  # noqa: ANN401  # a type form
    """Translate a key's JSON Schema to an annotation for cyclopts."""
    (value,) = (option for option in key.get("anyOf", [key]) if option["type"] != "null")
    bounds = {keyword: value[bound] for keyword, bound in _BOUNDS.items() if bound in value}
    parameter = Parameter(
        name=name,
        group=group,
        help=" ".join(str(key["description"]).replace("`", "").split()),
        validator=Number(**bounds) if bounds else None,
    )
    nullable = "anyOf" in key
    kind = _type(value)
    return Annotated[kind | None if nullable else kind, parameter]


def _type(value: Mapping[str, Any]) -> Any:  # noqa: ANN401  # a type form
    if "enum" in value:
        return Literal[tuple(value["enum"])]
    if value["type"] == "array":
        return tuple[_type(value["items"]), ...]  # type: ignore[misc]
    if value.get("format") == "path":
        return Path
    return {"integer": int, "number": float, "boolean": bool, "string": str}[value["type"]]


def _default(key: Mapping[str, Any]) -> Any:  # noqa: ANN401  # whatever the key holds
    default = key.get("default", SignatureParameter.empty)
    return tuple(default) if isinstance(default, list) else default


def refuse_fractions(app: object, commands: Sequence[str], arguments: ArgumentCollection) -> None:
    """Raise CoercionError for a fraction as a whole number, which cyclopts would round."""
    for argument in arguments:
        if int not in (argument.hint, *get_args(argument.hint)):
            continue
        for token in argument.tokens:
            if "." in token.value and not re.fullmatch(r"[-+]?\d+\.0*", token.value):
                raise CoercionError(token=token, argument=argument, target_type=int)


def default_text(value: object) -> str | None:
    """Return a default as help shows it; None for defaults that mean "not set"."""
    if value is None or value is False or value == ():
        return None
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def emit(value: dict[str, Any]) -> None:
    """Print one JSON object on stdout."""
    emit_line(json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False) + "\n")


def emit_line(text: str) -> None:
    """Print serialized JSON on stdout, escaping characters that a terminal would obey."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    escaped = _UNPRINTED if encoding.lower().replace("-", "").startswith("utf") else _NOT_ASCII
    sys.stdout.write(escaped.sub(lambda match: json.dumps(match[0])[1:-1], text))
