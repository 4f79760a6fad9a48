"""Matrices that GPTQ or AWQ packed into int32, read row by row as float32. Does not import torch.

The layouts of GPTQModel, AutoGPTQ and AutoAWQ, which vLLM and transformers load. A matrix NAME.weight of
shape (R, C) is stored transposed, as several tensors; each group of columns of a row has a scale and a zero
point, and a value q means scale · (q - zero):

- NAME.qweight: the values. GPTQ packs those of a column of words along C, in the order of their bits, so a
  value of 3 bits may continue in the next word. AWQ packs eight neighbours along R, in `_AWQ_ORDER`.
- NAME.qzeros: the zero points of each group, packed along R.
- NAME.scales: the scales of each group, in float16 or bfloat16.
- NAME.g_idx: GPTQ only: the group of each column, which act-order permutes.

Shapes: R rows of a matrix, C its columns, G groups, N words of 32 bits.
"""

from collections.abc import Container, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from meditron.core.errors import InputError
from meditron.model.packed_format import PackedFormat, packed_format_of
from meditron.store.safetensors import SafetensorsFile, stored_as_float32

__all__ = ["PACKED_TYPES", "PackedMatrix", "open_packed_matrices", "unpack_values"]

PACKED_TYPES = {"gptq": "GPTQ", "awq": "AWQ"}
"""Quantization method → type of the weights."""
_PARTS = ("qweight", "qzeros", "scales", "g_idx")
# Position in a word of each of eight neighbouring rows: AWQ's kernels read even rows before odd ones.
_AWQ_ORDER = np.array([0, 4, 1, 5, 2, 6, 3, 7])

Integers = npt.NDArray[np.int32]


def unpack_values(words_XN: Integers, bits: int, count: int) -> npt.NDArray[np.uint8]:
    """Return `count` values of `bits` bits from each row of words, the lowest bits of a word first."""
    position = np.arange(count) * bits
    word, shift = position // 32, (position % 32).astype(np.uint64)
    words = words_XN.view(np.uint32).astype(np.uint64)
    # A value may begin in a word and end in the next one.
    following = np.concatenate([words[:, 1:], np.zeros_like(words[:, :1])], axis=1)
    pairs = words | (following << np.uint64(32))
    values = pairs[:, word]
    values >>= shift  # in place: these are eight bytes for each value
    values &= np.uint64((1 << bits) - 1)
    return values.astype(np.uint8)


@dataclass(frozen=True, slots=True)
class PackedMatrix:
    """A packed matrix, whose rows are dequantized when they are read."""

    name: str
    """HF's name, such as `model.layers.0.mlp.up_proj.weight`."""
    path: Path
    """File of `qweight`, for errors."""
    format: PackedFormat
    qweight: Integers
    qzeros: Integers
    scales: npt.NDArray[Any]
    """Floats, or bits of bfloat16 in uint16."""
    group_C: npt.NDArray[np.intp]
    """Group of each column."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the matrix."""
        if self.format.quant_method == "awq":
            return self.qweight.shape[1] * 8, self.qweight.shape[0]
        return self.qweight.shape[1], self.qweight.shape[0] * 32 // self.format.bits

    def read(self, rows: npt.NDArray[np.intp]) -> npt.NDArray[np.float32]:
        """Return rows in float32, of shape (R, C)."""
        scale_RG = stored_as_float32(self.scales[:, rows].T)
        # A zero point of 0, less 1, was stored as the largest value.
        zero_RG = (self._zeros(rows) + self.format.zero_offset) & ((1 << self.format.bits) - 1)
        rows_RC = self._values(rows).astype(np.float32)
        rows_RC -= zero_RG[:, self.group_C]
        rows_RC *= scale_RG[:, self.group_C]
        return rows_RC

    def _values(self, rows: npt.NDArray[np.intp]) -> npt.NDArray[np.uint8]:
        if self.format.quant_method == "awq":
            return _awq_rows(self.qweight, rows)
        words_RN = np.ascontiguousarray(self.qweight[:, rows].T)
        return unpack_values(words_RN, self.format.bits, self.shape[1])

    def _zeros(self, rows: npt.NDArray[np.intp]) -> npt.NDArray[np.uint8]:
        if self.format.quant_method == "awq":
            return _awq_rows(self.qzeros, rows)
        zeros_GR = unpack_values(np.ascontiguousarray(self.qzeros), self.format.bits, self.shape[0])
        return zeros_GR[:, rows].T

    def check(self) -> None:
        """Raise InputError unless the parts fit together."""
        rows, columns = self.shape
        size = columns if self.format.group_size == -1 else self.format.group_size
        groups = -(-columns // size)
        packed_rows = rows // 8 if self.format.quant_method == "awq" else rows * self.format.bits // 32
        expected = {"qzeros": (groups, packed_rows), "scales": (groups, rows), "g_idx": (columns,)}
        actual = {"qzeros": self.qzeros.shape, "scales": self.scales.shape, "g_idx": self.group_C.shape}
        for part, shape in expected.items():
            if actual[part] != shape:
                problem = f"has shape {actual[part]}, but qweight and the config give {shape}"
                raise InputError(self.path, problem, place=f"{self.name.removesuffix('weight')}{part}")
        if not ((self.group_C >= 0) & (self.group_C < groups)).all():
            place = f"{self.name.removesuffix('weight')}g_idx"
            raise InputError(self.path, f"a group is not one of the {groups}", place=place)


def _awq_rows(words: Integers, rows: npt.NDArray[np.intp]) -> npt.NDArray[np.uint8]:
    """Return the values of rows from words of eight rows each, of shape (C or G, N)."""
    shift_R = (_AWQ_ORDER[rows % 8] * 4).astype(np.uint32)
    values: npt.NDArray[np.uint8] = ((words[:, rows // 8].view(np.uint32) >> shift_R) & 15).astype(np.uint8)
    return values.T


def open_packed_matrices(
    folder: Path, files: Mapping[str, Path], expected: Container[str]
) -> tuple[dict[str, PackedMatrix], dict[str, Path]]:
    """Open the packed matrices of a folder.

    Args:
        folder: The folder.
        files: Tensor → file, as `tensor_files` returns them.
        expected: HF's names of the model's weights.

    Returns:
        The packed matrices by HF's names, and the tensors that are not parts of one. AutoGPTQ stores a bias
        of zeros for each matrix, which is left out unless it is expected.

    Raises:
        InputError: the format is not supported, or the parts of a matrix do not fit together.
    """
    form = packed_format_of(folder)
    if form is None:
        return {}, dict(files)
    stems = [name.removesuffix("qweight") for name in files if name.endswith(".qweight")]
    opened = {path: SafetensorsFile(path) for path in sorted(set(files.values()))}
    matrices = {f"{stem}weight": _open_matrix(stem, form, files, opened) for stem in stems}
    parts = {f"{stem}{part}" for stem in stems for part in _PARTS}
    biases = {f"{stem}bias" for stem in stems} & files.keys()
    parts |= {name for name in biases if name not in expected and not opened[files[name]].array(name).any()}
    return matrices, {name: path for name, path in files.items() if name not in parts}


def _open_matrix(
    stem: str, form: PackedFormat, files: Mapping[str, Path], opened: Mapping[Path, SafetensorsFile]
) -> PackedMatrix:
    path = files[f"{stem}qweight"]
    for part in ("qzeros", "scales"):
        if f"{stem}{part}" not in files:
            raise InputError(path, f"{stem}{part} is missing", place=f"{stem}qweight")
    arrays: dict[str, Any] = {}
    for part in _PARTS:
        if (file := files.get(f"{stem}{part}")) is not None:
            name = f"{stem}{part}"
            arrays[part] = opened[file].array(name) if part == "scales" else opened[file].integers(name)
    for part, dimensions in {"qweight": 2, "qzeros": 2, "scales": 2, "g_idx": 1}.items():
        if part in arrays and arrays[part].ndim != dimensions:
            raise InputError(path, f"has shape {arrays[part].shape}", place=f"{stem}{part}")
    qweight = arrays["qweight"]
    columns = qweight.shape[0] if form.quant_method == "awq" else qweight.shape[0] * 32 // form.bits
    size = columns if form.group_size == -1 else form.group_size
    # AutoGPTQ wrote no g_idx at first, if the columns are not permuted.
    group_C = np.asarray(arrays.get("g_idx", np.arange(columns) // max(size, 1)), dtype=np.intp)
    if form.quant_method == "awq":
        group_C = np.arange(columns) // max(size, 1)
    matrix = PackedMatrix(f"{stem}weight", path, form, qweight, arrays["qzeros"], arrays["scales"], group_C)
    matrix.check()
    return matrix
