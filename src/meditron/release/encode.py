"""Conversion of rows of weights to and from ggml's types, with ggml's own code for blocks.

Shapes: R rows, C columns.
"""

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from meditron.core.errors import UsageError
from meditron.model.shapes import weight_range_error
from meditron.model.weight_rows import WeightRows, dequantize_with_gguf
from meditron.release.ggml import dequantize, quantize
from meditron.store.gguf_types import FLOAT_TYPES, tensor_type

__all__ = ["decode_blocks", "encode_rows", "round_floats", "row_slices"]

_CHUNK = 1 << 18  # values that are encoded at once: a megabyte in float32, which fits in a core's cache
# The scales of blocks are F16: larger values could overflow them.
_MOST = float(np.finfo(np.float16).max)


def row_slices(weight: WeightRows) -> Iterator[slice]:
    """Yield slices of a weight's rows with about a megabyte of float32 values each."""
    step = max(1, _CHUNK // weight.shape[-1])
    for start in range(0, weight.rows, step):
        yield slice(start, min(start + step, weight.rows))


def encode_rows(
    name: str,
    weight: WeightRows,
    rows: slice | npt.NDArray[np.intp],
    kinds: Iterable[str],
    importance_C: npt.NDArray[np.float32] | None = None,
) -> dict[str, npt.NDArray[Any]]:
    """Encode rows of a weight in several types from one reading.

    Each row is encoded on its own, so the bytes do not depend on the division into slices.

    Args:
        name: HF's name of the weight, for errors.
        weight: The weight.
        rows: The rows.
        kinds: ggml's names of the types.
        importance_C: Importance of the columns, for quantized types.

    Returns:
        Type → rows: values, bits of bfloat16 in uint16, or bytes of blocks.

    Raises:
        UsageError: A value is not finite, or the type cannot represent it.
    """
    values_RC = weight.read(rows)
    # A NaN makes both minimum and maximum NaN.
    most = float(np.maximum(-values_RC.min(), values_RC.max()))
    encoded: dict[str, npt.NDArray[Any]] = {}
    for kind in kinds:
        if not _represents(kind, most):
            raise weight_range_error(name, kind, finite=bool(np.isfinite(most)))
        if kind not in FLOAT_TYPES:
            encoded[kind] = quantize(values_RC, tensor_type(kind), importance_C)
        elif kind == weight.type:
            encoded[kind] = np.ascontiguousarray(weight.read_stored(rows))
        else:
            encoded[kind] = round_floats(values_RC, kind)
    return encoded


def round_floats(values: npt.NDArray[np.float32], kind: str) -> npt.NDArray[Any]:
    """Return values as F32, F16 or BF16 (bits in uint16), rounded to nearest, ties to even."""
    if kind == "F16":
        with np.errstate(over="ignore"):  # callers check the range
            return values.astype("<f2")
    if kind == "BF16":
        bits = values.view(np.uint32)
        return ((bits + (0x7FFF + ((bits >> 16) & 1))) >> 16).astype("<u2")
    return values


def decode_blocks(rows: npt.NDArray[np.uint8], kind: str, columns: int) -> npt.NDArray[np.float32]:
    """Return the values of quantized rows, by ggml's code if xllamacpp can be loaded, else by gguf-py."""
    try:
        return dequantize(rows, tensor_type(kind), columns)
    except UsageError:
        return dequantize_with_gguf(rows, kind, columns)


def _represents(kind: str, most: float) -> bool:
    """Return True if a type can represent values of this magnitude; False for NaN."""
    if kind not in FLOAT_TYPES:
        return most <= _MOST
    rounded = round_floats(np.array([most], dtype=np.float32), kind)
    exponent = {"F32": None, "F16": None, "BF16": 0x7F80}[kind]
    # A bfloat16 whose exponent bits are all set is infinite or NaN.
    return bool(np.isfinite(rounded[0])) if exponent is None else int(rounded[0]) < exponent
