"""A Llama in GGUF, as llama.cpp lays it out: other names, other rows, another place for Llama 3's scaling."""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from meditron.ground.errors import UsageError
from meditron.model.config import LlamaConfig, RopeScaling, llama3_factors
from meditron.model.llama import Llama
from meditron.model.tensors import DTYPES, check_tensors, parameter_shapes, state_of
from meditron.store.gguf import GGUF, Deferred, write_gguf
from meditron.text.gguf_vocab import gguf_metadata
from meditron.text.tokenizer import Tokenizer

__all__ = ["gguf_config", "gguf_name", "gguf_tensors", "save_gguf"]

_TOP = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
_BLOCK = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_ROPE_FACTORS = "rope_freqs.weight"


def gguf_name(name: str) -> str:
    """GGUF's name of a parameter: `model.layers.3.mlp.up_proj.weight` is `blk.3.ffn_up.weight`."""
    stem, _, kind = name.rpartition(".")
    if stem in _TOP:
        return f"{_TOP[stem]}.{kind}"
    _, _, index, part = stem.split(".", 3)
    return f"blk.{index}.{_BLOCK[part]}.{kind}"


def _rotating_heads(name: str, config: LlamaConfig) -> int | None:
    """The heads of the two projections whose rows are ordered otherwise, None for every other weight.

    HF turns the pairs (i, i + E/2) of a head, llama.cpp the neighbours (2i, 2i + 1).
    """
    if name.endswith("q_proj.weight"):
        return config.num_attention_heads
    return config.num_key_value_heads if name.endswith("k_proj.weight") else None


def _to_gguf_rows(weight: Tensor, heads: int | None) -> Tensor:
    if heads is None:
        return weight
    return weight.reshape(heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def _from_gguf_rows(weight: Tensor, heads: int | None) -> Tensor:
    if heads is None:
        return weight
    return weight.reshape(heads, -1, 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def gguf_config(gguf: GGUF) -> LlamaConfig:
    """The model's shape; InputError for another architecture or one that cannot be."""
    factors = None
    if _ROPE_FACTORS in gguf.tensors:
        factors = tuple(float(factor) for factor in gguf.dequantize(_ROPE_FACTORS).ravel())
    tied = "output.weight" not in gguf.tensors
    return LlamaConfig.from_gguf(gguf.metadata, gguf.path, tied=tied, rope_factors=factors)


def gguf_tensors(gguf: GGUF, config: LlamaConfig) -> Iterator[tuple[str, Tensor]]:
    """Every parameter under HF's name, dequantized to fp32, rows in HF's order, one at a time.

    Raises InputError, before anything is read, for missing, unexpected or misshapen tensors.
    """
    wanted = parameter_shapes(config)
    found = {name: info.shape for name, info in gguf.tensors.items() if name != _ROPE_FACTORS}
    check_tensors(gguf.path, {gguf_name(name): shape for name, shape in wanted.items()}, found)
    for name in wanted:
        weight = torch.from_numpy(gguf.dequantize(gguf_name(name)))
        yield name, _from_gguf_rows(weight, _rotating_heads(name, config))


def save_gguf(
    model: Llama | Mapping[str, Tensor],
    config: LlamaConfig,
    tokenizer: Tokenizer,
    path: Path,
    type: Literal["F16", "F32"] = "F16",
) -> None:
    """Write one GGUF file that llama.cpp runs: matrices in `type`, norms in fp32, vocabulary and template.

    Streams: one tensor is in memory at a time. Raises UsageError for weights that `type` cannot hold and
    for rotary scalings that GGUF cannot say.
    """
    state = state_of(model)
    metadata = {
        "general.architecture": "llama",
        "general.name": path.stem,
        "general.file_type": {"F32": 0, "F16": 1}[type],
        **config.to_gguf(),
        **_scaling_metadata(config.rope_scaling),
        **gguf_metadata(tokenizer, config.vocab_size),
    }
    tensors = [
        (gguf_name(name), _deferred(name, state[name], config, type)) for name in parameter_shapes(config)
    ]
    write_gguf(path, metadata, [*_rope_factors(config), *tensors])


def _deferred(name: str, weight: Tensor, config: LlamaConfig, kind: str) -> Deferred:
    # llama.cpp wants what it does not multiply with, the norms, in fp32.
    dtype = torch.float32 if weight.dim() == 1 else DTYPES[kind]
    numpy_type = np.float32 if dtype == torch.float32 else np.float16
    return Deferred(tuple(weight.shape), numpy_type, partial(_array, name, weight, config, dtype))


def _array(name: str, weight: Tensor, config: LlamaConfig, dtype: torch.dtype) -> np.ndarray:
    rows = _to_gguf_rows(weight.detach().cpu(), _rotating_heads(name, config)).to(dtype)
    if not bool(rows.isfinite().all()):
        raise UsageError(f"{name} has values that {dtype} cannot hold", hint="write F32 instead")
    return rows.contiguous().numpy()


def _rope_factors(config: LlamaConfig) -> list[tuple[str, np.ndarray]]:
    scaling = config.rope_scaling
    if scaling is None or scaling.rope_type != "llama3":
        return []
    factors = llama3_factors(config.rope_theta, config.head_dim, scaling)
    return [(_ROPE_FACTORS, np.array(factors, dtype=np.float32))]


def _scaling_metadata(scaling: RopeScaling | None) -> dict[str, Any]:
    """Linear and YaRN scaling as metadata; Llama 3's is a tensor."""
    if scaling is None or scaling.rope_type == "llama3":
        return {}
    said = scaling.model_dump(exclude_defaults=True)
    if scaling.rope_type == "dynamic" or not said.keys() <= {
        "rope_type",
        "factor",
        "original_max_position_embeddings",
    }:
        raise UsageError(f"GGUF cannot say the rotary scaling {said}")
    metadata = {"llama.rope.scaling.type": scaling.rope_type, "llama.rope.scaling.factor": scaling.factor}
    if scaling.original_max_position_embeddings is not None:
        metadata["llama.rope.scaling.original_context_length"] = scaling.original_max_position_embeddings
    return metadata
