"""Flags that verbs share, each with its help, so that it reads the same everywhere."""

import json
import sys
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

__all__ = ["STDIN", "Json", "Out", "RecipeFile", "Set", "emit", "printable"]

STDIN = "\0-"
"""What a lone `-` becomes before words are parsed, which would take it for a flag; nobody can type a NUL."""

Json = Annotated[bool, Parameter(name="--json", help="Print one JSON object on stdout.")]
RecipeFile = Annotated[Path, Parameter(help="The recipe, a TOML file.")]
Set = Annotated[
    tuple[str, ...],
    Parameter(
        name="--set",
        help="Lay table.key=value over the recipe; the value is read as TOML, else as a string. Repeatable.",
    ),
]
Out = Annotated[Path, Parameter(show_default=True, help="The folder that holds runs.")]


def emit(value: dict[str, Any], *, indent: int | None = 2) -> None:
    """Print one JSON object on stdout."""
    json.dump(value, sys.stdout, ensure_ascii=False, indent=indent, allow_nan=False)
    sys.stdout.write("\n")


def printable(text: str) -> str:
    """A text from a file or a model without the escape sequences that a terminal would obey."""
    return "".join(
        each if each.isprintable() or each in "\n\t" else "\N{REPLACEMENT CHARACTER}" for each in text
    )
