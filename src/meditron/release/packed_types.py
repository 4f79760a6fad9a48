"""Names of GPTQ and AWQ types. This module has no heavy imports, because the command line reads it."""

import re
from dataclasses import dataclass
from typing import Literal, cast

from meditron.core.errors import UsageError

__all__ = ["GROUP_SIZES", "PACKED_FORMS", "PackedMethod", "PackedType", "is_packed_type", "parse_packed_type"]

PackedMethod = Literal["GPTQ", "AWQ"]

PACKED_FORMS = "GPTQ-4bit-128g, GPTQ-4bit-128g-actorder, GPTQ-8bit, AWQ-4bit-128g"
"""Examples of the names."""
_BITS = {"GPTQ": (2, 3, 4, 8), "AWQ": (4,)}
GROUP_SIZES = (32, 64, 128)
"""Group sizes that vLLM's and transformers' kernels run."""
# As published cards spell them, too: gptq-4bit-128g-actorder_True, gptq-8bit--1g-actorder_False.
_NAME = re.compile(
    r"(?P<method>gptq|awq)-(?P<bits>\d)bit(-(?P<group>-1|\d+)g)?(?P<order>-actorder(_true)?)?(-actorder_false)?",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True)
class PackedType:
    """A type of a folder in which GPTQ or AWQ packed the matrices."""

    method: PackedMethod
    bits: int
    group_size: int
    """Values of a row that share a scale; -1 for a whole row."""
    act_order: bool = False
    """Quantize the columns with the largest inputs first, each in a group of its own order (GPTQ)."""

    def __str__(self) -> str:
        group = "" if self.group_size == -1 else f"-{self.group_size}g"
        return f"{self.method}-{self.bits}bit{group}{'-actorder' if self.act_order else ''}"


def is_packed_type(text: str) -> bool:
    """Return whether a name begins as those of GPTQ and AWQ types do."""
    return text.strip().upper().startswith(("GPTQ", "AWQ"))


def parse_packed_type(text: str) -> PackedType:
    """Return the type with this name, in any case.

    Raises:
        UsageError: the name is not a type, or there is no such combination.
    """
    match = _NAME.fullmatch(text.strip())
    if match is None:
        raise UsageError(f"unknown type {text!r}", hint=f"types are named {PACKED_FORMS}")
    method = cast("PackedMethod", match["method"].upper())
    kind = PackedType(method, int(match["bits"]), int(match["group"] or -1), bool(match["order"]))
    if kind.bits not in _BITS[method]:
        raise UsageError(
            f"{text}: {method} has {', '.join(map(str, _BITS[method]))} bits, got {kind.bits}",
            hint=f"types are named {PACKED_FORMS}",
        )
    if kind.group_size not in (*GROUP_SIZES, *((-1,) if method == "GPTQ" else ())):
        got = "no group size" if kind.group_size == -1 else f"a group size of {kind.group_size}"
        raise UsageError(
            f"{text}: {got} is not supported",
            hint=f"group sizes: {', '.join(map(str, GROUP_SIZES))}; GPTQ without one has a scale per row",
        )
    if kind.act_order and method == "AWQ":
        raise UsageError(f"{text}: AWQ has no act-order", hint=f"types are named {PACKED_FORMS}")
    return kind
