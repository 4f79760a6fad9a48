"""Reading and writing a model's weights as a GGUF file, as torch tensors."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor

from meditron.model.config import LlamaConfig
from meditron.model.gguf_layout import (
    ROPE_FACTORS,
    gguf_header,
    gguf_row_order,
    gguf_tensor_name,
    heads_to_reorder,
    rope_factors,
)
from meditron.model.llama import Llama
from meditron.model.shapes import check_tensors, parameter_shapes, weight_range_error
from meditron.model.tensors import DTYPES, state_dict_of
from meditron.store.gguf import GGUF, Array, LazyTensor, write_gguf
from meditron.text.tokenizer import Tokenizer

__all__ = [
    "Encode",
    "GGUFWeights",
    "encode_floats",
    "from_neighbour_order",
    "lazy_gguf_tensors",
    "save_gguf",
    "to_gguf_row_order",
]

Encode = Callable[[str, Tensor, str], Array]
"""Encoder of a tensor: (HF's name, weight in llama.cpp's row order, ggml type) → the bytes to write."""


def to_gguf_row_order(name: str, weight: Tensor, config: LlamaConfig) -> Tensor:
    """Reorder rows from HF's pairs (i, i + E/2) to GGUF's rotated neighbours (2i, 2i + 1).

    Args:
        name: HF's name of the weight; the rows of most weights have the same order in both.
        weight: The weight, or another matrix with its rows.
        config: The model's config.
    """
    order = gguf_row_order(name, config, weight.shape[0])
    return weight if order is None else weight[torch.from_numpy(order)]


def from_neighbour_order(weight: Tensor, heads: int | None) -> Tensor:
    """Reorder the rows of a projection from rotated neighbours (2i, 2i + 1) to HF's pairs (i, i + E/2).

    `heads`: the number of heads; None for a weight that is not rotated, which is returned unchanged.
    """
    if heads is None:
        return weight
    return weight.reshape(heads, -1, 2, weight.shape[1]).transpose(1, 2).reshape(weight.shape)


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
        stored = {name: info.shape for name, info in gguf.tensors.items() if name != ROPE_FACTORS}
        # Llama 3's divisors are part of the config, not a weight.
        check_tensors(
            gguf.path, {gguf_tensor_name(name): shape for name, shape in self._shapes.items()}, stored
        )

    def __getitem__(self, name: str) -> Tensor:
        """Read a weight; it stays valid after the file is closed."""
        if name not in self._shapes:
            raise KeyError(name)
        weight = torch.from_numpy(self._dequantize(gguf_tensor_name(name)))
        return from_neighbour_order(weight, heads_to_reorder(name, self._config))

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
    values = rope_factors(config)
    if values is None:
        return []
    load = partial(encode, ROPE_FACTORS, torch.from_numpy(values), "F32")
    return [(ROPE_FACTORS, LazyTensor(values.shape, "F32", load))]
