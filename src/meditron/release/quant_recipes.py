"""The type of each matrix in a GGUF file, by llama.cpp's current quantization recipes.

Most matrices of a quantized file have its base type; those whose error matters most have more bits
(`llama_tensor_get_type_impl` in llama.cpp's `src/llama-quant.cpp`: the rules for models without experts and
without an importance matrix). The supported families differ only in which models count as a 70B. Files made
before 2024 followed other rules under the same names.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from meditron.model.config import LlamaConfig
from meditron.release.types import GGUFType
from meditron.store.gguf_types import FLOAT_TYPES, tensor_type

__all__ = ["QUANT_RECIPES", "QuantRecipe", "fallback_type", "target_type"]


class MatrixPlace(NamedTuple):
    """Position of a matrix in the model."""

    block_index: int
    block_count: int
    heads_per_group: int
    """Query heads that share a key and value head."""


Condition = Callable[[MatrixPlace], bool]


def _in_all_blocks(place: MatrixPlace) -> bool:
    return True


def _in_outer_and_every_third_block(place: MatrixPlace) -> bool:
    """Return True for the first and last eighth of the blocks and every third of the others."""
    eighth = place.block_count // 8
    last = place.block_index >= 7 * place.block_count // 8
    return place.block_index < eighth or last or (place.block_index - eighth) % 3 == 2


def _in_first_blocks(blocks: int) -> Condition:
    return lambda place: place.block_index < blocks


def _in_first_fraction_of_blocks(parts: int) -> Condition:
    return lambda place: place.block_index < place.block_count // parts


def _has_large_head_groups(place: MatrixPlace) -> bool:
    return place.heads_per_group >= 4


@dataclass(frozen=True, slots=True)
class QuantRecipe:
    """The ggml types of the matrices in one type of GGUF file."""

    file_type: int
    """llama.cpp's number of the type (`general.file_type`)."""
    base_type: str
    """Type of every matrix that no rule names."""
    rules: Mapping[str, Mapping[str, Condition]] = field(default_factory=dict)
    """Kind of matrix → type → condition for it; the first condition that is true counts."""


_ALL_3, _ALL_4, _ALL_5 = ({kind: _in_all_blocks} for kind in ("Q3_K", "Q4_K", "Q5_K"))
_SPREAD_6 = {"Q6_K": _in_outer_and_every_third_block}

QUANT_RECIPES: dict[GGUFType, QuantRecipe] = {
    "F32": QuantRecipe(0, "F32"),
    "F16": QuantRecipe(1, "F16"),
    "BF16": QuantRecipe(32, "BF16"),
    "Q2_K": QuantRecipe(
        10,
        "Q2_K",
        {
            "attn_v": {"Q4_K": _has_large_head_groups, "Q3_K": _in_all_blocks},
            "attn_output": _ALL_3,
            "ffn_down": _ALL_3,
        },
    ),
    "Q3_K_S": QuantRecipe(11, "Q3_K"),
    "Q3_K_M": QuantRecipe(
        12,
        "Q3_K",
        {
            "attn_v": {"Q5_K": _in_first_blocks(2), "Q4_K": _in_all_blocks},
            "attn_output": _ALL_4,
            "ffn_down": {"Q5_K": _in_first_fraction_of_blocks(16), "Q4_K": _in_all_blocks},
        },
    ),
    "Q3_K_L": QuantRecipe(13, "Q3_K", {"attn_v": _ALL_5, "attn_output": _ALL_5, "ffn_down": _ALL_5}),
    "Q4_0": QuantRecipe(2, "Q4_0"),
    "Q4_K_S": QuantRecipe(
        14,
        "Q4_K",
        {"attn_v": {"Q5_K": _in_first_blocks(4)}, "ffn_down": {"Q5_K": _in_first_fraction_of_blocks(8)}},
    ),
    "Q4_K_M": QuantRecipe(15, "Q4_K", {"attn_v": _SPREAD_6, "ffn_down": _SPREAD_6}),
    "Q5_0": QuantRecipe(8, "Q5_0"),
    "Q5_K_S": QuantRecipe(16, "Q5_K"),
    "Q5_K_M": QuantRecipe(17, "Q5_K", {"attn_v": _SPREAD_6, "ffn_down": _SPREAD_6}),
    "Q6_K": QuantRecipe(18, "Q6_K"),
    "Q8_0": QuantRecipe(7, "Q8_0"),
}
"""Type of a file → its recipe."""

# K types have blocks of 256 values. For rows whose length is not a multiple of 256, llama.cpp uses the
# nearest larger type with blocks of 32.
_NARROWER = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"}


def target_type(kind: GGUFType, name: str, config: LlamaConfig) -> str:
    """Return the type (ggml's name) that the recipe has for a matrix, whatever the length of its rows.

    Args:
        kind: Type of the file.
        name: GGUF name of the matrix.
        config: The model's shape.
    """
    recipe = QUANT_RECIPES[kind]
    if kind in FLOAT_TYPES:
        return recipe.base_type
    if name == ("token_embd.weight" if config.tie_word_embeddings else "output.weight"):
        return "Q8_0" if recipe.base_type == "Q8_0" else "Q6_K"
    if not name.startswith("blk."):
        return recipe.base_type
    _, block, part, _ = name.split(".")
    blocks, group = config.num_hidden_layers, config.num_attention_heads // config.num_key_value_heads
    place = MatrixPlace(int(block), blocks, group)
    rules = recipe.rules.get(part, {})
    raised = next((type for type, holds in rules.items() if holds(place)), recipe.base_type)
    # In a 70B eight query heads share each value head, so more bits for its matrix cost little.
    least = config.family.gguf_70b_group
    is_70b = blocks == 80 and least is not None and group >= least
    return "Q5_K" if part == "attn_v" and is_70b and raised in ("Q3_K", "Q4_K") else raised


def fallback_type(kind: str, width: int) -> str:
    """Return the type for rows of `width` values: `kind`, else a type of smaller blocks, else F16.

    llama.cpp does the same, except that in some types it refuses rows whose length is not a multiple of 32.
    """
    for candidate in (kind, _NARROWER.get(kind, kind)):
        if width % tensor_type(candidate).block_size == 0:
            return candidate
    return "F16"
