"""Flags that verbs share, each with its help, so that it reads the same everywhere."""

import json
import re
import sys
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

__all__ = ["STDIN", "Context", "EngineName", "Json", "Out", "RecipeFile", "Seed", "Set", "emit", "emit_line"]

# Escaped in JSON for a stdout that is not UTF-8: every reader of JSON takes the escapes.
_NOT_ASCII = re.compile("[^\n -~]")
# What UTF-8 cannot hold, and control characters that JSON lets stand but a terminal would obey.
_UNPRINTED = re.compile("[\x7f-\x9f\ud800-\udfff]")
STDIN = "\0-"
"""What a lone `-` becomes before words are parsed, which would take it for a flag; nobody can type a NUL."""

Json = Annotated[bool, Parameter(name="--json", help="Print one JSON object on stdout.")]
EngineName = Annotated[
    Literal["torch", "llama.cpp"] | None,
    Parameter(help="What runs the model; when absent llama.cpp for a quantized GGUF file, else torch."),
]
Seed = Annotated[int, Parameter(validator=Number(gte=0, lt=1 << 63), show_default=True)]
"""A seed that torch, numpy and llama.cpp can all take."""
Context = Annotated[
    int | None,
    Parameter(
        validator=Number(gte=1),
        help="Tokens of context; by default the model's own, in llama.cpp as far as memory allows.",
    ),
]
RecipeFile = Annotated[Path, Parameter(help="The recipe, a TOML file.")]
Set = Annotated[
    tuple[str, ...],
    Parameter(
        name="--set",
        help="Lay table.key=value over the recipe; the value is read as TOML, else as a string. Repeatable.",
    ),
]
Out = Annotated[Path, Parameter(show_default=True, help="The folder that holds runs.")]


def emit(value: dict[str, Any]) -> None:
    """Print one JSON object on stdout."""
    emit_line(json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False) + "\n")


def emit_line(text: str) -> None:
    """Print JSON that is already written, with escapes for what a terminal would obey."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    escaped = _UNPRINTED if encoding.lower().replace("-", "").startswith("utf") else _NOT_ASCII
    sys.stdout.write(escaped.sub(lambda found: json.dumps(found[0])[1:-1], text))
