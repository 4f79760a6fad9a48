"""An atomic GGUF writer with one tensor in memory at a time.

The output equals that of gguf-py's GGUFWriter byte for byte. GGUFWriter itself is not used, because it opens
the path on its own, so that writes are not atomic, and because it uses numpy's `tofile`, whose errors do not
say that the disk is full.
"""

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from meditron.store.files import atomic_write
from meditron.store.gguf_types import tensor_type

__all__ = [
    "ARRAY",
    "BOOL",
    "DEFAULT_ALIGNMENT",
    "MAGIC",
    "SCALAR_DTYPES",
    "STRING",
    "Array",
    "Head",
    "LazyTensor",
    "encode_head",
    "write_gguf",
]

MAGIC = b"GGUF"
DEFAULT_ALIGNMENT = 32
BOOL, STRING, ARRAY = 7, 8, 9
SCALAR_DTYPES: dict[int, np.dtype[Any]] = {
    code: np.dtype(name)
    for code, name in {
        0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", BOOL: "u1", 10: "<u8", 11: "<i8",
        12: "<f8",
    }.items()
}  # fmt: skip
"""Code of a metadata value's type → numpy dtype; a BOOL is a byte with the value 0 or 1."""
_VERSION = 3
_FLOAT_DTYPES: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2")}

Array = npt.NDArray[np.float32] | npt.NDArray[np.float16] | npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class LazyTensor:
    """A tensor that is computed when it is written, so that only one is in memory at a time."""

    shape: tuple[int, ...]
    """In numpy's order: slowest dimension first."""
    type: str
    """ggml's name: `F16`, `Q4_K`."""
    load: Callable[[], Array]
    """Function that computes the tensor: float32 for F32, float16 for F16, the blocks' bytes as uint8 for any
    other type."""

    @property
    def nbytes(self) -> int:
        """The tensor's bytes in the file."""
        return tensor_type(self.type).nbytes(self.shape)


def write_gguf(
    path: Path, metadata: Mapping[str, Any], tensors: Iterable[tuple[str, Array | LazyTensor]]
) -> None:
    """Write a GGUF file (version 3), tensor by tensor and atomically.

    The GGUF type of a metadata value depends on its Python type: a bool is BOOL, a str STRING, a float
    FLOAT32, an int the first of UINT32, INT32 and INT64 that can represent it. The elements of a list have
    the same types, except that ints are INT32 or else INT64. A numpy scalar or array has the type of its
    dtype. Empty lists have no element type and are left out.

    Raises:
        TypeError: the format has no such metadata value or dtype.
        ValueError: a tensor's name occurs twice, or a LazyTensor computes another dtype or shape than
            declared.
    """
    listed = [(name, _as_lazy_tensor(name, tensor)) for name, tensor in tensors]
    head = encode_head(path, metadata, [(name, tensor.shape, tensor.type) for name, tensor in listed])
    with atomic_write(path) as file:
        file.write(head.data)
        for name, tensor in listed:
            file.write(_tensor_bytes(name, tensor))
            file.write(bytes(-file.tell() % head.alignment))


class Head(NamedTuple):
    """The part of a file before its tensors, and the positions of the tensors."""

    data: bytes
    """Header, metadata and tensor entries, padded to the alignment."""
    offsets: list[int]
    """Offset of each tensor in the file, in bytes."""
    alignment: int
    file_size: int
    """Bytes of the whole file."""


def encode_head(
    path: Path, metadata: Mapping[str, Any], tensors: Sequence[tuple[str, tuple[int, ...], str]]
) -> Head:
    """Encode the part of a file before its tensors, from which the size of the file follows.

    Args:
        path: The file, for errors.
        metadata: As for `write_gguf`.
        tensors: Name, shape (slowest dimension first) and ggml type of each tensor.

    Raises:
        TypeError, ValueError: as for `write_gguf`.
    """
    if len({name for name, _, _ in tensors}) != len(tensors):
        raise ValueError(f"{path}: a tensor's name occurs twice")
    pairs = {key: value for key, value in metadata.items() if not (isinstance(value, list) and not value)}
    alignment = int(pairs.get("general.alignment", DEFAULT_ALIGNMENT))
    data = bytearray(MAGIC + struct.pack("<IQQ", _VERSION, len(tensors), len(pairs)))
    for key, value in pairs.items():
        data += _encode_string(key) + _encode_value(key, value)
    offsets, offset = [], 0
    for name, shape, kind in tensors:
        offsets.append(offset)
        data += _encode_string(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape[::-1])
        data += struct.pack("<IQ", tensor_type(kind).code, offset)
        offset += -(-tensor_type(kind).nbytes(shape) // alignment) * alignment
    data += bytes(-len(data) % alignment)
    return Head(bytes(data), [len(data) + start for start in offsets], alignment, len(data) + offset)


def _as_lazy_tensor(name: str, tensor: Array | LazyTensor) -> LazyTensor:
    """Wrap an array in a LazyTensor whose type, F32 or F16, follows from the array's dtype."""
    if isinstance(tensor, LazyTensor):
        return tensor
    dtype = tensor.dtype.newbyteorder("<")
    for kind, known in _FLOAT_DTYPES.items():
        if known == dtype:
            return LazyTensor(tensor.shape, kind, lambda: tensor)
    raise TypeError(f"tensor {name} must be float32 or float16, got {dtype}")


def _tensor_bytes(name: str, tensor: LazyTensor) -> memoryview:
    values = tensor.load()
    # A tensor of any other type is given as the bytes of its blocks, in any shape.
    is_array = tensor.type in _FLOAT_DTYPES
    dtype: np.dtype[Any] = _FLOAT_DTYPES.get(tensor.type, np.dtype(np.uint8))
    fits = values.shape == tensor.shape if is_array else values.nbytes == tensor.nbytes
    if values.dtype.newbyteorder("<") != dtype or not fits:
        declared = f"{tensor.type} {tensor.shape}, {tensor.nbytes:,} bytes"
        raise ValueError(f"tensor {name} was declared as {declared}, got {values.dtype} {values.shape}")
    return np.ascontiguousarray(values, dtype=dtype).reshape(-1).view(np.uint8).data


def _encode_string(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def _encode_value(key: str, value: Any) -> bytes:  # noqa: ANN401
    """Encode a metadata value, preceded by its type."""
    if isinstance(value, str):
        return struct.pack("<I", STRING) + _encode_string(value)
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return struct.pack("<IIQ", ARRAY, STRING, len(value)) + b"".join(map(_encode_string, value))
    array = _as_typed_array(value)
    if array.ndim > 1:
        raise TypeError(f"{key}: nested arrays are not supported")
    code = BOOL if array.dtype == bool else _type_code(key, array.dtype)
    data = array.astype(SCALAR_DTYPES[code]).tobytes()
    return (
        struct.pack("<I", code) + data
        if array.ndim == 0
        else struct.pack("<IIQ", ARRAY, code, array.size) + data
    )


def _type_code(key: str, dtype: np.dtype[Any]) -> int:
    for code, known in SCALAR_DTYPES.items():
        if known == dtype.newbyteorder("<"):
            return code
    raise TypeError(f"{key}: GGUF metadata cannot have the type {dtype}")


def _as_typed_array(value: Any) -> npt.NDArray[Any]:  # noqa: ANN401
    """Convert a value to a numpy array with the dtype in which it is written."""
    if isinstance(value, np.generic | np.ndarray):
        return np.asarray(value)
    array = np.asarray(value)
    if array.dtype.kind == "f":
        return array.astype("<f4")
    if array.dtype.kind == "i":
        # gguf-py writes a single int as UINT32 and a list as INT32, if the values fit.
        candidates = ("<u4", "<i4") if array.ndim == 0 else ("<i4",)
        for dtype in candidates:
            if np.all(array == array.astype(dtype)):
                return array.astype(dtype)
    return array
