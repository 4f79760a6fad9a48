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
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeVar, get_args, get_origin

from cyclopts import ArgumentCollection, CoercionError, Group, Parameter, Token, convert
from cyclopts.validators import Number

from meditron.core.errors import UsageError

if TYPE_CHECKING:
    from meditron.core.config import Config
    from meditron.store.people import Person

__all__ = [
    "GENERAL",
    "OPTIONS",
    "STDIN",
    "ActingAs",
    "Context",
    "DataFolder",
    "EngineName",
    "Json",
    "Out",
    "PeopleFile",
    "PromptsFolder",
    "RecipeFile",
    "Seed",
    "Set",
    "acting_person",
    "default_text",
    "flags_from",
    "json_was_printed",
    "note_printed_json",
    "parse_pairs",
    "print_json",
    "print_json_line",
    "refuse_fractions",
    "validate_settings",
]

Function = TypeVar("Function", bound=Callable[..., Any])
TableConfig = TypeVar("TableConfig", bound="Config")

# Characters that are written as JSON escapes if stdout is not UTF-8. Every JSON parser accepts escapes.
_NOT_ASCII = re.compile("[^\n -~]")
# Characters that are always written as JSON escapes: surrogates, which UTF-8 cannot encode, and control
# characters, which JSON allows but a terminal would execute.
_UNPRINTED = re.compile("[\x7f-\x9f\ud800-\udfff]")
STDIN = "\0-"
"""Text that replaces the argument `-` before parsing, because the parser would read `-` as a flag. It
contains a NUL, which no argument can contain."""

OPTIONS = Group("Options", sort_key=0)
"""Help group of a command's options that belong to no other group; the groups of `flags_from` come after
it."""
GENERAL = Group("General options", sort_key=100)
"""Help group of the options that every command has, shown last."""

Json = Annotated[
    bool,
    Parameter(
        name="--json",
        group=GENERAL,
        help="Print one JSON object on stdout; if the command fails, one with the key error.",
    ),
]
EngineName = Annotated[
    Literal["torch", "llama.cpp"] | None,
    Parameter(help="Inference engine; by default llama.cpp for a quantized GGUF file, else torch."),
]
Seed = Annotated[int, Parameter(validator=Number(gte=0, lt=1 << 63))]
"""A random seed in the range that torch, numpy and llama.cpp all accept."""
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
DataFolder = Annotated[
    Path | None,
    Parameter(name="--data", help="Folder of the server's data. [default: $XDG_DATA_HOME/meditron]"),
]
PromptsFolder = Annotated[
    Path | None,
    Parameter(
        name="--prompts", help="Folder of stored prompts. [default: prompts in $XDG_DATA_HOME/meditron]"
    ),
]
ActingAs = Annotated[
    str | None,
    Parameter(name="--as", help="Name that is recorded; with --people, of a person in that file."),
]
PeopleFile = Annotated[
    Path | None,
    Parameter(name="--people", help="File of people with roles; the person named by --as needs the role."),
]


def flags_from(
    table: str, groups: Mapping[str, Sequence[str]], *, names: Mapping[str, str] | None = None
) -> Callable[[Function], Function]:
    """Add keys of a recipe's table, or of the server's settings, to a command as flags.

    Type, choices, bounds, default and help of each flag are those of the table's config class. These are read
    from the package's JSON Schemas, because importing the config classes would slow down `--help`.

    The command receives the flags that were given as `**settings` (key → value), and passes them to the
    config class, which fills in the defaults of the others (`validate_settings`).

    Args:
        table: A recipe's table, such as `evaluate`; or `serve`.
        groups: Heading in the help → keys of the table.
        names: Key → flag, for flags that are not the key with dashes (`{"methods": "--method"}`).
    """

    def add_flags(command: Function) -> Function:
        parameters = signature(command).parameters.values()
        properties = _table_properties(table)
        flags = [
            SignatureParameter(
                key,
                SignatureParameter.KEYWORD_ONLY,
                default=_flag_default(properties[key]),
                annotation=_flag_annotation(
                    properties[key], Group(title, sort_key=place), (names or {}).get(key)
                ),
            )
            for place, (title, keys) in enumerate(groups.items(), start=1)
            for key in keys
        ]
        named = [each for each in parameters if each.kind is not SignatureParameter.VAR_KEYWORD]
        command.__signature__ = Signature([*named, *flags])  # type: ignore[attr-defined]
        command.__annotations__ |= {flag.name: flag.annotation for flag in flags}
        return command

    return add_flags


@cache
def _read_schema(package: str, name: str) -> dict[str, Any]:
    """Read a JSON Schema of a package, without importing the package."""
    schema: dict[str, Any] = json.loads(files("meditron").joinpath(package, name).read_text(encoding="utf-8"))
    return schema


def _table_properties(table: str) -> dict[str, Any]:
    if table == "serve":
        settings: dict[str, Any] = _read_schema("serve", "config.schema.json")["properties"]
        return settings
    schema = _read_schema("recipe", "recipe.schema.json")
    reference = str(schema["properties"][table]["$ref"])
    properties: dict[str, Any] = schema["$defs"][reference.rpartition("/")[2]]["properties"]
    return properties


_BOUNDS = {"gte": "minimum", "gt": "exclusiveMinimum", "lte": "maximum", "lt": "exclusiveMaximum"}
"""Argument of `cyclopts.validators.Number` → JSON Schema keyword for the same bound."""


def _flag_annotation(key: Mapping[str, Any], group: Group, name: str | None) -> Any:  # noqa: ANN401  # a type form
    """Translate a key's JSON Schema to an annotation for cyclopts."""
    (value,) = (option for option in key.get("anyOf", [key]) if option["type"] != "null")
    bounds = {keyword: value[bound] for keyword, bound in _BOUNDS.items() if bound in value}
    parameter = Parameter(
        name=name,
        group=group,
        help=" ".join(str(key["description"]).replace("`", "").split()),
        validator=Number(**bounds) if bounds else None,
        converter=_convert_choices if "enum" in value.get("items", value) else None,
    )
    nullable = "anyOf" in key
    kind = _flag_type(value)
    return Annotated[kind | None if nullable else kind, parameter]


def _flag_type(value: Mapping[str, Any]) -> Any:  # noqa: ANN401  # a type form
    if "enum" in value:
        return Literal[tuple(value["enum"])]
    if value["type"] == "array":
        return tuple[_flag_type(value["items"]), ...]  # type: ignore[misc]
    if value.get("format") == "path":
        return Path
    return {"integer": int, "number": float, "boolean": bool, "string": str}[value["type"]]


def _convert_choices(kind: Any, tokens: Sequence[Token]) -> Any:  # noqa: ANN401  # a type form
    """Convert the text of a flag to its choices, in any case: `q4_k_m` to `Q4_K_M`."""
    literal = get_args(kind)[0] if get_origin(kind) is tuple else kind
    choices = {choice.casefold(): choice for choice in get_args(literal)}
    spelled = [token.evolve(value=choices.get(token.value.casefold(), token.value)) for token in tokens]
    return convert(kind, spelled)


def validate_settings(
    config: type[TableConfig], settings: Mapping[str, Any], *, names: Mapping[str, str]
) -> TableConfig:
    """Build a table's config from the flags that were given; the config fills in the defaults of the others.

    Args:
        config: The table's config class.
        settings: Key → value, as a command with `flags_from` receives them.
        names: Key → flag, for flags that are not the key with dashes; the same as was given to `flags_from`.

    Raises:
        UsageError: the config class refuses a value; the error names the flag.
    """
    from pydantic import ValidationError

    try:
        return config(**settings)
    except ValidationError as error:
        first = error.errors()[0]
        key = str(first["loc"][0]) if first["loc"] else None
        flag = names.get(key, f"--{key.replace('_', '-')}") + ": " if key else ""
        raise UsageError(f"{flag}{first['msg'].removeprefix('Value error, ')}") from error


def _flag_default(key: Mapping[str, Any]) -> Any:  # noqa: ANN401  # whatever the key holds
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
    """Return the text of a default in the help; None for a default that means that the option is not set."""
    if value is None or value is False or value in ((), ""):
        return None
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


class _Output:
    """Output of the current command."""

    json = False


def json_was_printed() -> bool:
    """Return whether the command has printed JSON on stdout."""
    return _Output.json


def note_printed_json(*, printed: bool) -> None:
    """Record whether the command has printed JSON on stdout."""
    _Output.json = printed


def print_json(value: dict[str, Any]) -> None:
    """Print one JSON object on stdout."""
    print_json_line(json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False) + "\n")


def print_json_line(text: str) -> None:
    """Print serialized JSON on stdout; characters that a terminal would execute are escaped."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    escaped = _UNPRINTED if encoding.lower().replace("-", "").startswith("utf") else _NOT_ASCII
    note_printed_json(printed=True)
    sys.stdout.write(escaped.sub(lambda match: json.dumps(match[0])[1:-1], text))


def parse_pairs(flag: str, texts: tuple[str, ...]) -> dict[str, str]:
    """Return the values of a repeatable flag NAME=VALUE by name; UsageError for a text without either."""
    pairs = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise UsageError(f"{flag} {text}: not NAME=VALUE", hint=f"{flag} template=letters")
        pairs[name] = value
    return pairs


def acting_person(name: str | None, people: Path | None) -> "Person":
    """Return who runs the command: a person of a file with their roles, or the local user with every role.

    Args:
        name: The name that --as gives.
        people: The file of people with roles.

    Raises:
        UsageError: there is a file without a name, or the name is not in it or is no name.
        InputError: the file is no list of people.
    """
    from meditron.store.people import People, Person, is_person_name

    if people is None:
        local = People().local
        if name is not None and not is_person_name(name):
            raise UsageError(f"--as {name}: not a name", hint="lower-case letters, digits, '.', '_' and '-'")
        return local if name is None else Person(name, local.roles)
    if name is None:
        raise UsageError("--people needs the name of a person", hint="--as NAME")
    person = People.load(people).named(name)
    if person is None:
        raise UsageError(f"{people} has no person '{name}'")
    return person
