"""Names of GGUF types. This module has no heavy imports, because the command line reads it."""

from difflib import get_close_matches
from typing import Literal, cast, get_args

from meditron.core.errors import UsageError

__all__ = ["GGUFType", "Mix", "parse_gguf_type"]

GGUFType = Literal[
    "F32",
    "F16",
    "BF16",
    "Q2_K",
    "Q3_K_S",
    "Q3_K_M",
    "Q3_K_L",
    "Q4_0",
    "Q4_1",
    "Q4_K_S",
    "Q4_K_M",
    "Q5_0",
    "Q5_1",
    "Q5_K_S",
    "Q5_K_M",
    "Q6_K",
    "Q8_0",
    "IQ1_S",
    "IQ1_M",
    "IQ2_XXS",
    "IQ2_XS",
    "IQ2_S",
    "IQ2_M",
    "IQ3_XXS",
    "IQ3_XS",
    "IQ3_S",
    "IQ3_M",
    "IQ4_XS",
    "IQ4_NL",
]
"""Types of a GGUF file."""

Mix = Literal["current", "2023"]
"""Rules by which the matrices of a file get their types: today's of llama.cpp, or those of late 2023."""


def parse_gguf_type(text: str, among: tuple[str, ...] = get_args(GGUFType)) -> GGUFType:
    """Return the type with this name in any case; UsageError with the nearest type for an unknown name."""
    name = text.strip().upper().replace("-", "_")
    if name in get_args(GGUFType) and name not in among:
        raise UsageError(
            f"type must be one of {', '.join(among)}, got {name}",
            hint=f"other types: meditron quantize MODEL --type {name}",
        )
    if name not in among:
        close = get_close_matches(name, among, n=1)
        nearest = f": did you mean {close[0]}?" if close else ""
        raise UsageError(f"unknown GGUF type {text!r}{nearest}", hint=f"types: {', '.join(among)}")
    return cast("GGUFType", name)
