"""A model's config and weights from its files, as numpy arrays, row by row. torch is not imported for them.

Two kinds of MODEL are exceptions: torch reads a Megatron-LLM checkpoint, and makes a preset's weights.

Shapes: R rows of a weight, C its columns.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from meditron.core.errors import InputError
from meditron.model.config import LlamaConfig
from meditron.model.gguf_layout import ROPE_FACTORS, gguf_row_order, gguf_tensor_name, read_gguf_config
from meditron.model.hf_config import read_hf_config
from meditron.model.packed_weights import PACKED_TYPES, PackedMatrix, open_packed_matrices
from meditron.model.presets import find_preset
from meditron.model.shapes import HEAD, check_tensors, parameter_shapes
from meditron.store.gguf import GGUF
from meditron.store.gguf_header import TensorInfo
from meditron.store.gguf_types import FLOAT_TYPES
from meditron.store.models import ModelFiles, resolve_model
from meditron.store.safetensors import FLOAT_DTYPES, SafetensorsFile, stored_as_float32, tensor_files

if TYPE_CHECKING:
    from torch import Tensor

__all__ = [
    "DecodeRows",
    "WeightRows",
    "dequantize_with_gguf",
    "load_config",
    "open_weight_rows",
]

Rows = slice | npt.NDArray[np.intp]
DecodeRows = Callable[[npt.NDArray[np.uint8], str, int], npt.NDArray[np.float32]]
"""Decoder of quantized rows: (bytes of the rows, ggml type, number of columns) → their values."""

# Tensors of older and of tied checkpoints that are not parameters of the model.
_IGNORED = ("rotary_emb.inv_freq", HEAD)


@dataclass(frozen=True, slots=True)
class WeightRows:
    """A weight whose rows are read when they are needed, in HF's order. A vector is one row."""

    shape: tuple[int, ...]
    """Shape of the weight."""
    type: str
    """Type in which it is stored: F32, F16, BF16, a quantized type of ggml, GPTQ or AWQ."""
    stored: npt.NDArray[Any]
    """The stored rows: values, bits of bfloat16 in uint16, bytes of blocks, or numbers of packed rows."""
    decode: Callable[[npt.NDArray[Any]], npt.NDArray[np.float32]]
    """Decoder of stored rows."""
    order: npt.NDArray[np.intp] | None = None
    """Position in `stored` of each row in HF's order; None if the order is the same."""

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.stored)

    def read_stored(self, rows: Rows) -> npt.NDArray[Any]:
        """Return rows as they are stored."""
        selected: npt.NDArray[Any] = self.stored[rows if self.order is None else self.order[rows]]
        return selected

    def read(self, rows: Rows) -> npt.NDArray[np.float32]:
        """Return rows in float32, of shape (R, C)."""
        return self.decode(self.read_stored(rows))


def load_config(model: ModelFiles | Path | str) -> LlamaConfig:
    """Read a model's config without its weights.

    Raises:
        InputError: a file is damaged, or its architecture is not supported.
        SourceError: there is no such model.
    """
    files = _resolve(model)
    if files.kind == "init":
        return find_preset(files.spec)[0].config
    path = Path(files.path)
    if files.kind == "gguf":
        with GGUF(path) as gguf:
            return read_gguf_config(gguf)
    if files.kind == "megatron":
        from meditron.model.megatron_weights import MegatronCheckpoint

        return MegatronCheckpoint(path).config()
    return read_hf_config(path)


@contextmanager
def open_weight_rows(
    model: ModelFiles | Path | str, *, decode: DecodeRows | None = None
) -> Iterator[tuple[LlamaConfig, Mapping[str, WeightRows]]]:
    """Open a model's config and its weights by HF's names.

    Args:
        model: The MODEL or its files.
        decode: Decoder of quantized rows of a GGUF file; gguf-py's by default.

    Raises:
        InputError: before a weight is read: a file is damaged, its architecture is not supported, or its
            tensors do not match its config.
        SourceError: there is no such model.
    """
    files = _resolve(model)
    if files.kind == "gguf":
        with GGUF(Path(files.path)) as gguf:
            config = read_gguf_config(gguf)
            yield config, _GGUFRows(gguf, config, decode or dequantize_with_gguf)
    elif files.kind == "hf":
        config = read_hf_config(Path(files.path))
        yield config, _HFRows(Path(files.path), config)
    else:
        from meditron.model.weights import open_weights

        with open_weights(files) as (config, weights):
            yield config, _TorchRows(weights)


class _HFRows(Mapping[str, WeightRows]):
    """Weights of the memory-mapped safetensors of an HF folder; packed matrices are dequantized."""

    def __init__(self, folder: Path, config: LlamaConfig) -> None:
        expected = parameter_shapes(config)
        self._packed, plain = open_packed_matrices(folder, tensor_files(folder), expected)
        places = {
            name: file for name, file in plain.items() if name in expected or not name.endswith(_IGNORED)
        }
        opened = {path: SafetensorsFile(path) for path in sorted(set(places.values()))}
        self._files = {name: opened[path] for name, path in places.items()}
        # Opening each array checks its type before anything is written.
        shapes = {name: file.array(name).shape for name, file in self._files.items()}
        check_tensors(folder, expected, shapes | {name: p.shape for name, p in self._packed.items()})

    def __getitem__(self, name: str) -> WeightRows:
        if (packed := self._packed.get(name)) is not None:
            return _packed_rows(packed)
        file = self._files[name]
        array = file.array(name)
        return WeightRows(array.shape, file.tensors[name].type, _as_matrix(array), stored_as_float32)

    def __iter__(self) -> Iterator[str]:
        yield from self._files
        yield from self._packed

    def __len__(self) -> int:
        return len(self._files) + len(self._packed)


def _packed_rows(matrix: PackedMatrix) -> WeightRows:
    kind = PACKED_TYPES[matrix.format.quant_method]
    return WeightRows(matrix.shape, kind, np.arange(matrix.shape[0]), matrix.read)


class _GGUFRows(Mapping[str, WeightRows]):
    """Weights of a memory-mapped GGUF file."""

    def __init__(self, gguf: GGUF, config: LlamaConfig, decode: DecodeRows) -> None:
        self._gguf, self._config, self._decode = gguf, config, decode
        self._shapes = parameter_shapes(config)
        stored = {name: info.shape for name, info in gguf.tensors.items() if name != ROPE_FACTORS}
        check_tensors(gguf.path, {gguf_tensor_name(n): shape for n, shape in self._shapes.items()}, stored)

    def __getitem__(self, name: str) -> WeightRows:
        if name not in self._shapes:
            raise KeyError(name)
        info = self._gguf.tensors[gguf_tensor_name(name)]
        stored: npt.NDArray[Any] = _as_matrix(self._gguf.raw_tensor(info.name))
        decode = stored_as_float32
        if info.type in FLOAT_TYPES:
            dtype: np.dtype[Any] = FLOAT_DTYPES[info.type]
            stored = stored.view(dtype)
        else:
            decode = partial(self._decode_blocks, info)
        order = gguf_row_order(name, self._config, len(stored))
        return WeightRows(info.shape, info.type, stored, decode, None if order is None else np.argsort(order))

    def _decode_blocks(self, info: TensorInfo, stored: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        try:
            return self._decode(np.ascontiguousarray(stored), info.type, info.shape[-1])
        except NotImplementedError as error:
            problem = f"cannot read tensors of type {info.type}"
            raise InputError(self._gguf.path, problem, place=info.name) from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __len__(self) -> int:
        return len(self._shapes)


class _TorchRows(Mapping[str, WeightRows]):
    """Weights that torch reads or makes."""

    def __init__(self, weights: "Mapping[str, Tensor]") -> None:
        self._weights = weights

    def __getitem__(self, name: str) -> WeightRows:
        import torch

        weight = self._weights[name].detach().cpu().contiguous()
        is_bf16 = weight.dtype == torch.bfloat16
        array = (weight.view(torch.uint16) if is_bf16 else weight).numpy()
        kind = {"float32": "F32", "float16": "F16", "uint16": "BF16"}[array.dtype.name]
        return WeightRows(tuple(weight.shape), kind, _as_matrix(array), stored_as_float32)

    def __iter__(self) -> Iterator[str]:
        return iter(self._weights)

    def __len__(self) -> int:
        return len(self._weights)


def _as_matrix(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return array.reshape(1, -1) if array.ndim == 1 else array


def dequantize_with_gguf(rows: npt.NDArray[np.uint8], kind: str, _columns: int) -> npt.NDArray[np.float32]:
    """Return the values of quantized rows with gguf-py's code."""
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize

    # In a damaged file the scale of a block can be infinite. numpy's warnings about the resulting infinite
    # values are suppressed; whoever needs finite values checks them.
    with np.errstate(all="ignore"):
        values: npt.NDArray[np.float32] = dequantize(rows, GGMLQuantizationType[kind])
    return values


def _resolve(model: ModelFiles | Path | str) -> ModelFiles:
    return model if isinstance(model, ModelFiles) else resolve_model(str(model))
