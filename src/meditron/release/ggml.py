"""llama.cpp's own quantizers: the functions of ggml that xllamacpp's compiled module exports, through ctypes.

Files quantized with them equal llama.cpp's byte for byte. The calls release the GIL.
"""

import ctypes
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

from meditron.core.errors import MissingExtra, UsageError
from meditron.store.gguf_types import TensorType

__all__ = ["dequantize", "load_ggml", "quantize"]


class _TypeTraits(ctypes.Structure):
    """The first fields of ggml.h's `struct ggml_type_traits`."""

    _fields_ = (
        ("type_name", ctypes.c_char_p),
        ("block_size", ctypes.c_int64),
        ("interleaved", ctypes.c_int64),
        ("block_bytes", ctypes.c_size_t),
        ("is_quantized", ctypes.c_bool),
        ("to_float", ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64)),
    )


@dataclass(frozen=True, slots=True)
class _Functions:
    """Functions of ggml.h."""

    quantize_chunk: Any
    get_type_traits: Any
    requires_importance: Any


@cache
def load_ggml() -> _Functions:
    """Return ggml's functions.

    Raises:
        MissingExtra: xllamacpp is not installed.
        UsageError: it cannot be loaded, or does not export them.
    """
    try:
        from xllamacpp import xllamacpp as compiled

        library = ctypes.CDLL(compiled.__file__)
        quantize_chunk, get_type_traits = library.ggml_quantize_chunk, library.ggml_get_type_traits
        requires_importance = library.ggml_quantize_requires_imatrix
    except ModuleNotFoundError as error:
        raise MissingExtra("xllamacpp", "release") from error
    except (ImportError, OSError) as error:  # slim images lack the system's libgomp.so.1
        hint = "install the system library that it names (libgomp.so.1: apt install libgomp1)"
        raise UsageError(f"xllamacpp cannot be loaded: {error}", hint=hint) from error
    except AttributeError as error:
        hint = "pip install --force-reinstall 'meditron[release]'"
        raise UsageError(f"xllamacpp does not export ggml's quantizers: {error}", hint=hint) from error
    # Type, source, target, first value, rows, columns, importance of the columns; returns bytes.
    quantize_chunk.argtypes = (
        ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p,
        ctypes.c_int64, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p,
    )  # fmt: skip
    quantize_chunk.restype = ctypes.c_size_t
    get_type_traits.argtypes, get_type_traits.restype = (ctypes.c_int,), ctypes.POINTER(_TypeTraits)
    requires_importance.argtypes, requires_importance.restype = (ctypes.c_int,), ctypes.c_bool
    return _Functions(quantize_chunk, get_type_traits, requires_importance)


def quantize(
    values_RC: npt.NDArray[np.float32], kind: TensorType, importance_C: npt.NDArray[np.float32] | None
) -> npt.NDArray[np.uint8]:
    """Return the blocks of rows, as bytes of shape (R, bytes of a row).

    Args:
        values_RC: The values.
        kind: A quantized type of a GGUF file's weights.
        importance_C: Importance of the columns. Their sum, times the largest square of a value, must be
            finite in float32: ggml ends the process when an assertion of its own fails.

    Raises:
        ValueError: the shapes do not fit, or the type needs an importance.
    """
    rows, columns = values_RC.shape
    _require_whole_blocks(columns, kind)
    functions = load_ggml()
    values_RC = np.ascontiguousarray(values_RC, dtype=np.float32)
    blocks = np.empty((rows, kind.nbytes((columns,))), dtype=np.uint8)
    if importance_C is not None:
        importance_C = np.ascontiguousarray(importance_C, dtype=np.float32)
        if importance_C.shape != (columns,):
            raise ValueError(f"importance has shape {importance_C.shape}, expected ({columns},)")
    elif functions.requires_importance(kind.code):
        raise ValueError(f"{kind.name} needs the importance of the columns")
    importance = None if importance_C is None else importance_C.ctypes.data
    functions.quantize_chunk(
        kind.code, values_RC.ctypes.data, blocks.ctypes.data, 0, rows, columns, importance
    )
    return blocks


def dequantize(blocks: npt.NDArray[np.uint8], kind: TensorType, columns: int) -> npt.NDArray[np.float32]:
    """Return the values of rows of blocks, of shape (R, columns).

    Raises:
        NotImplementedError: ggml has no values of this type, such as I16.
        ValueError: the shape is not that of rows of so many values.
    """
    _require_whole_blocks(columns, kind)
    if blocks.shape[1:] != (kind.nbytes((columns,)),):
        raise ValueError(f"shape {blocks.shape} is not that of rows of {columns} values in {kind.name}")
    traits = load_ggml().get_type_traits(kind.code).contents
    if not traits.to_float:
        raise NotImplementedError(f"ggml does not dequantize {kind.name}")
    if (traits.block_size, traits.block_bytes) != (kind.block_size, kind.block_bytes):
        raise RuntimeError(f"xllamacpp has other blocks for type {kind.code} than {kind.name}")
    blocks = np.ascontiguousarray(blocks, dtype=np.uint8)
    values = np.empty((len(blocks), columns), dtype=np.float32)
    traits.to_float(blocks.ctypes.data, values.ctypes.data, values.size)
    return values


def _require_whole_blocks(columns: int, kind: TensorType) -> None:
    if columns % kind.block_size:
        raise ValueError(f"rows of {columns} values are not whole blocks of {kind.name}")
