"""A GGUF reader for untrusted files.

The format (ggml's `docs/gguf.md`), little-endian: magic `GGUF`, u32 version, u64 tensors, u64 key-value
pairs; the pairs (key, u32 value type, value); for each tensor its name, u32 dimensions, u64 sizes
[dimensions] fastest first, u32 type, u64 offset; padding to `general.alignment`; the tensors' bytes. Strings
are a u64 length and UTF-8; arrays a u32 element type, a u64 length and the elements.

gguf-py's reader is not used because it trusts the file. Here every count, length and offset is checked
against the file's size before anything is allocated or read.
"""

import mmap
import os
import re
import struct
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

import numpy as np
import numpy.typing as npt

from meditron.core.errors import InputError
from meditron.store.files import translate_read_errors
from meditron.store.gguf_types import tensor_type_of_code
from meditron.store.gguf_writer import (
    ARRAY,
    BOOL,
    DEFAULT_ALIGNMENT,
    MAGIC,
    SCALARS,
    STRING,
    Array,
    LazyTensor,
    write_gguf,
)

__all__ = ["GGUF", "Array", "LazyTensor", "TensorInfo", "Value", "reject_split_model", "write_gguf"]

Value = str | int | float | bool | list[str] | list[int] | list[float] | list[bool]
"""A metadata value."""

_VERSIONS = (2, 3)
_MAX_DIMENSIONS = 4
# Limits of the format; ggml rejects longer names.
_MAX_KEY, _MAX_NAME = 65_535, 64
MAX_ENTRIES = 1 << 16
"""Most key-value pairs of a file, and most tensors; published models have a few thousand."""
MAX_ELEMENTS = 1 << 22
"""Most elements of all arrays in a file; a vocabulary of 262,144 tokens has 1.4 million with its merges."""
MAX_METADATA_BYTES = 1 << 27
"""Most bytes of a file's key-value pairs; 20 MB are usual."""
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor's position, shape and type."""

    name: str
    shape: tuple[int, ...]
    """In numpy's order: slowest dimension first (the file stores the reverse)."""
    type: str
    """ggml's name of the type: `F16`, `Q4_K`."""
    offset: int
    """Offset of the first byte in the file."""
    nbytes: int


class _Cursor:
    """A position in the mapped file; reading past the end raises InputError."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.size, self.at = path, data, len(data), 0
        self.elements = 0
        """Number of array elements read."""

    def error(self, problem: str, at: int | None = None) -> InputError:
        return InputError(self.path, problem, place=f"byte {self.at if at is None else at}")

    def skip(self, count: int, label: str) -> int:
        """Advance by `count` bytes and return the offset before."""
        start = self.at
        if count > self.size - start:
            raise self.error(f"{label} needs {count:,} bytes, but only {self.size - start:,} are left")
        self.at += count
        return start

    def u32(self, label: str) -> int:
        return int(_U32.unpack_from(self.data, self.skip(4, label))[0])

    def u64(self, label: str) -> int:
        return int(_U64.unpack_from(self.data, self.skip(8, label))[0])

    def string(self, label: str, longest: int | None = None) -> str:
        start = self.at
        length = self.u64(label)
        if longest is not None and length > longest:
            raise self.error(f"{label} has {length:,} bytes, the limit is {longest:,}", start)
        begin = self.skip(length, label)
        try:
            return str(self.data[begin : self.at], "utf-8")
        except UnicodeDecodeError as error:
            raise self.error(f"{label} is not UTF-8", begin + error.start) from error

    def strings(self, count: int, label: str) -> list[str]:
        """Read `count` strings."""
        # A vocabulary has a million strings, so this loop has no call of a method per string.
        data, end, at = self.data, self.size, self.at
        length, texts = _U64.unpack_from, []
        for _ in range(count):
            begin = at + 8
            at = begin + length(data, at)[0] if begin <= end else end + 1
            if at > end or at - begin > MAX_METADATA_BYTES:
                break
            try:
                texts.append(data[begin:at].decode())
            except UnicodeDecodeError:
                break
            self.at = at
        # If the loop stopped early, the offending string is read again for its error.
        return texts + [self.string(label, MAX_METADATA_BYTES) for _ in range(count - len(texts))]

    def count(self, smallest: int, label: str) -> int:
        """Read a number of items of at least `smallest` bytes each; it must fit into the rest of the file."""
        start = self.at
        number = self.u64(f"the number of {label}")
        if number > (self.size - self.at) // smallest:
            raise self.error(f"{number:,} {label} do not fit into {self.size - self.at:,} bytes", start)
        return number

    def array(self, smallest: int, key: str) -> int:
        """Read the length of an array; all arrays of the file share one limit."""
        start = self.at
        number = self.count(smallest, f"elements of {key}")
        self.elements += number
        if self.elements > MAX_ELEMENTS:
            problem = f"{key} has {number:,} elements, all arrays {self.elements:,}"
            raise self.error(f"{problem}; the limit is {MAX_ELEMENTS:,}", start)
        return number


class GGUF:
    """A memory-mapped, validated GGUF file. A context manager; its arrays stay valid after it is closed.

    Raises:
        InputError: the file violates the format; names the byte or the tensor.
        SourceError: there is no such file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with translate_read_errors(path), path.open("rb") as file:
            if os.fstat(file.fileno()).st_size < 4:
                raise InputError(path, "too short for a GGUF file", place="byte 0")
            self._map: mmap.mmap | None = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        cursor = _Cursor(path, self._map)
        self.version, tensors, pairs = _read_header(cursor)
        self.metadata: dict[str, Value] = {}
        """Key → value, as plain Python values."""
        for _ in range(pairs):
            _read_pair(cursor, self.metadata)
            if cursor.at > MAX_METADATA_BYTES:
                raise cursor.error(f"the key-value pairs have more than {MAX_METADATA_BYTES:,} bytes")
        infos = [_read_tensor_info(cursor) for _ in range(tensors)]
        self.tensors: dict[str, TensorInfo] = _absolute_offsets(
            cursor, infos, _alignment(path, self.metadata)
        )
        """Name → tensor, in the file's order."""

    def raw(self, name: str) -> npt.NDArray[np.uint8]:
        """Return a tensor's stored bytes, read-only, without a copy; shape (*shape[:-1], bytes per row)."""
        info = self._info(name)
        if self._map is None:
            raise ValueError(f"{self.path} is closed")
        data = np.frombuffer(self._map, np.uint8, info.nbytes, info.offset)
        return data.reshape(*info.shape[:-1], -1) if info.shape else data

    def dequantize(self, name: str) -> npt.NDArray[np.float32]:
        """Return a tensor's values as a new float32 array; InputError for a type that gguf-py cannot read."""
        from gguf.constants import GGMLQuantizationType
        from gguf.quants import dequantize

        info = self._info(name)
        kind = GGMLQuantizationType[info.type]
        try:
            # In a damaged file the scale of a block can be infinite; the values are returned as they are.
            with np.errstate(all="ignore"):
                values = dequantize(self.raw(name), kind)
        except NotImplementedError as error:
            raise InputError(self.path, f"cannot read tensors of type {info.type}", place=name) from error
        # For F32 the result is a view of the map, which must not be handed out as writable.
        is_copy = values.flags.owndata and values.flags.writeable
        values = values if is_copy else values.copy()
        self._release_pages(info)
        return cast("npt.NDArray[np.float32]", values).reshape(info.shape)

    def _release_pages(self, info: TensorInfo) -> None:
        """Release the memory of a tensor that was read; the kernel reloads it from the file if needed."""
        if self._map is not None and hasattr(self._map, "madvise"):
            start = info.offset // mmap.PAGESIZE * mmap.PAGESIZE
            self._map.madvise(mmap.MADV_DONTNEED, start, info.offset + info.nbytes - start)

    def _info(self, name: str) -> TensorInfo:
        if name not in self.tensors:
            raise InputError(self.path, "no such tensor", place=name)
        return self.tensors[name]

    def close(self) -> None:
        """Close the file; it is unmapped once no array refers to it any more."""
        self._map = None

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()


def reject_split_model(gguf: GGUF) -> None:
    """Raise InputError if the file is one part of a split model."""
    count = gguf.metadata.get("split.count", 1)
    if not isinstance(count, int) or count <= 1:
        return
    number = gguf.metadata.get("split.no", 0)
    first = re.sub(r"-\d{5}-of-(\d{5})\.gguf$", r"-00001-of-\1.gguf", gguf.path.name)
    whole = re.sub(r"-\d{5}-of-\d{5}\.gguf$", ".gguf", gguf.path.name)
    raise InputError(
        gguf.path,
        f"is part {number + 1 if isinstance(number, int) else number} of a model split into {count} files",
        place="split.count",
        hint=f"join the parts with llama.cpp: llama-gguf-split --merge {first} {whole}",
    )


def _read_header(cursor: _Cursor) -> tuple[int, int, int]:
    if (magic := cursor.data[cursor.skip(4, "the magic") : 4]) != MAGIC:
        raise cursor.error(f"not a GGUF file: it begins with {magic!r}", 0)
    version = cursor.u32("the version")
    if version & 0xFFFF == 0:
        raise cursor.error("big-endian GGUF files are not supported", 4)
    if version not in _VERSIONS:
        raise cursor.error(f"GGUF version {version} is not supported (only 2 and 3)", 4)
    # The smallest entries are a scalar tensor without a name (24 bytes) and an empty key with a byte (13).
    tensors, pairs = cursor.count(24, "tensors"), cursor.count(13, "key-value pairs")
    if max(tensors, pairs) > MAX_ENTRIES:
        problem = f"{tensors:,} tensors and {pairs:,} key-value pairs; the limit is {MAX_ENTRIES:,} of each"
        raise cursor.error(problem, 8)
    return version, tensors, pairs


def _read_pair(cursor: _Cursor, into: dict[str, Value]) -> None:
    start = cursor.at
    key = cursor.string("a key", _MAX_KEY)
    if not key or key in into:
        raise cursor.error(f"the key {key!r} occurs twice" if key else "a key is empty", start)
    code = cursor.u32(f"the type of {key}")
    into[key] = _read_array(cursor, key) if code == ARRAY else _read_scalar(cursor, code, key)


def _read_scalar(cursor: _Cursor, code: int, key: str) -> Value:
    if code == STRING:
        return cursor.string(key, MAX_METADATA_BYTES)
    return cast("Value", _read_numbers(cursor, code, 1, key)[0])


def _read_array(cursor: _Cursor, key: str) -> Value:
    code = cursor.u32(f"the element type of {key}")
    smallest = 8 if code == STRING else SCALARS[code].itemsize if code in SCALARS else 1
    count = cursor.array(smallest, key)
    if code == STRING:
        return cursor.strings(count, f"an element of {key}")
    return _read_numbers(cursor, code, count, key)


def _read_numbers(cursor: _Cursor, code: int, count: int, key: str) -> list[Any]:
    if code not in SCALARS:
        raise cursor.error(f"{key} has the unknown type {code}", cursor.at - 4)
    dtype = SCALARS[code]
    start = cursor.skip(count * dtype.itemsize, key)
    values = np.frombuffer(cursor.data, dtype, count, start)
    if code == BOOL:
        if (bad := np.flatnonzero(values > 1)).size:
            raise cursor.error(f"{key} is a boolean, but neither 0 nor 1", start + int(bad[0]))
        values = values.astype(bool)
    return cast("list[Any]", values.tolist())


def _read_tensor_info(cursor: _Cursor) -> tuple[int, TensorInfo]:
    """Read one entry and its position; its offset is still relative to the start of the data."""
    start = cursor.at
    name = cursor.string("a tensor's name", _MAX_NAME)
    if (dimensions := cursor.u32(f"the dimensions of {name}")) > _MAX_DIMENSIONS:
        raise cursor.error(
            f"tensor {name!r} has {dimensions} dimensions, the limit is {_MAX_DIMENSIONS}", start
        )
    shape = tuple(cursor.u64(f"the shape of {name}") for _ in range(dimensions))[::-1]
    code, offset = cursor.u32(f"the type of {name}"), cursor.u64(f"the offset of {name}")
    if not name or 0 in shape:
        raise cursor.error(f"tensor {name!r} of shape {shape} is empty or has no name", start)
    if (kind := tensor_type_of_code(code)) is None:
        raise cursor.error(f"tensor {name!r} has the unknown type {code}", start)
    # A block never spans two rows, so a row must consist of complete blocks.
    if (width := shape[-1] if shape else 1) % kind.block:
        problem = f"tensor {name!r} has rows of {width}, not a multiple of {kind.name}'s {kind.block}"
        raise cursor.error(problem, start)
    return start, TensorInfo(name, shape, kind.name, offset, kind.nbytes(shape))


def _alignment(path: Path, metadata: dict[str, Value]) -> int:
    value = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if type(value) is not int or value < 8 or value & (value - 1):
        raise InputError(
            path, f"must be a power of two of at least 8, got {value!r}", place="general.alignment"
        )
    return value


def _absolute_offsets(
    cursor: _Cursor, infos: list[tuple[int, TensorInfo]], alignment: int
) -> dict[str, TensorInfo]:
    """Convert relative offsets to offsets in the file; check alignment, the file's end and overlaps."""
    begin = -(-cursor.at // alignment) * alignment
    placed: dict[str, TensorInfo] = {}
    for start, info in infos:
        if info.name in placed:
            raise cursor.error(f"tensor {info.name!r} occurs twice", start)
        if info.offset % alignment:
            raise cursor.error(f"tensor {info.name!r} is not aligned to {alignment} bytes", start)
        offset = begin + info.offset
        if offset + info.nbytes > cursor.size:
            end = f"ends at byte {offset + info.nbytes:,}, the file at {cursor.size:,}"
            raise cursor.error(f"tensor {info.name!r} {end}", start)
        placed[info.name] = TensorInfo(info.name, info.shape, info.type, offset, info.nbytes)
    # Two tensors that share bytes would let a small file claim any amount of weights.
    ordered = sorted(placed.values(), key=lambda info: info.offset)
    for before, after in pairwise(ordered):
        if before.offset + before.nbytes > after.offset:
            raise cursor.error(f"tensors {before.name!r} and {after.name!r} overlap", after.offset)
    return placed
