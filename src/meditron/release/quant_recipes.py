"""The type of each matrix in a GGUF file, by llama.cpp's quantization recipes.

Most matrices of a quantized file have its base type; those whose error matters most have more bits
(`llama_tensor_get_type_impl` in llama.cpp's `src/llama-quant.cpp`: the rules for models without experts). The
supported families differ only in which models count as a 70B.

Files made before 2024, such as the published quantized 70B, followed other rules under the same names
(`get_k_quant_type` in llama.cpp's `llama.cpp` of November 2023). They are the mix `2023`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from meditron.core.errors import UsageError
from meditron.model.config import LlamaConfig
from meditron.release.types import GGUFType, Mix
from meditron.store.gguf_types import FLOAT_TYPES, tensor_type

__all__ = [
    "DEFAULT_OPTIONS",
    "QUANT_RECIPES",
    "QuantRecipe",
    "RecipeOptions",
    "fallback_type",
    "recipe_for",
    "requires_imatrix",
    "stored_type",
    "target_type",
]


class RecipeOptions(NamedTuple):
    """Options on which the types of a file's matrices depend."""

    mix: Mix = "current"
    """The rules."""
    has_imatrix: bool = False
    """The matrices are quantized with an importance matrix."""


DEFAULT_OPTIONS = RecipeOptions()


class MatrixPlace(NamedTuple):
    """Position of a matrix in the model."""

    block_index: int
    block_count: int
    heads_per_group: int
    """Query heads that share a key and value head."""
    has_imatrix: bool


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


def _in_middle_blocks(place: MatrixPlace) -> bool:
    """Return False for the first and last eighth of the blocks."""
    return place.block_count // 8 <= place.block_index < 7 * place.block_count // 8


def _has_large_head_groups(place: MatrixPlace) -> bool:
    return place.heads_per_group >= 4


def _in_first_eighth_with_imatrix(place: MatrixPlace) -> bool:
    return place.has_imatrix and place.block_index < place.block_count // 8


def _in_first_eighth_without_imatrix(place: MatrixPlace) -> bool:
    return not place.has_imatrix and place.block_index < place.block_count // 8


@dataclass(frozen=True, slots=True)
class QuantRecipe:
    """The ggml types of the matrices in one type of GGUF file."""

    file_type: int
    """llama.cpp's number of the type (`general.file_type`)."""
    base_type: str
    """Type of every matrix that no rule names."""
    rules: Mapping[str, Mapping[str, Condition]] = field(default_factory=dict)
    """Kind of matrix → type → condition for it; the first condition that is true counts."""
    head: str = "Q6_K"
    """Type of the head, and of an embedding that is the head."""
    embedding: str | None = None
    """Type of an embedding that is not the head; the base type if None."""
    raises_70b: bool = True
    """The value matrices of a 70B have at least five bits."""


_ALL_3, _ALL_4, _ALL_5 = ({kind: _in_all_blocks} for kind in ("Q3_K", "Q4_K", "Q5_K"))
_SPREAD_6 = {"Q6_K": _in_outer_and_every_third_block}
_EIGHTH = _in_first_fraction_of_blocks(8)
_GROUPS_4: Mapping[str, Condition] = {"Q4_K": _has_large_head_groups}


def _below_three_bits(
    file_type: int, base: str, raised: str, embedding: str, output: str | None
) -> QuantRecipe:
    """Return the recipe of an IQ1 or IQ2 type, whose sensitive matrices have the type `raised`."""
    rules: dict[str, Mapping[str, Condition]] = {
        "attn_v": {**_GROUPS_4, raised: _in_all_blocks},
        "ffn_down": {raised: _EIGHTH},
    }
    if output is not None:
        rules["attn_output"] = {output: _in_all_blocks}
    return QuantRecipe(file_type, base, rules, head="Q5_K", embedding=embedding, raises_70b=False)


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
    "Q4_0": QuantRecipe(2, "Q4_0", {"ffn_down": {"Q4_1": _in_first_eighth_with_imatrix}}),
    "Q4_1": QuantRecipe(3, "Q4_1"),
    "Q4_K_S": QuantRecipe(
        14,
        "Q4_K",
        {"attn_v": {"Q5_K": _in_first_blocks(4)}, "ffn_down": {"Q5_K": _in_first_fraction_of_blocks(8)}},
    ),
    "Q4_K_M": QuantRecipe(15, "Q4_K", {"attn_v": _SPREAD_6, "ffn_down": _SPREAD_6}),
    "Q5_0": QuantRecipe(8, "Q5_0", {"ffn_down": {"Q5_1": _in_first_eighth_with_imatrix}}),
    "Q5_1": QuantRecipe(9, "Q5_1"),
    "Q5_K_S": QuantRecipe(16, "Q5_K"),
    "Q5_K_M": QuantRecipe(17, "Q5_K", {"attn_v": _SPREAD_6, "ffn_down": _SPREAD_6}),
    "Q6_K": QuantRecipe(18, "Q6_K"),
    "Q8_0": QuantRecipe(7, "Q8_0", head="Q8_0"),
    "IQ1_S": _below_three_bits(24, "IQ1_S", "Q2_K", "Q2_K", "IQ2_XXS"),
    "IQ1_M": _below_three_bits(31, "IQ1_M", "Q2_K", "Q2_K", "IQ2_XXS"),
    "IQ2_XXS": _below_three_bits(19, "IQ2_XXS", "Q2_K", "Q2_K", None),
    "IQ2_XS": _below_three_bits(20, "IQ2_XS", "Q2_K", "Q2_K", None),
    "IQ2_S": _below_three_bits(28, "IQ2_XS", "IQ3_S", "IQ3_S", "IQ3_S"),
    "IQ2_M": _below_three_bits(29, "IQ2_S", "IQ3_S", "IQ3_S", "IQ3_S"),
    "IQ3_XXS": QuantRecipe(
        23,
        "IQ3_XXS",
        {
            "attn_v": {**_GROUPS_4, "IQ3_S": lambda place: not place.has_imatrix},
            "attn_k": {"IQ2_S": _in_all_blocks},
            "attn_q": {"IQ2_S": _in_all_blocks},
            "attn_output": {"IQ3_S": _in_all_blocks},
            "ffn_down": {
                "Q4_K": _in_first_eighth_without_imatrix,
                "Q3_K": lambda place: not place.has_imatrix,
            },
        },
        head="Q5_K",
        embedding="IQ3_S",
    ),
    "IQ3_XS": QuantRecipe(
        22,
        "IQ3_S",
        {
            "attn_v": _GROUPS_4,
            "attn_k": {"IQ3_XXS": _in_all_blocks},
            "attn_q": {"IQ3_XXS": _in_all_blocks},
            "ffn_gate": {"IQ3_XXS": _in_middle_blocks},
            "ffn_up": {"IQ3_XXS": _in_middle_blocks},
        },
    ),
    "IQ3_S": QuantRecipe(26, "IQ3_S", {"attn_v": _GROUPS_4}),
    "IQ3_M": QuantRecipe(
        27, "IQ3_S", {"attn_v": _ALL_4, "attn_output": _ALL_4, "ffn_down": {"Q4_K": _EIGHTH}}
    ),
    "IQ4_XS": QuantRecipe(
        30,
        "IQ4_XS",
        {"attn_v": {"Q5_K": _has_large_head_groups}, "ffn_down": {"Q5_K": _in_first_eighth_without_imatrix}},
    ),
    "IQ4_NL": QuantRecipe(
        25,
        "IQ4_NL",
        {"attn_v": {"Q5_K": _has_large_head_groups}, "ffn_down": {"Q5_K": _in_first_eighth_without_imatrix}},
    ),
}
"""Type of a file → its recipe in the mix `current`."""

_SINCE_2024 = frozenset(kind for kind in QUANT_RECIPES if kind.startswith("IQ"))
_RECIPES_2023: dict[GGUFType, QuantRecipe] = {
    "Q2_K": QuantRecipe(
        10,
        "Q2_K",
        dict.fromkeys(("attn_v", "attn_output", "ffn_down", "ffn_gate", "ffn_up"), _ALL_3),
    ),
    "Q3_K_M": QuantRecipe(
        12,
        "Q3_K",
        {
            **QUANT_RECIPES["Q3_K_M"].rules,
            "ffn_down": {"Q5_K": _in_first_blocks(2), "Q4_K": _in_all_blocks},
        },
    ),
    "Q4_K_S": QuantRecipe(
        14, "Q4_K", {"attn_v": {"Q5_K": _in_first_blocks(4)}, "ffn_down": {"Q5_K": _in_first_blocks(4)}}
    ),
    "Q4_0": replace(QUANT_RECIPES["Q4_0"], rules={}),
    "Q5_0": replace(QUANT_RECIPES["Q5_0"], rules={}),
}
"""Recipes of the mix `2023` that differ from the current ones."""


# K and IQ types have blocks of 256 values. For rows whose length is not a multiple of 256, llama.cpp uses the
# nearest type with blocks of 32.
_NARROWER = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0"} | dict.fromkeys(
    ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_XS"), "IQ4_NL"
)
_NARROWER_2023 = _NARROWER | {"Q3_K": "Q4_1"}

_NEED_IMATRIX = frozenset({"IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS"})
_EMBEDDING, _HEAD = "token_embd.weight", "output.weight"


def recipe_for(kind: GGUFType, mix: Mix) -> QuantRecipe:
    """Return the recipe of a type; UsageError for a type that is younger than the mix."""
    if mix == "2023":
        if kind in _SINCE_2024:
            raise UsageError(f"{kind} did not exist in 2023", hint="use --mix current")
        return _RECIPES_2023.get(kind, QUANT_RECIPES[kind])
    return QUANT_RECIPES[kind]


def target_type(
    kind: GGUFType, name: str, config: LlamaConfig, options: RecipeOptions = DEFAULT_OPTIONS
) -> str:
    """Return the type (ggml's name) that the recipe has for a matrix, whatever the length of its rows.

    Args:
        kind: Type of the file.
        name: GGUF name of the matrix.
        config: The model's shape.
        options: The rules, and whether there is an importance matrix.
    """
    recipe = recipe_for(kind, options.mix)
    if kind in FLOAT_TYPES:
        return recipe.base_type
    if _is_head(name, config):
        return recipe.head
    if not name.startswith("blk."):
        return recipe.embedding or recipe.base_type
    _, block, part, _ = name.split(".")
    blocks, group = config.num_hidden_layers, config.num_attention_heads // config.num_key_value_heads
    place = MatrixPlace(int(block), blocks, group, options.has_imatrix)
    rules = recipe.rules.get(part, {})
    raised = next((type for type, holds in rules.items() if holds(place)), recipe.base_type)
    # In a 70B eight query heads share each value head, so more bits for its matrix cost little.
    least = config.family.gguf_70b_group
    is_70b = blocks == 80 and least is not None and group >= least and recipe.raises_70b
    return "Q5_K" if part == "attn_v" and is_70b and raised in ("Q3_K", "Q4_K") else raised


def stored_type(
    kind: GGUFType, name: str, width: int, config: LlamaConfig, options: RecipeOptions = DEFAULT_OPTIONS
) -> str:
    """Return the type in which a matrix is stored: the recipe's, or its fallback.

    Args:
        kind: Type of the file.
        name: GGUF name of the matrix.
        width: Length of its rows.
        config: The model's shape.
        options: The rules, and whether there is an importance matrix.
    """
    base = recipe_for(kind, options.mix).base_type
    if kind not in FLOAT_TYPES and _is_head(name, config) and width % tensor_type(base).block_size:
        return fallback_type("Q8_0", width)
    return fallback_type(target_type(kind, name, config, options), width, options.mix)


def fallback_type(kind: str, width: int, mix: Mix = "current") -> str:
    """Return the type for rows of `width` values: `kind`, else a type of smaller blocks, else F16.

    llama.cpp does the same, except that in some types it refuses rows whose length is not a multiple of 32.
    """
    narrower = _NARROWER_2023 if mix == "2023" else _NARROWER
    for candidate in (kind, narrower.get(kind, kind)):
        if width % tensor_type(candidate).block_size == 0:
            return candidate
    return "F16"


def requires_imatrix(name: str, type: str) -> bool:
    """Return True if llama.cpp refuses to write a matrix in this type without an importance matrix."""
    return type in _NEED_IMATRIX and name not in (_EMBEDDING, _HEAD)


def _is_head(name: str, config: LlamaConfig) -> bool:
    # llama.cpp uses the embedding as the head if there is no output tensor.
    return name == (_EMBEDDING if config.tie_word_embeddings else _HEAD)
