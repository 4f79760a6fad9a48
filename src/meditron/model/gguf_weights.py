"""Reading and writing a model as a GGUF file.

GGUF differs from HF in the tensors' names, in some families in the order of the query and key rows, and in
the place of Llama 3's rotary scaling (a tensor).
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor

from meditron.model.config import LlamaConfig, llama3_rope_divisors
from meditron.model.llama import Llama
from meditron.model.tensors import DTYPES, check_tensors, parameter_shapes, state_dict_of, weight_range_error
from meditron.store.gguf import GGUF, Array, LazyTensor, write_gguf
from meditron.text.gguf_write import gguf_metadata
from meditron.text.tokenizer import Tokenizer

__all__ = [
    "Encode",
    "GGUFWeights",
    "encode_floats",
    "from_neighbour_order",
    "gguf_header",
    "gguf_tensor_name",
    "lazy_gguf_tensors",
    "read_gguf_config",
    "save_gguf",
    "to_gguf_row_order",
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
_ROPE_FACTORS = "rope_freqs.weight"
_QUANTIZATION_VERSION = 2  # ggml's GGML_QNT_VERSION: block formats since May 2023

Encode = Callable[[str, Tensor, str], Array]
"""Encoder of a tensor: (HF's name, weight in llama.cpp's row order, ggml type) → the bytes to write."""


def gguf_tensor_name(name: str) -> str:
    """Return a parameter's GGUF name: `blk.3.ffn_up.weight` for `model.layers.3.mlp.up_proj.weight`."""
    stem, _, kind = name.rpartition(".")
    if stem in _TOP:  # outside the blocks
        return f"{_TOP[stem]}.{kind}"
    _, _, index, part = stem.split(".", 3)
    return f"blk.{index}.{_BLOCK[part]}.{kind}"


def _heads_to_reorder(name: str, config: LlamaConfig) -> int | None:
    """Return the number of heads of a projection whose rows GGUF orders differently, None for other weights.

    HF rotates the pairs (i, i + E/2) of a head, llama.cpp in some families the neighbours (2i, 2i + 1).
    """
    if not config.family.gguf_neighbour_rotation:
        return None
    if name.endswith("q_proj.weight"):
        return config.num_attention_heads
    return config.num_key_value_heads if name.endswith("k_proj.weight") else None


def to_gguf_row_order(name: str, weight: Tensor, config: LlamaConfig) -> Tensor:
    """Reorder rows from HF's pairs (i, i + E/2) to GGUF's rotated neighbours (2i, 2i + 1).

    Args:
        name: HF's name of the weight; the rows of most weights have the same order in both.
        weight: The weight, or another matrix with its rows.
        config: The model's config.
    """
    heads = _heads_to_reorder(name, config)
    if heads is None:
        return weight
    return weight.reshape(heads, 2, -1, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def from_neighbour_order(weight: Tensor, heads: int | None) -> Tensor:
    """Reorder the rows of a projection from rotated neighbours (2i, 2i + 1) to HF's pairs (i, i + E/2).

    `heads`: the number of heads; None for a weight that is not rotated, which is returned unchanged.
    """
    if heads is None:
        return weight
    return weight.reshape(heads, -1, 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


def read_gguf_config(gguf: GGUF) -> LlamaConfig:
    """Read the config.

    Raises:
        InputError: an unsupported architecture or impossible values.
    """
    factors = None
    if _ROPE_FACTORS in gguf.tensors:
        factors = tuple(float(factor) for factor in gguf.dequantize(_ROPE_FACTORS).ravel())
    # GGUF has no key for a tied head: llama.cpp uses the embedding if there is no output tensor.
    tied = "output.weight" not in gguf.tensors
    return LlamaConfig.from_gguf(gguf.metadata, gguf.path, tied=tied, rope_factors=factors)


class GGUFWeights(Mapping[str, Tensor]):
    """Weights by HF's names, in HF's row order, dequantized to fp32 at each access.

    Raises:
        InputError: before a weight is read: a tensor is missing, unexpected or of the wrong shape.
    """

    def __init__(
        self, gguf: GGUF, config: LlamaConfig, *, dequantize: Callable[[str], Array] | None = None
    ) -> None:
        """Open the weights; `dequantize` reads a tensor by its GGUF name, by default with gguf-py's code."""
        self._gguf, self._config = gguf, config
        self._dequantize = dequantize or gguf.dequantize
        self._shapes = parameter_shapes(config)
        stored = {name: info.shape for name, info in gguf.tensors.items() if name != _ROPE_FACTORS}
        # Llama 3's divisors are part of the config, not a weight.
        check_tensors(
            gguf.path, {gguf_tensor_name(name): shape for name, shape in self._shapes.items()}, stored
        )

    def __getitem__(self, name: str) -> Tensor:
        """Read a weight; it stays valid after the file is closed."""
        if name not in self._shapes:
            raise KeyError(name)
        weight = torch.from_numpy(self._dequantize(gguf_tensor_name(name)))
        return from_neighbour_order(weight, _heads_to_reorder(name, self._config))

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names in the model's order."""
        return iter(self._shapes)

    def __len__(self) -> int:
        """Return the number of weights."""
        return len(self._shapes)


def save_gguf(
    model: Llama | Mapping[str, Tensor],
    config: LlamaConfig,
    tokenizer: Tokenizer,
    path: Path,
    type: Literal["F16", "F32"] = "F16",
    *,
    name: str | None = None,
    carried: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Write a GGUF file that llama.cpp runs, with vocabulary and chat template.

    One tensor is converted at a time: with a lazy mapping of weights, memory holds a single tensor.

    Args:
        model: The model, or its weights by HF's names.
        config: Its config.
        tokenizer: Its tokenizer.
        path: The file to write.
        type: Type of the matrices; norms are F32.
        name: The model's name; the file's stem when absent.
        carried: Further metadata.

    Raises:
        UsageError: a weight overflows in `type`, or GGUF has no keys for the rotary scaling.
    """
    header = gguf_header(config, tokenizer, name or path.stem, carried)
    metadata = header | {"general.file_type": {"F32": 0, "F16": 1}[type]}
    write_gguf(
        path, metadata, lazy_gguf_tensors(state_dict_of(model), config, lambda *_: type, encode_floats)
    )


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


def lazy_gguf_tensors(
    weights: Mapping[str, Tensor], config: LlamaConfig, type_of: Callable[[str, int], str], encode: Encode
) -> list[tuple[str, LazyTensor]]:
    """Return the tensors of a GGUF file as lazy tensors: each is read and encoded when it is written.

    Args:
        weights: Weights by HF's names.
        config: The model's config.
        type_of: Returns the ggml type of a matrix from its GGUF name and the width of its rows. Norms are
            F32, the only type that llama.cpp accepts for them.
        encode: Encodes a tensor.
    """
    tensors = _rope_factor_tensor(config, encode)
    for hf_name, shape in parameter_shapes(config).items():
        name = gguf_tensor_name(hf_name)
        kind = "F32" if len(shape) == 1 else type_of(name, shape[-1])
        load = partial(_encode_weight, hf_name, weights, config, kind, encode)
        tensors.append((name, LazyTensor(shape, kind, load)))
    return tensors


def _encode_weight(
    name: str, weights: Mapping[str, Tensor], config: LlamaConfig, kind: str, encode: Encode
) -> Array:
    # The tensor is made contiguous, because quantizers read raw memory row after row.
    return encode(name, to_gguf_row_order(name, weights[name].detach().cpu(), config).contiguous(), kind)


def encode_floats(name: str, weight: Tensor, kind: str) -> Array:
    """Convert a weight to F32, F16 or BF16 with one rounding; UsageError if a value overflows."""
    values, extremes = weight.to(DTYPES[kind]), torch.stack(weight.aminmax())
    # Rounding is monotonic: if minimum and maximum stay finite, all values do. A NaN makes both minimum and
    # maximum NaN.
    if not bool(extremes.to(values.dtype).isfinite().all()):
        raise weight_range_error(name, kind, finite=bool(extremes.isfinite().all()))
    # numpy has no bfloat16, so the raw bytes are returned.
    return values.view(torch.uint8).numpy() if kind == "BF16" else values.numpy()


def _rope_factor_tensor(config: LlamaConfig, encode: Encode) -> list[tuple[str, LazyTensor]]:
    """Return the GGUF tensor of Llama 3's rotary scaling; an empty list for other scalings."""
    scaling = config.rope_scaling
    if scaling is None or scaling.rope_type != "llama3":
        return []
    factors = torch.tensor(llama3_rope_divisors(config.rope_theta, config.head_dim, scaling))
    load = partial(encode, _ROPE_FACTORS, factors, "F32")
    return [(_ROPE_FACTORS, LazyTensor(tuple(factors.shape), "F32", load))]
