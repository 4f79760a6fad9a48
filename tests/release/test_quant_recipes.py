"""The type of each matrix; `test_llama_cpp` compares the recipes with llama.cpp itself."""

from typing import get_args

import pytest

from meditron.model.config import LlamaConfig
from meditron.model.families import FamilyName
from meditron.release.quant_recipes import QUANT_RECIPES, fallback_type, target_type
from meditron.release.types import GGUFType


def config(
    blocks: int = 32, *, heads: int = 32, shared: int = 32, tied: bool = False, family: FamilyName = "llama"
) -> LlamaConfig:
    return LlamaConfig(
        model_type=family,
        vocab_size=320, hidden_size=4096, intermediate_size=11008, num_hidden_layers=blocks,
        num_attention_heads=heads, num_key_value_heads=shared, head_dim=128, max_position_embeddings=4096,
        tie_word_embeddings=tied,
    )  # fmt: skip


def types(kind: GGUFType, part: str, shape: LlamaConfig) -> str:
    """The digits of a part's types, block by block."""
    return "".join(
        target_type(kind, f"blk.{block}.{part}.weight", shape)[1] for block in range(shape.num_hidden_layers)
    )


SPREAD = "66664464464464464464464464466666"


def test_every_type_has_a_recipe() -> None:
    assert list(QUANT_RECIPES) == list(get_args(GGUFType))
    assert len({recipe.file_type for recipe in QUANT_RECIPES.values()}) == len(QUANT_RECIPES)


@pytest.mark.parametrize(
    ("kind", "v", "out", "down"),
    [
        ("Q2_K", "3" * 32, "3" * 32, "3" * 32),
        ("Q3_K_S", "3" * 32, "3" * 32, "3" * 32),
        ("Q3_K_M", "55" + "4" * 30, "4" * 32, "55" + "4" * 30),
        ("Q3_K_L", "5" * 32, "5" * 32, "5" * 32),
        ("Q4_K_S", "5555" + "4" * 28, "4" * 32, "5555" + "4" * 28),
        ("Q4_K_M", SPREAD, "4" * 32, SPREAD),
        ("Q5_K_S", "5" * 32, "5" * 32, "5" * 32),
        ("Q5_K_M", SPREAD.replace("4", "5"), "5" * 32, SPREAD.replace("4", "5")),
        ("Q6_K", "6" * 32, "6" * 32, "6" * 32),
    ],
)
def test_the_recipes_of_a_7b(kind: GGUFType, v: str, out: str, down: str) -> None:
    shape = config()
    parts = [types(kind, part, shape) for part in ("attn_v", "attn_output", "ffn_down")]
    assert parts == [v, out, down]
    base = QUANT_RECIPES[kind].base_type[1] * 32
    assert {types(kind, part, shape) for part in ("attn_q", "attn_k", "ffn_up", "ffn_gate")} == {base}


def test_values_that_many_heads_share_have_more_bits() -> None:
    assert types("Q2_K", "attn_v", config(shared=8)) == "4" * 32
    seventy = config(80, heads=64, shared=8)
    assert types("Q4_K_S", "attn_v", seventy) == types("Q3_K_M", "attn_v", seventy) == "5" * 80
    assert set(types("Q4_K_S", "attn_v", config(80, heads=64, shared=64))) == {"4", "5"}


@pytest.mark.parametrize(
    ("family", "grouped", "alone"),
    [("llama", True, False), ("mistral", True, False), ("qwen2", True, True), ("qwen3", False, False)],
)
def test_which_families_have_a_70b(family: FamilyName, grouped: bool, alone: bool) -> None:
    for shared, raised in ((8, grouped), (64, alone)):
        shape = config(80, heads=64, shared=shared, family=family)
        assert (set(types("Q3_K_M", "attn_v", shape)) == {"5"}) is raised


def test_the_head_has_six_bits_and_a_tied_embedding_is_the_head() -> None:
    for kind, head in (("Q4_K_M", "Q6_K"), ("Q4_0", "Q6_K"), ("Q8_0", "Q8_0"), ("F16", "F16")):
        assert target_type(kind, "output.weight", config()) == head
        assert target_type(kind, "token_embd.weight", config(tied=True)) == head
        assert target_type(kind, "token_embd.weight", config()) == QUANT_RECIPES[kind].base_type


@pytest.mark.parametrize(
    ("kind", "stored"),
    [
        ("Q2_K", "Q4_0"),
        ("Q3_K", "Q4_0"),
        ("Q4_K", "Q5_0"),
        ("Q5_K", "Q5_1"),
        ("Q6_K", "Q8_0"),
        ("F16", "F16"),
    ],
)
def test_rows_that_are_not_whole_blocks_get_a_fallback_type(kind: str, stored: str) -> None:
    assert fallback_type(kind, 512) == kind
    assert fallback_type(kind, 576) == stored
    assert fallback_type(kind, 40) == "F16"
