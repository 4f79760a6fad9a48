"""GGUF files: a reader that trusts nothing, and the writer.

The format (ggml's `docs/gguf.md`), little-endian: magic `GGUF`, u32 version, u64 tensors, u64 key-value
pairs; the pairs (key, u32 value type, value); for each tensor its name, u32 dimensions, u64 sizes
[dimensions] fastest first, u32 type, u64 offset; padding to `general.alignment`; the tensors' bytes. Strings
are a u64 length and UTF-8; arrays a u32 element type, a u64 length and the elements.

The reader is our own because every count, length and offset in a file from outside may lie: each is checked
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

__all__ = ["GGUF", "Array", "LazyTensor", "TensorInfo", "Value", "require_whole", "write_gguf"]

Value = str | int | float | bool | list[str] | list[int] | list[float] | list[bool]
"""A metadata value as the reader gives it."""

_VERSIONS = (2, 3)
_MAX_DIMENSIONS = 4
# The format's own limits on names; ggml refuses longer ones.
_MAX_KEY, _MAX_NAME = 65_535, 64
MAX_ENTRIES = 1 << 16
"""Key-value pairs of a file, and tensors; published models have a few thousand."""
MAX_ELEMENTS = 1 << 22
"""Elements of all arrays of a file together; a vocabulary of 262,144 tokens has 1.4 million with merges."""
MAX_METADATA_BYTES = 1 << 27
"""Bytes of a file's key-value pairs; 20 MB are usual."""
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where a tensor lies and what it is."""

    name: str
    shape: tuple[int, ...]
    """numpy's order: slowest dimension first (the file has it the other way round)."""
    type: str
    """ggml's name of the type: `F16`, `Q4_K`."""
    offset: int
    """Of the first byte, from the start of the file."""
    nbytes: int


class _Cursor:
    """Reads forward through a map and fails before the end is crossed."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.size, self.at = path, data, len(data), 0
        self.elements = 0
        """Of the arrays read so far."""

    def fail(self, problem: str, at: int | None = None) -> InputError:
        return InputError(self.path, problem, place=f"byte {self.at if at is None else at}")

    def skip(self, count: int, what: str) -> int:
        """Step over `count` bytes and return where they start."""
        start = self.at
        if count > self.size - start:
            raise self.fail(f"{what} would need {count:,} bytes where {self.size - start:,} are left")
        self.at += count
        return start

    def u32(self, what: str) -> int:
        return int(_U32.unpack_from(self.data, self.skip(4, what))[0])

    def u64(self, what: str) -> int:
        return int(_U64.unpack_from(self.data, self.skip(8, what))[0])

    def string(self, what: str, longest: int | None = None) -> str:
        start = self.at
        length = self.u64(what)
        if longest is not None and length > longest:
            raise self.fail(f"{what} has {length:,} bytes, {longest:,} are allowed", start)
        begin = self.skip(length, what)
        try:
            return str(self.data[begin : self.at], "utf-8")
        except UnicodeDecodeError as error:
            raise self.fail(f"{what} is not UTF-8", begin + error.start) from error

    def strings(self, count: int, what: str) -> list[str]:
        """So many texts: the bulk of a file's metadata, hence without a call for each."""
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
        # Whatever broke off is read again, for its error.
        return texts + [self.string(what, MAX_METADATA_BYTES) for _ in range(count - len(texts))]

    def count(self, smallest: int, what: str) -> int:
        """A number of things that take at least `smallest` bytes each, so that no file can promise more."""
        start = self.at
        number = self.u64(f"the number of {what}")
        if number > (self.size - self.at) // smallest:
            raise self.fail(f"{number:,} {what} cannot be in {self.size - self.at:,} bytes", start)
        return number

    def array(self, smallest: int, key: str) -> int:
        """The number of an array's elements, within what all arrays may have together."""
        start = self.at
        number = self.count(smallest, f"elements of {key}")
        self.elements += number
        if self.elements > MAX_ELEMENTS:
            problem = (
                f"{key} has {number:,} elements, all arrays {self.elements:,}; {MAX_ELEMENTS:,} are allowed"
            )
            raise self.fail(problem, start)
        return number


class GGUF:
    """A GGUF file, memory-mapped and checked. A context manager; arrays got from it outlive it.

    InputError, with the byte or the tensor, for whatever breaks the format; SourceError where there is no
    such file.
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
                raise cursor.fail(f"the key-value pairs take more than {MAX_METADATA_BYTES:,} bytes")
        infos = [_read_tensor_info(cursor) for _ in range(tensors)]
        self.tensors: dict[str, TensorInfo] = _place(cursor, infos, _alignment(path, self.metadata))
        """Name → where it lies, in the file's order."""

    def raw(self, name: str) -> npt.NDArray[np.uint8]:
        """A tensor's bytes as they lie, read-only, without a copy: shape[:-1] and then the bytes of a row."""
        info = self._info(name)
        if self._map is None:
            raise ValueError(f"{self.path} is closed")
        data = np.frombuffer(self._map, np.uint8, info.nbytes, info.offset)
        return data.reshape(*info.shape[:-1], -1) if info.shape else data

    def dequantize(self, name: str) -> npt.NDArray[np.float32]:
        """A tensor's values as float32, an array of its own; InputError for a type that has no reference."""
        from gguf.constants import GGMLQuantizationType
        from gguf.quants import dequantize

        info = self._info(name)
        kind = GGMLQuantizationType[info.type]
        try:
            # A block's scale may be infinite in a damaged file: that is a value, no reason to stop.
            with np.errstate(all="ignore"):
                values = dequantize(self.raw(name), kind)
        except NotImplementedError as error:
            raise InputError(self.path, f"cannot read tensors of type {info.type}", place=name) from error
        owned = values.flags.owndata and values.flags.writeable
        values = values if owned else values.copy()
        self._forget(info)
        return cast("npt.NDArray[np.float32]", values).reshape(info.shape)

    def _forget(self, info: TensorInfo) -> None:
        """Let the kernel take back the pages of a tensor that was read: the file has them still."""
        if self._map is not None and hasattr(self._map, "madvise"):
            start = info.offset // mmap.PAGESIZE * mmap.PAGESIZE
            self._map.madvise(mmap.MADV_DONTNEED, start, info.offset + info.nbytes - start)

    def _info(self, name: str) -> TensorInfo:
        if name not in self.tensors:
            raise InputError(self.path, "no such tensor", place=name)
        return self.tensors[name]

    def close(self) -> None:
        """Let go of the file; it is unmapped when the last array that looks into it is gone."""
        self._map = None

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()


def require_whole(gguf: GGUF) -> None:
    """Raise InputError for one part of a model that is split into several files."""
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
        raise cursor.fail(f"starts with {magic!r}: not a GGUF file", 0)
    version = cursor.u32("the version")
    if version & 0xFFFF == 0:
        raise cursor.fail("a big-endian GGUF file; only little-endian ones are read", 4)
    if version not in _VERSIONS:
        raise cursor.fail(f"GGUF version {version}; versions 2 and 3 are read", 4)
    # An unnamed scalar F32 tensor takes 24 bytes, a pair with an empty key and a byte for a value 13.
    tensors, pairs = cursor.count(24, "tensors"), cursor.count(13, "key-value pairs")
    if max(tensors, pairs) > MAX_ENTRIES:
        problem = f"{tensors:,} tensors and {pairs:,} key-value pairs; {MAX_ENTRIES:,} of each are allowed"
        raise cursor.fail(problem, 8)
    return version, tensors, pairs


def _read_pair(cursor: _Cursor, into: dict[str, Value]) -> None:
    start = cursor.at
    key = cursor.string("a key", _MAX_KEY)
    if not key or key in into:
        raise cursor.fail(f"the key {key!r} comes twice" if key else "a key without a name", start)
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
        raise cursor.fail(f"{key} has the unknown type {code}", cursor.at - 4)
    dtype = SCALARS[code]
    start = cursor.skip(count * dtype.itemsize, key)
    values = np.frombuffer(cursor.data, dtype, count, start)
    if code == BOOL:
        if (bad := np.flatnonzero(values > 1)).size:
            raise cursor.fail(f"{key} is neither true nor false", start + int(bad[0]))
        values = values.astype(bool)
    return cast("list[Any]", values.tolist())


def _read_tensor_info(cursor: _Cursor) -> tuple[int, TensorInfo]:
    """One entry, with the byte it starts at; its offset is still from the start of the data."""
    start = cursor.at
    name = cursor.string("a tensor's name", _MAX_NAME)
    if (dimensions := cursor.u32(f"the dimensions of {name}")) > _MAX_DIMENSIONS:
        raise cursor.fail(
            f"tensor {name!r} has {dimensions} dimensions, {_MAX_DIMENSIONS} are allowed", start
        )
    shape = tuple(cursor.u64(f"the shape of {name}") for _ in range(dimensions))[::-1]
    code, offset = cursor.u32(f"the type of {name}"), cursor.u64(f"the offset of {name}")
    if not name or 0 in shape:
        raise cursor.fail(f"tensor {name!r} of shape {shape} is no tensor", start)
    if (kind := tensor_type_of_code(code)) is None:
        raise cursor.fail(f"tensor {name!r} has the unknown type {code}", start)
    if (shape[-1] if shape else 1) % kind.block:
        raise cursor.fail(
            f"tensor {name!r} has rows of {shape[-1:]}, {kind.name} needs multiples of {kind.block}", start
        )
    return start, TensorInfo(name, shape, kind.name, offset, kind.nbytes(shape))


def _alignment(path: Path, metadata: dict[str, Value]) -> int:
    value = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if type(value) is not int or value < 8 or value & (value - 1):
        raise InputError(path, f"an alignment of {value!r}", place="general.alignment")
    return value


def _place(cursor: _Cursor, infos: list[tuple[int, TensorInfo]], alignment: int) -> dict[str, TensorInfo]:
    """Check that the tensors lie aligned, inside the file and apart, and give them their offsets in it."""
    begin = -(-cursor.at // alignment) * alignment
    placed: dict[str, TensorInfo] = {}
    for start, info in infos:
        if info.name in placed:
            raise cursor.fail(f"tensor {info.name!r} comes twice", start)
        if info.offset % alignment:
            raise cursor.fail(f"tensor {info.name!r} is not aligned to {alignment} bytes", start)
        offset = begin + info.offset
        if offset + info.nbytes > cursor.size:
            end = f"ends at byte {offset + info.nbytes:,}, the file at {cursor.size:,}"
            raise cursor.fail(f"tensor {info.name!r} {end}", start)
        placed[info.name] = TensorInfo(info.name, info.shape, info.type, offset, info.nbytes)
    ordered = sorted(placed.values(), key=lambda info: info.offset)
    for before, after in pairwise(ordered):
        if before.offset + before.nbytes > after.offset:
            raise cursor.fail(f"tensors {before.name!r} and {after.name!r} overlap", after.offset)
    return placed
