"""Which type each matrix of a GGUF file is stored in: llama.cpp's mixes, as it makes them today.

A quantized type is a mix: most matrices have its base type, those whose error shows most have more bits
(`llama_tensor_get_type_impl` in llama.cpp's `src/llama-quant.cpp`, the rules for Llama without experts and
without an importance matrix). Files made before 2024 followed other rules under the same names.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from meditron.model.config import LlamaConfig
from meditron.release.types import GGUFType
from meditron.store.gguf_types import tensor_type

__all__ = ["FLOATS", "MIXES", "Mix", "fitting", "wanted"]

FLOATS = ("F32", "F16", "BF16")
"""Those that are no quantization: each value is rounded by itself."""


class Place(NamedTuple):
    """Where a matrix stands."""

    block: int
    blocks: int
    group: int
    """Query heads that share a key and value head."""


Where = Callable[[Place], bool]


def _everywhere(place: Place) -> bool:
    return True


def _spread(place: Place) -> bool:
    """The first and last eighth of the blocks and every third of the others."""
    eighth = place.blocks // 8
    last = place.block >= 7 * place.blocks // 8
    return place.block < eighth or last or (place.block - eighth) % 3 == 2


def _first(blocks: int) -> Where:
    return lambda place: place.block < blocks


def _first_part(parts: int) -> Where:
    return lambda place: place.block < place.blocks // parts


def _grouped(place: Place) -> bool:
    return place.group >= 4


@dataclass(frozen=True, slots=True)
class Mix:
    """The types in one kind of file."""

    file_type: int
    """llama.cpp's number for it (`general.file_type`)."""
    base: str
    """Type of every matrix that no rule names."""
    rules: Mapping[str, Mapping[str, Where]] = field(default_factory=dict)
    """Kind of matrix → type → where it has that type; the first that holds."""


_ALL_3, _ALL_4, _ALL_5 = ({kind: _everywhere} for kind in ("Q3_K", "Q4_K", "Q5_K"))
_SPREAD_6 = {"Q6_K": _spread}

MIXES: dict[GGUFType, Mix] = {
    "F32": Mix(0, "F32"),
    "F16": Mix(1, "F16"),
    "BF16": Mix(32, "BF16"),
    "Q2_K": Mix(
        10,
        "Q2_K",
        {
            "attn_v": {"Q4_K": _grouped, "Q3_K": _everywhere},
            "attn_output": _ALL_3,
            "ffn_down": _ALL_3,
        },
    ),
    "Q3_K_S": Mix(11, "Q3_K"),
    "Q3_K_M": Mix(
        12,
        "Q3_K",
        {
            "attn_v": {"Q5_K": _first(2), "Q4_K": _everywhere},
            "attn_output": _ALL_4,
            "ffn_down": {"Q5_K": _first_part(16), "Q4_K": _everywhere},
        },
    ),
    "Q3_K_L": Mix(13, "Q3_K", {"attn_v": _ALL_5, "attn_output": _ALL_5, "ffn_down": _ALL_5}),
    "Q4_0": Mix(2, "Q4_0"),
    "Q4_K_S": Mix(14, "Q4_K", {"attn_v": {"Q5_K": _first(4)}, "ffn_down": {"Q5_K": _first_part(8)}}),
    "Q4_K_M": Mix(15, "Q4_K", {"attn_v": _SPREAD_6, "ffn_down": _SPREAD_6}),
    "Q5_0": Mix(8, "Q5_0"),
    "Q5_K_S": Mix(16, "Q5_K"),
    "Q5_K_M": Mix(17, "Q5_K", {"attn_v": _SPREAD_6, "ffn_down": _SPREAD_6}),
    "Q6_K": Mix(18, "Q6_K"),
    "Q8_0": Mix(7, "Q8_0"),
}
"""What each type means, one line a type where its rules are few."""

# K types have blocks of 256; for other rows llama.cpp takes the next type of blocks of 32.
_NARROWER = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}


def wanted(kind: GGUFType, name: str, config: LlamaConfig) -> str:
    """Type (ggml's name) that the mix has for the matrix of this GGUF name, whatever its rows."""
    mix = MIXES[kind]
    if kind in FLOATS:
        return mix.base
    if name == ("token_embd.weight" if config.tie_word_embeddings else "output.weight"):
        return "Q8_0" if mix.base == "Q8_0" else "Q6_K"
    if not name.startswith("blk."):
        return mix.base
    _, block, part, _ = name.split(".")
    blocks, group = config.num_hidden_layers, config.num_attention_heads // config.num_key_value_heads
    place = Place(int(block), blocks, group)
    rules = mix.rules.get(part, {})
    found = next((raised for raised, where in rules.items() if where(place)), mix.base)
    # Llama-2-70B's shape: eight heads share each row of values, so that more bits cost little.
    if part == "attn_v" and blocks == 80 and group > 1 and found in ("Q3_K", "Q4_K"):
        return "Q5_K"
    return found


def fitting(kind: str, width: int) -> str:
    """The type for rows of `width` values where `kind` is wanted: itself, a smaller block's, or F16.

    llama.cpp does the same, except that it refuses rows of no multiple of 32 in some types.
    """
    for candidate in (kind, _NARROWER.get(kind, kind)):
        if width % tensor_type(candidate).block == 0:
            return candidate
    return "F16"
