"""The supported model families and their differences, in one table.

All families are decoder-only transformers with RMSNorm, rotary positions, grouped-query attention and SwiGLU.
They differ in the points that the fields of `Family` name, and in nothing else.
"""

from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["FAMILIES", "Family", "FamilyName", "family_of_gguf", "supported_architectures"]

FamilyName = Literal["llama", "mistral", "qwen2", "qwen3"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Differences of a model family; its key in `FAMILIES` is HF's `model_type`."""

    title: str
    """Name in texts, with the versions that are supported."""
    architectures: tuple[str, ...]
    """Accepted values of `architectures` in config.json; the first is written."""
    gguf: str
    """GGUF's `general.architecture`, also the prefix of its metadata keys."""
    gguf_neighbour_rotation: bool
    """llama.cpp rotates neighbouring rows (2i, 2i + 1) of a query or key head; HF rotates (i, i + E/2)."""
    gguf_70b_group: int | None
    """llama.cpp counts a model of 80 blocks as a 70B, whose values get more bits when it is quantized, if at
    least so many query heads share a value head; None: never."""
    gguf_rope_factors: bool = False
    """llama.cpp reads Llama 3's rotary scaling (`rope_freqs.weight`); it refuses files of other families with
    that tensor."""
    qkv_bias: bool = False
    """The query, key and value projections have biases."""
    qk_norm: bool = False
    """Queries and keys are normalized per head before the rotation."""
    sliding_window: bool = False
    """config.json's `sliding_window`, if it is a number, hides the tokens that are further back."""
    hf_defaults: tuple[tuple[str, int], ...] = ()
    """Values that transformers assumes for keys that config.json omits, if they differ from Llama's."""
    hf_constants: tuple[tuple[str, Any], ...] = ()
    """Keys of config.json that have one supported value; absent keys have that value."""


# Sources: the config and modeling files of transformers' models llama, mistral, qwen2 and qwen3, and
# `src/llama-model.cpp` of llama.cpp (`llama_model_rope_type`, `load_hparams`).
FAMILIES: dict[FamilyName, Family] = {
    "llama": Family(
        title="Llama 1 to 3",
        # The first published conversions of Llama to HF use the second spelling.
        architectures=("LlamaForCausalLM", "LLaMAForCausalLM"),
        gguf="llama",
        gguf_neighbour_rotation=True,
        gguf_70b_group=2,
        gguf_rope_factors=True,
        hf_constants=(("attention_bias", False), ("mlp_bias", False)),
    ),
    "mistral": Family(
        title="Mistral",
        architectures=("MistralForCausalLM",),
        gguf="llama",  # llama.cpp treats Mistral as a Llama
        gguf_neighbour_rotation=True,
        gguf_70b_group=2,
        gguf_rope_factors=True,
        sliding_window=True,
        hf_defaults=(
            ("num_key_value_heads", 8),
            ("max_position_embeddings", 131_072),
            ("sliding_window", 4096),
        ),
    ),
    "qwen2": Family(
        title="Qwen2 and Qwen2.5",
        architectures=("Qwen2ForCausalLM",),
        gguf="qwen2",
        gguf_neighbour_rotation=False,
        gguf_70b_group=1,
        qkv_bias=True,
        hf_defaults=(("num_key_value_heads", 32), ("max_position_embeddings", 32_768)),
        hf_constants=(("use_sliding_window", False),),
    ),
    "qwen3": Family(
        title="Qwen3",
        architectures=("Qwen3ForCausalLM",),
        gguf="qwen3",
        gguf_neighbour_rotation=False,
        gguf_70b_group=None,
        qk_norm=True,
        hf_defaults=(("num_key_value_heads", 32), ("max_position_embeddings", 32_768), ("head_dim", 128)),
        hf_constants=(("attention_bias", False), ("use_sliding_window", False)),
    ),
}


def family_of_gguf(architecture: object) -> FamilyName | None:
    """Return the first family with this `general.architecture`; None if there is none."""
    return next((name for name, family in FAMILIES.items() if family.gguf == architecture), None)


def supported_architectures() -> str:
    """List the supported families, as a hint of an error."""
    listed = ", ".join(f"{family.architectures[0]} ({family.title})" for family in FAMILIES.values())
    return f"supported architectures: {listed}"
