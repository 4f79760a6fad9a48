"""The names of what a GGUF file can be written in: light, for the door asks for them before any work."""

from difflib import get_close_matches
from typing import Literal, cast, get_args

from meditron.core.errors import UsageError

__all__ = ["GGUFType", "gguf_type"]

GGUFType = Literal[
    "F32",
    "F16",
    "BF16",
    "Q2_K",
    "Q3_K_S",
    "Q3_K_M",
    "Q3_K_L",
    "Q4_0",
    "Q4_K_S",
    "Q4_K_M",
    "Q5_0",
    "Q5_K_S",
    "Q5_K_M",
    "Q6_K",
    "Q8_0",
]
"""The types a GGUF file can be written in."""


def gguf_type(text: str, among: tuple[str, ...] = get_args(GGUFType)) -> GGUFType:
    """Return the type that a text names in upper or lower case; UsageError, with the nearest, for another."""
    name = text.strip().upper().replace("-", "_")
    if name in get_args(GGUFType) and name not in among:
        raise UsageError(
            f"{name} is not among the types written here: {', '.join(among)}",
            hint=f"meditron quantize MODEL --type {name} writes it",
        )
    if name not in among:
        close = get_close_matches(name, among, n=1)
        nearest = f": did you mean {close[0]}?" if close else ""
        raise UsageError(f"{text!r} is not a GGUF type{nearest}", hint=f"types: {', '.join(among)}")
    return cast("GGUFType", name)
