"""Layout of a model in a GGUF file: tensor names, order of rows, metadata. This module does not import torch.

GGUF differs from HF in the tensors' names, in some families in the order of the query and key rows, and in
the place of Llama 3's rotary scaling (a tensor).
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from meditron.model.config import LlamaConfig, llama3_rope_divisors
from meditron.store.gguf import GGUF
from meditron.text.gguf_write import gguf_metadata
from meditron.text.tokenizer import Tokenizer

__all__ = [
    "ROPE_FACTORS",
    "gguf_header",
    "gguf_row_order",
    "gguf_tensor_name",
    "heads_to_reorder",
    "read_gguf_config",
    "rope_factors",
]

_TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_BLOCK = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
ROPE_FACTORS = "rope_freqs.weight"
"""Name of the tensor of Llama 3's rotary scaling."""
_QUANTIZATION_VERSION = 2  # ggml's GGML_QNT_VERSION: block formats since May 2023


def gguf_tensor_name(name: str) -> str:
    """Return a parameter's GGUF name: `blk.3.ffn_up.weight` for `model.layers.3.mlp.up_proj.weight`."""
    stem, _, kind = name.rpartition(".")
    if stem in _TOP:  # outside the blocks
        return f"{_TOP[stem]}.{kind}"
    _, _, index, part = stem.split(".", 3)
    return f"blk.{index}.{_BLOCK[part]}.{kind}"


def heads_to_reorder(name: str, config: LlamaConfig) -> int | None:
    """Return the number of heads of a projection whose rows GGUF orders differently, None for other weights.

    HF rotates the pairs (i, i + E/2) of a head, llama.cpp in some families the neighbours (2i, 2i + 1).
    """
    if not config.family.gguf_neighbour_rotation:
        return None
    if name.endswith("q_proj.weight"):
        return config.num_attention_heads
    return config.num_key_value_heads if name.endswith("k_proj.weight") else None


def gguf_row_order(name: str, config: LlamaConfig, rows: int) -> npt.NDArray[np.intp] | None:
    """Return the row in HF's order of each row of a weight in GGUF's order; None if both orders are equal.

    Args:
        name: HF's name of the weight.
        config: The model's config.
        rows: Number of its rows.
    """
    heads = heads_to_reorder(name, config)
    if heads is None:
        return None
    # HF's pairs (i, i + E/2) of a head become neighbours (2i, 2i + 1).
    return np.arange(rows).reshape(heads, 2, -1).transpose(0, 2, 1).reshape(-1)


def read_gguf_config(gguf: GGUF) -> LlamaConfig:
    """Read the config.

    Raises:
        InputError: an unsupported architecture or impossible values.
    """
    factors = None
    if ROPE_FACTORS in gguf.tensors:
        factors = tuple(float(factor) for factor in gguf.dequantize(ROPE_FACTORS).ravel())
    # GGUF has no key for a tied head: llama.cpp uses the embedding if there is no output tensor.
    tied = "output.weight" not in gguf.tensors
    return LlamaConfig.from_gguf(gguf.metadata, gguf.path, tied=tied, rope_factors=factors)


def gguf_header(
    config: LlamaConfig, tokenizer: Tokenizer, name: str, carried: Mapping[str, Any] = MappingProxyType({})
) -> dict[str, Any]:
    """Return a file's metadata except `general.file_type`, which depends on the types of its tensors.

    Args:
        config: The model's config.
        tokenizer: Its tokenizer, for vocabulary and chat template.
        name: Its name.
        carried: Metadata from the source: authors, licence, training data.

    Raises:
        UsageError: GGUF has no keys for the rotary scaling.
    """
    return {
        **carried,
        "general.architecture": config.family.gguf,
        "general.type": "model",
        "general.name": name,
        "general.quantization_version": _QUANTIZATION_VERSION,
        **config.to_gguf(),
        **gguf_metadata(tokenizer, config.vocab_size),
    }


def rope_factors(config: LlamaConfig) -> npt.NDArray[np.float32] | None:
    """Return the values of `rope_freqs.weight` for Llama 3's rotary scaling; None for other scalings."""
    scaling = config.rope_scaling
    if scaling is None or scaling.rope_type != "llama3":
        return None
    return np.array(llama3_rope_divisors(config.rope_theta, config.head_dim, scaling), dtype=np.float32)
