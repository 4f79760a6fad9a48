"""The header of one GGUF file: its key-value pairs and the positions of its tensors, read without trust.

The format is ggml's (`docs/gguf.md`). A file contains, in this order: the magic `GGUF`, a u32 version, the
u64 number of tensors and the u64 number of key-value pairs; each pair as key, u32 value type and value; each
tensor's name, u32 number of dimensions, u64 sizes (fastest dimension first), u32 type and u64 offset; padding
to `general.alignment`; the tensors' bytes. A string is a u64 length and its UTF-8 bytes. An array is a u32
element type, a u64 length and its elements. Numbers are little-endian; in a big-endian file, which has the
same magic, all numbers including those in the tensors are big-endian.

gguf-py's reader is not used, because it does not validate the file. This reader checks every count, length
and offset against the file's size before it allocates or reads anything.
"""

import mmap
import struct
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np

from meditron.core.errors import InputError
from meditron.store.gguf_types import tensor_type_of_code
from meditron.store.gguf_writer import ARRAY, BOOL, DEFAULT_ALIGNMENT, MAGIC, SCALAR_DTYPES, STRING

__all__ = ["GGUFHeader", "MetadataValue", "TensorInfo", "read_gguf_header"]

MetadataValue = str | int | float | bool | list[str] | list[int] | list[float] | list[bool]
"""A metadata value."""

_VERSIONS = (2, 3)
_MAX_DIMENSIONS = 4
# Maximum bytes of a metadata key (the format's limit) and of a tensor's name (ggml rejects longer ones).
_MAX_KEY, _MAX_NAME = 65_535, 64
MAX_ENTRIES = 1 << 16
"""Maximum number of key-value pairs of a file, and of tensors; published models have a few thousand."""
MAX_ELEMENTS = 1 << 22
"""Maximum number of elements of all arrays in a file together; a vocabulary of 262,144 tokens has 1.4 million
elements with its merges."""
MAX_METADATA_BYTES = 1 << 27
"""Maximum size of a file's key-value pairs, in bytes; published models have up to about 20 MB."""


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
    part: int = 0
    """Index of the file that contains the tensor, in a model that is split into several files."""


@dataclass(frozen=True, slots=True)
class GGUFHeader:
    """Everything in one file before the tensors' bytes."""

    version: int
    byte_order: Literal["little", "big"]
    metadata: dict[str, MetadataValue]
    """Key → value, as plain Python values, in the file's order."""
    pair_spans: dict[str, tuple[int, int]]
    """Key → first byte and end of its pair (key, type and value) in the file."""
    tensors: dict[str, TensorInfo]
    """Name → tensor, in the file's order."""
    alignment: int
    """Offsets of tensors are multiples of it."""
    data_start: int
    """First byte after the header and its padding."""


class GGUFCursor:
    """A position in the mapped file; reading past the end raises InputError."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.size, self.at = path, data, len(data), 0
        self.set_byte_order("little")
        self.elements = 0
        """Number of array elements read."""

    def set_byte_order(self, order: Literal["little", "big"]) -> None:
        """Set the byte order of everything read afterwards."""
        self.byte_order = order
        sign = "<" if order == "little" else ">"
        self._u32, self._u64 = struct.Struct(f"{sign}I"), struct.Struct(f"{sign}Q")

    def error_at(self, problem: str, at: int | None = None) -> InputError:
        return InputError(self.path, problem, place=f"byte {self.at if at is None else at}")

    def skip_bytes(self, count: int, label: str) -> int:
        """Advance by `count` bytes and return the offset before."""
        start = self.at
        if count > self.size - start:
            raise self.error_at(f"{label} needs {count:,} bytes, but only {self.size - start:,} are left")
        self.at += count
        return start

    def read_u32(self, label: str) -> int:
        return int(self._u32.unpack_from(self.data, self.skip_bytes(4, label))[0])

    def read_u64(self, label: str) -> int:
        return int(self._u64.unpack_from(self.data, self.skip_bytes(8, label))[0])

    def read_string(self, label: str, longest: int | None = None) -> str:
        start = self.at
        length = self.read_u64(label)
        if longest is not None and length > longest:
            raise self.error_at(f"{label} has {length:,} bytes, the limit is {longest:,}", start)
        begin = self.skip_bytes(length, label)
        try:
            return str(self.data[begin : self.at], "utf-8")
        except UnicodeDecodeError as error:
            raise self.error_at(f"{label} is not UTF-8", begin + error.start) from error

    def read_strings(self, count: int, label: str) -> list[str]:
        """Read `count` strings."""
        # The metadata of a vocabulary has about a million strings, and a method call for each would be slow.
        data, end, at = self.data, self.size, self.at
        length, texts = self._u64.unpack_from, []
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
        # If the loop stopped at an invalid string, `read_string` reads it again and raises the error for it.
        return texts + [self.read_string(label, MAX_METADATA_BYTES) for _ in range(count - len(texts))]

    def read_count(self, smallest: int, label: str) -> int:
        """Read a u64 count of items; items of `smallest` bytes each must fit into the rest of the file."""
        start = self.at
        number = self.read_u64(f"the number of {label}")
        if number > (self.size - self.at) // smallest:
            raise self.error_at(f"{number:,} {label} do not fit into {self.size - self.at:,} bytes", start)
        return number

    def read_array_length(self, smallest: int, key: str) -> int:
        """Read the length of an array; the lengths of all arrays of the file together are limited."""
        start = self.at
        number = self.read_count(smallest, f"elements of {key}")
        self.elements += number
        if self.elements > MAX_ELEMENTS:
            problem = f"{key} has {number:,} elements, all arrays {self.elements:,}"
            raise self.error_at(f"{problem}; the limit is {MAX_ELEMENTS:,}", start)
        return number


def read_gguf_header(path: Path, data: mmap.mmap) -> GGUFHeader:
    """Read and validate the header of a mapped GGUF file, versions 2 and 3, in either byte order.

    Raises:
        InputError: the file violates the format; the error names the byte or the tensor.
    """
    cursor = GGUFCursor(path, data)
    version, tensors, pairs = _read_counts(cursor)
    metadata: dict[str, MetadataValue] = {}
    spans: dict[str, tuple[int, int]] = {}
    for _ in range(pairs):
        start = cursor.at
        key = _read_metadata_pair(cursor, metadata)
        spans[key] = (start, cursor.at)
        if cursor.at > MAX_METADATA_BYTES:
            raise cursor.error_at(f"the key-value pairs have more than {MAX_METADATA_BYTES:,} bytes")
    infos = [_read_tensor_info(cursor) for _ in range(tensors)]
    alignment = _read_alignment(path, metadata)
    begin = -(-cursor.at // alignment) * alignment
    by_name = _absolute_offsets(cursor, infos, alignment, begin)
    return GGUFHeader(version, cursor.byte_order, metadata, spans, by_name, alignment, begin)


def _read_counts(cursor: GGUFCursor) -> tuple[int, int, int]:
    if (magic := cursor.data[cursor.skip_bytes(4, "the magic") : 4]) != MAGIC:
        raise cursor.error_at(f"not a GGUF file: it begins with {magic!r}", 0)
    version = cursor.read_u32("the version")
    if version and version & 0xFFFF == 0:  # a small number in the other byte order
        cursor.set_byte_order("big")
        version = int.from_bytes(version.to_bytes(4, "little"), "big")
    if version not in _VERSIONS:
        raise cursor.error_at(f"GGUF version {version} is not supported (only 2 and 3)", 4)
    # The smallest tensor entry, a scalar without a name, has 24 bytes; the smallest pair, an empty key with a
    # value of one byte, has 13 bytes.
    tensors, pairs = cursor.read_count(24, "tensors"), cursor.read_count(13, "key-value pairs")
    if max(tensors, pairs) > MAX_ENTRIES:
        problem = f"{tensors:,} tensors and {pairs:,} key-value pairs; the limit is {MAX_ENTRIES:,} of each"
        raise cursor.error_at(problem, 8)
    return version, tensors, pairs


def _read_metadata_pair(cursor: GGUFCursor, into: dict[str, MetadataValue]) -> str:
    """Read a pair into a dict, and return its key."""
    start = cursor.at
    key = cursor.read_string("a key", _MAX_KEY)
    if not key or key in into:
        raise cursor.error_at(f"the key {key!r} occurs twice" if key else "a key is empty", start)
    code = cursor.read_u32(f"the type of {key}")
    into[key] = _read_array(cursor, key) if code == ARRAY else _read_scalar(cursor, code, key)
    return key


def _read_scalar(cursor: GGUFCursor, code: int, key: str) -> MetadataValue:
    if code == STRING:
        return cursor.read_string(key, MAX_METADATA_BYTES)
    return cast("MetadataValue", _read_numbers(cursor, code, 1, key)[0])


def _read_array(cursor: GGUFCursor, key: str) -> MetadataValue:
    code = cursor.read_u32(f"the element type of {key}")
    smallest = 8 if code == STRING else SCALAR_DTYPES[code].itemsize if code in SCALAR_DTYPES else 1
    count = cursor.read_array_length(smallest, key)
    if code == STRING:
        return cursor.read_strings(count, f"an element of {key}")
    return _read_numbers(cursor, code, count, key)


def _read_numbers(cursor: GGUFCursor, code: int, count: int, key: str) -> list[Any]:
    if code not in SCALAR_DTYPES:
        raise cursor.error_at(f"{key} has the unknown type {code}", cursor.at - 4)
    dtype = SCALAR_DTYPES[code].newbyteorder("<" if cursor.byte_order == "little" else ">")
    start = cursor.skip_bytes(count * dtype.itemsize, key)
    values = np.frombuffer(cursor.data, dtype, count, start)
    if code == BOOL:
        if (bad := np.flatnonzero(values > 1)).size:
            raise cursor.error_at(f"{key} is a boolean, but neither 0 nor 1", start + int(bad[0]))
        values = values.astype(bool)
    return cast("list[Any]", values.tolist())


def _read_tensor_info(cursor: GGUFCursor) -> tuple[int, TensorInfo]:
    """Read one tensor's entry; return the entry's position and the entry.

    The entry's offset is still relative to the start of the tensor data.
    """
    start = cursor.at
    name = cursor.read_string("a tensor's name", _MAX_NAME)
    if (dimensions := cursor.read_u32(f"the dimensions of {name}")) > _MAX_DIMENSIONS:
        raise cursor.error_at(
            f"tensor {name!r} has {dimensions} dimensions, the limit is {_MAX_DIMENSIONS}", start
        )
    shape = tuple(cursor.read_u64(f"the shape of {name}") for _ in range(dimensions))[::-1]
    code, offset = cursor.read_u32(f"the type of {name}"), cursor.read_u64(f"the offset of {name}")
    if not name or 0 in shape:
        raise cursor.error_at(f"tensor {name!r} of shape {shape} is empty or has no name", start)
    if (kind := tensor_type_of_code(code)) is None:
        raise cursor.error_at(f"tensor {name!r} has the unknown type {code}", start)
    # A block never spans two rows, so a row must consist of complete blocks.
    if (width := shape[-1] if shape else 1) % kind.block_size:
        problem = f"tensor {name!r} has rows of {width}, not a multiple of {kind.name}'s {kind.block_size}"
        raise cursor.error_at(problem, start)
    return start, TensorInfo(name, shape, kind.name, offset, kind.nbytes(shape))


def _read_alignment(path: Path, metadata: dict[str, MetadataValue]) -> int:
    value = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    if type(value) is not int or value < 8 or value & (value - 1):
        raise InputError(
            path, f"must be a power of two of at least 8, got {value!r}", place="general.alignment"
        )
    return value


def _absolute_offsets(
    cursor: GGUFCursor, infos: list[tuple[int, TensorInfo]], alignment: int, begin: int
) -> dict[str, TensorInfo]:
    """Convert offsets in the tensor data to offsets in the file; check alignment, overlap and file size."""
    tensors_by_name: dict[str, TensorInfo] = {}
    for start, info in infos:
        if info.name in tensors_by_name:
            raise cursor.error_at(f"tensor {info.name!r} occurs twice", start)
        if info.offset % alignment:
            raise cursor.error_at(f"tensor {info.name!r} is not aligned to {alignment} bytes", start)
        offset = begin + info.offset
        if offset + info.nbytes > cursor.size:
            end = f"ends at byte {offset + info.nbytes:,}, the file at {cursor.size:,}"
            raise cursor.error_at(f"tensor {info.name!r} {end}", start)
        tensors_by_name[info.name] = TensorInfo(info.name, info.shape, info.type, offset, info.nbytes)
    # If tensors could share bytes, a small file could declare any number of weights.
    ordered = sorted(tensors_by_name.values(), key=lambda info: info.offset)
    for before, after in pairwise(ordered):
        if before.offset + before.nbytes > after.offset:
            raise cursor.error_at(f"tensors {before.name!r} and {after.name!r} overlap", after.offset)
    return tensors_by_name
