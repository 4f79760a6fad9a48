"""A Llama in GGUF, as llama.cpp lays it out: other names, other rows, another place for Llama 3's scaling."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor

from meditron.model.config import LlamaConfig, llama3_factors
from meditron.model.llama import Llama
from meditron.model.tensors import DTYPES, cannot_hold, check_tensors, parameter_shapes, state_of
from meditron.store.gguf import GGUF, Array, LazyTensor, require_whole, write_gguf
from meditron.text.gguf_write import gguf_metadata
from meditron.text.tokenizer import Tokenizer

__all__ = [
    "Encode",
    "GGUFWeights",
    "as_floats",
    "gguf_config",
    "gguf_header",
    "gguf_name",
    "model_tensors",
    "save_gguf",
]

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
_QUANTIZATION_VERSION = 2  # ggml's GGML_QNT_VERSION: the blocks' layouts as they are since May 2023

Encode = Callable[[str, Tensor, str], Array]
"""HF's name, a matrix in llama.cpp's order of rows, ggml's type → what is written."""


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
    """Read the model's shape; InputError for another architecture, a bad shape, or a part of a split file."""
    require_whole(gguf)
    factors = None
    if _ROPE_FACTORS in gguf.tensors:
        factors = tuple(float(factor) for factor in gguf.dequantize(_ROPE_FACTORS).ravel())
    tied = "output.weight" not in gguf.tensors
    return LlamaConfig.from_gguf(gguf.metadata, gguf.path, tied=tied, rope_factors=factors)


class GGUFWeights(Mapping[str, Tensor]):
    """Every parameter under HF's name, dequantized to fp32, rows in HF's order, when it is asked for.

    Raises InputError, before anything is read, for missing, unexpected or misshapen tensors.
    """

    def __init__(
        self, gguf: GGUF, config: LlamaConfig, *, dequantize: Callable[[str], Array] | None = None
    ) -> None:
        """`dequantize` reads a tensor by its GGUF name; the file's own reference when absent."""
        self._gguf, self._config = gguf, config
        self._dequantize = dequantize or gguf.dequantize
        self._shapes = parameter_shapes(config)
        found = {name: info.shape for name, info in gguf.tensors.items() if name != _ROPE_FACTORS}
        check_tensors(gguf.path, {gguf_name(name): shape for name, shape in self._shapes.items()}, found)

    def __getitem__(self, name: str) -> Tensor:
        """The parameter, which outlives the file."""
        if name not in self._shapes:
            raise KeyError(name)
        weight = torch.from_numpy(self._dequantize(gguf_name(name)))
        return _from_gguf_rows(weight, _rotating_heads(name, self._config))

    def __iter__(self) -> Iterator[str]:
        """Names, in the model's order."""
        return iter(self._shapes)

    def __len__(self) -> int:
        """Parameters."""
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
    """Write one GGUF file that llama.cpp runs: matrices in `type`, norms in fp32, vocabulary and template.

    Streams: one tensor is in memory at a time, as far as the weights do. `name` is what the model is called
    (the file's stem when absent), `carried` further metadata. Raises UsageError for weights that `type`
    cannot hold and for rotary scalings that GGUF cannot say.
    """
    header = gguf_header(config, tokenizer, name or path.stem, carried)
    metadata = header | {"general.file_type": {"F32": 0, "F16": 1}[type]}
    write_gguf(path, metadata, model_tensors(state_of(model), config, lambda *_: type, as_floats))


def gguf_header(
    config: LlamaConfig, tokenizer: Tokenizer, name: str, carried: Mapping[str, Any] = MappingProxyType({})
) -> dict[str, Any]:
    """The metadata of a model's file, whatever its types: its shape, its vocabulary and chat template.

    `general.file_type`, llama.cpp's number for the mix of types, is the writer's to add. `carried` is what
    the source says beside its shape and vocabulary: authors, licence, training data. UsageError for
    rotary scalings that GGUF cannot say.
    """
    return {
        **carried,
        "general.architecture": "llama",
        "general.type": "model",
        "general.name": name,
        "general.quantization_version": _QUANTIZATION_VERSION,
        **config.to_gguf(),
        **gguf_metadata(tokenizer, config.vocab_size),
    }


def model_tensors(
    weights: Mapping[str, Tensor], config: LlamaConfig, type_of: Callable[[str, int], str], encode: Encode
) -> list[tuple[str, LazyTensor]]:
    """The tensors of a model's file, each read and encoded when it is written.

    `type_of` gives ggml's type of a matrix by its name in GGUF and the width of its rows; norms are F32, as
    llama.cpp reads them.
    """
    tensors = _rope_factors(config, encode)
    for hf_name, shape in parameter_shapes(config).items():
        name = gguf_name(hf_name)
        kind = "F32" if len(shape) == 1 else type_of(name, shape[-1])
        load = partial(_encoded, hf_name, weights, _rotating_heads(hf_name, config), kind, encode)
        tensors.append((name, LazyTensor(shape, kind, load)))
    return tensors


def _encoded(name: str, weights: Mapping[str, Tensor], heads: int | None, kind: str, encode: Encode) -> Array:
    return encode(name, _to_gguf_rows(weights[name].detach().cpu(), heads).contiguous(), kind)


def as_floats(name: str, weight: Tensor, kind: str) -> Array:
    """A weight as F32, F16 or BF16, each value rounded once; UsageError where the type cannot hold one."""
    values, extremes = weight.to(DTYPES[kind]), torch.stack(weight.aminmax())
    # Rounding keeps the order, so the extremes speak for all; a NaN is both of them.
    if not bool(extremes.to(values.dtype).isfinite().all()):
        raise cannot_hold(name, kind, finite=bool(extremes.isfinite().all()))
    # numpy has no bfloat16.
    return values.view(torch.uint8).numpy() if kind == "BF16" else values.numpy()


def _rope_factors(config: LlamaConfig, encode: Encode) -> list[tuple[str, LazyTensor]]:
    """Llama 3's scaling, which GGUF has as a tensor."""
    scaling = config.rope_scaling
    if scaling is None or scaling.rope_type != "llama3":
        return []
    factors = torch.tensor(llama3_factors(config.rope_theta, config.head_dim, scaling))
    load = partial(encode, _ROPE_FACTORS, factors, "F32")
    return [(_ROPE_FACTORS, LazyTensor(tuple(factors.shape), "F32", load))]
