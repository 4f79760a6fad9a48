"""The GGUF writer: one tensor in memory at a time, atomic.

Byte for byte what gguf-py's GGUFWriter makes of the same content. That one opens its own path and writes
through numpy's `tofile`, which loses the reason when a disk is full; hence this one.
"""

import struct
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from meditron.store.files import atomic
from meditron.store.gguf_types import tensor_type

__all__ = [
    "ARRAY",
    "BOOL",
    "DEFAULT_ALIGNMENT",
    "MAGIC",
    "SCALARS",
    "STRING",
    "Array",
    "LazyTensor",
    "write_gguf",
]

MAGIC = b"GGUF"
DEFAULT_ALIGNMENT = 32
BOOL, STRING, ARRAY = 7, 8, 9
SCALARS: dict[int, np.dtype[Any]] = {
    code: np.dtype(name)
    for code, name in {
        0: "u1", 1: "i1", 2: "<u2", 3: "<i2", 4: "<u4", 5: "<i4", 6: "<f4", BOOL: "u1", 10: "<u8", 11: "<i8",
        12: "<f8",
    }.items()
}  # fmt: skip
"""Value type → how numpy reads it; a BOOL is a byte that is 0 or 1."""
_VERSION = 3
_FLOATS: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2")}

Array = npt.NDArray[np.float32] | npt.NDArray[np.float16] | npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class LazyTensor:
    """A tensor whose values are made when they are written, so that only one is in memory at a time."""

    shape: tuple[int, ...]
    """numpy's order: slowest dimension first."""
    type: str
    """ggml's name: `F16`, `Q4_K`."""
    load: Callable[[], Array]
    """Gives float32 for F32, float16 for F16, and the blocks' bytes, uint8, for every other type."""

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor in the file."""
        return tensor_type(self.type).nbytes(self.shape)


def write_gguf(
    path: Path, metadata: Mapping[str, Any], tensors: Iterable[tuple[str, Array | LazyTensor]]
) -> None:
    """Write a GGUF file (version 3), streaming and atomic.

    A metadata value's type follows from it: bool, str, float (FLOAT32), int (UINT32, else INT32, INT64), and
    lists of them (int lists INT32, else INT64); a numpy scalar or array has the type of its dtype. Empty
    lists have none and are left out. TypeError for another dtype or value; ValueError for a name that comes
    twice or a deferred tensor that is not what it promised.
    """
    listed = [(name, _deferred(name, tensor)) for name, tensor in tensors]
    if len({name for name, _ in listed}) != len(listed):
        raise ValueError(f"{path}: a tensor's name comes twice")
    pairs = {key: value for key, value in metadata.items() if not (isinstance(value, list) and not value)}
    alignment = int(pairs.get("general.alignment", DEFAULT_ALIGNMENT))
    with atomic(path) as file:
        file.write(MAGIC + struct.pack("<IQQ", _VERSION, len(listed), len(pairs)))
        for key, value in pairs.items():
            file.write(_string(key) + _value(key, value))
        file.write(_infos(listed, alignment))
        _pad(file, alignment)
        for name, tensor in listed:
            file.write(_bytes(name, tensor))
            _pad(file, alignment)


def _deferred(name: str, tensor: Array | LazyTensor) -> LazyTensor:
    """A tensor as it is written; an array has the type of its dtype."""
    if isinstance(tensor, LazyTensor):
        return tensor
    dtype = tensor.dtype.newbyteorder("<")
    for kind, known in _FLOATS.items():
        if known == dtype:
            return LazyTensor(tensor.shape, kind, lambda: tensor)
    raise TypeError(f"tensor {name} is {dtype}, neither float32 nor float16")


def _infos(tensors: list[tuple[str, LazyTensor]], alignment: int) -> bytes:
    infos, offset = bytearray(), 0
    for name, tensor in tensors:
        shape = tensor.shape[::-1]
        infos += _string(name) + struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
        infos += struct.pack("<IQ", tensor_type(tensor.type).code, offset)
        offset += -(-tensor.nbytes // alignment) * alignment
    return bytes(infos)


def _bytes(name: str, tensor: LazyTensor) -> memoryview:
    values = tensor.load()
    dtype: np.dtype[Any] = _FLOATS.get(tensor.type, np.dtype(np.uint8))
    whole = values.nbytes == tensor.nbytes if tensor.type not in _FLOATS else values.shape == tensor.shape
    if values.dtype.newbyteorder("<") != dtype or not whole:
        promised = f"{tensor.type} {tensor.shape}, {tensor.nbytes:,} bytes"
        raise ValueError(f"tensor {name} is {values.dtype} {values.shape}, promised was {promised}")
    return np.ascontiguousarray(values, dtype=dtype).reshape(-1).view(np.uint8).data


def _pad(file: BinaryIO, alignment: int) -> None:
    file.write(bytes(-file.tell() % alignment))


def _string(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def _value(key: str, value: Any) -> bytes:  # noqa: ANN401
    """A value with its type before it."""
    if isinstance(value, str):
        return struct.pack("<I", STRING) + _string(value)
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return struct.pack("<IIQ", ARRAY, STRING, len(value)) + b"".join(map(_string, value))
    array = _typed(value)
    if array.ndim > 1:
        raise TypeError(f"{key}: GGUF has no arrays of arrays")
    code = BOOL if array.dtype == bool else _code(key, array.dtype)
    data = array.astype(SCALARS[code]).tobytes()
    return (
        struct.pack("<I", code) + data
        if array.ndim == 0
        else struct.pack("<IIQ", ARRAY, code, array.size) + data
    )


def _code(key: str, dtype: np.dtype[Any]) -> int:
    for code, known in SCALARS.items():
        if known == dtype.newbyteorder("<"):
            return code
    raise TypeError(f"{key}: {dtype} is no type of GGUF metadata")


def _typed(value: Any) -> npt.NDArray[Any]:  # noqa: ANN401
    """The value as a numpy array whose dtype is the type it is written in."""
    if isinstance(value, np.generic | np.ndarray):
        return np.asarray(value)
    array = np.asarray(value)
    if array.dtype.kind == "f":
        return array.astype("<f4")
    if array.dtype.kind == "i":
        fitting = ("<u4", "<i4") if array.ndim == 0 else ("<i4",)
        for dtype in fitting:
            if np.all(array == array.astype(dtype)):
                return array.astype(dtype)
    return array
