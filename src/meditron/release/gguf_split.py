"""Splitting of a GGUF file: into the parts of llama.cpp's gguf-split, or into plain pieces of its bytes."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import groupby
from operator import attrgetter
from pathlib import Path
from typing import Any

from meditron.core.console import progress
from meditron.core.errors import InputError, UsageError
from meditron.core.units import format_bytes
from meditron.store.files import translate_read_errors
from meditron.store.gguf import map_gguf
from meditron.store.gguf_header import GGUFHeader, TensorInfo
from meditron.store.gguf_parts import (
    SPLIT_COUNT,
    SPLIT_KEYS,
    SPLIT_NUMBER,
    SPLIT_TENSORS,
    part_name,
    part_of,
)
from meditron.store.gguf_types import tensor_type
from meditron.store.gguf_writer import DEFAULT_ALIGNMENT, MAGIC
from meditron.store.new_files import NewFile, create_new_files

__all__ = ["GGUFLayout", "metadata_bytes", "plain_part_name", "split_bytes", "split_gguf", "write_tensors"]

_UINT16, _INT32 = 2, 5  # codes of the types that gguf-split gives its keys
_MAX_PARTS = 65_535
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


def plain_part_name(name: str, index: int) -> str:
    """Return the name of a plain part: `model.gguf-split-b` for part 1 (from 0) of `model.gguf`."""
    return f"{name}-split-{_LETTERS[index]}"


@dataclass(slots=True)
class GGUFLayout:
    """The layout of a GGUF file that is made of existing pairs and tensors, in their byte order."""

    version: int
    byte_order: str
    alignment: int
    pairs: bytes
    """The encoded key-value pairs."""
    pair_count: int
    tensors: list[TensorInfo] = field(default_factory=list)
    _info_bytes: int = 0
    _data_bytes: int = 0

    def size_with(self, tensor: TensorInfo) -> int:
        """Return the size that the file would have with one more tensor."""
        infos = self._info_bytes + _info_bytes(tensor)
        return self._file_bytes(infos, self._data_bytes + self._padded(tensor.nbytes))

    def add(self, tensor: TensorInfo) -> None:
        """Append a tensor."""
        self.tensors.append(tensor)
        self._info_bytes += _info_bytes(tensor)
        self._data_bytes += self._padded(tensor.nbytes)

    @property
    def nbytes(self) -> int:
        """Size of the file."""
        return self._file_bytes(self._info_bytes, self._data_bytes)

    def _file_bytes(self, infos: int, data: int) -> int:
        return self._padded(len(MAGIC) + 20 + len(self.pairs) + infos) + data

    def _padded(self, nbytes: int) -> int:
        return -(-nbytes // self.alignment) * self.alignment

    def header_bytes(self) -> bytes:
        """Return everything before the tensors' bytes, with its padding."""
        sign = "<" if self.byte_order == "little" else ">"
        header = MAGIC + struct.pack(f"{sign}IQQ", self.version, len(self.tensors), self.pair_count)
        infos, offset = bytearray(), 0
        for tensor in self.tensors:
            name, shape = tensor.name.encode(), tensor.shape[::-1]
            infos += struct.pack(f"{sign}Q", len(name)) + name
            infos += struct.pack(f"{sign}I{len(shape)}Q", len(shape), *shape)
            infos += struct.pack(f"{sign}IQ", tensor_type(tensor.type).code, offset)
            offset += self._padded(tensor.nbytes)
        content = header + self.pairs + bytes(infos)
        return content + bytes(-len(content) % self.alignment)


def _info_bytes(tensor: TensorInfo) -> int:
    """Return the bytes of a tensor's entry in the header."""
    return 24 + len(tensor.name.encode()) + 8 * len(tensor.shape)


def metadata_bytes(path: Path, header: GGUFHeader) -> tuple[bytes, int]:
    """Return a file's encoded key-value pairs without those of a split, and their number.

    The bytes are copied, because a decoded value no longer has its type: a UINT64 would become a UINT32.
    """
    spans = [span for key, span in header.pair_spans.items() if key not in SPLIT_KEYS]
    with translate_read_errors(path), path.open("rb") as file:
        content = file.read(header.data_start)
    return b"".join(content[start:end] for start, end in spans), len(spans)


def write_tensors(new: NewFile, layout: GGUFLayout, files: Sequence[Path]) -> None:
    """Append the tensors of a layout to a new file.

    `TensorInfo.part` is the index in `files` of each tensor's file; the tensors of a file are adjacent.
    """
    for part, tensors in groupby(layout.tensors, key=attrgetter("part")):
        with translate_read_errors(files[part]), files[part].open("rb") as source:
            for tensor in tensors:
                new.copy(source, files[part], tensor.offset, tensor.nbytes)
                new.pad(layout.alignment)


def split_gguf(path: Path, max_bytes: int) -> dict[str, Any]:
    """Split a GGUF file into parts `STEM-0000i-of-0000n.gguf` beside it, which llama.cpp loads as they are.

    Keys, types and layout are those of llama.cpp's gguf-split; the whole part, and not only its tensors, is
    at most `max_bytes` long. Joined again, the parts give the bytes of the file, if it was written by
    meditron, gguf-py or llama.cpp.

    Returns:
        `files`: `path`, `bytes` and `sha256` of each part; `kind`: `gguf-split`.

    Raises:
        UsageError: the file need not be split, a tensor is larger than a part, or a part exists.
        InputError: the file is damaged, or is a part itself.
        StorageError: the disk has too little space.
    """
    _, header = map_gguf(path)
    if part_of(path, header):
        raise InputError(
            path, "is a part of a split model", place=SPLIT_COUNT, hint="join the parts first: meditron join"
        )
    _require_larger(path, max_bytes)
    layouts = _divide(path, header, max_bytes)
    stem = path.name.removesuffix(".gguf")
    paths = [path.with_name(part_name(stem, index + 1, len(layouts))) for index in range(len(layouts))]
    total = sum(layout.nbytes for layout in layouts)
    with (
        progress(f"split {path.name}", total, unit="B") as bar,
        create_new_files(paths, total, bar) as files,
    ):
        for new, layout in zip(files, layouts, strict=True):
            with new:
                new.write(layout.header_bytes())
                write_tensors(new, layout, [path])
    return {"files": [new.record for new in files], "kind": "gguf-split"}


def _require_larger(path: Path, max_bytes: int) -> None:
    if (size := path.stat().st_size) <= max_bytes:
        raise UsageError(f"{path}: has {format_bytes(size)}, not more than --max-size; nothing to split")


def _divide(path: Path, header: GGUFHeader, max_bytes: int) -> list[GGUFLayout]:
    """Distribute the tensors, in their order, over as few parts as the order allows."""
    pairs, count = metadata_bytes(path, header)
    layouts = [GGUFLayout(header.version, header.byte_order, header.alignment, pairs, count)]
    # The keys of the split have the same length in every part, so they can be replaced at the end.
    _add_split_pairs(layouts[0], 0, 0, len(header.tensors))
    if layouts[0].nbytes > max_bytes:
        raise UsageError(
            f"--max-size: the metadata alone has {format_bytes(layouts[0].nbytes)}",
            hint="choose a larger size, or --plain",
        )
    for tensor in header.tensors.values():
        if layouts[-1].size_with(tensor) <= max_bytes:
            layouts[-1].add(tensor)
            continue
        # Only the first part has the alignment's key; in the others the default applies.
        part = GGUFLayout(header.version, header.byte_order, DEFAULT_ALIGNMENT, b"", 0)
        _add_split_pairs(part, 0, 0, len(header.tensors))
        part.add(tensor)
        if part.nbytes > max_bytes:
            raise UsageError(
                f"--max-size: the tensor {tensor.name} alone takes {format_bytes(part.nbytes)}",
                hint=f"at least --max-size {part.nbytes}, or --plain to cut inside a tensor",
            )
        layouts.append(part)
    if len(layouts) > _MAX_PARTS:
        raise UsageError(f"--max-size: gives {len(layouts):,} parts, the limit is {_MAX_PARTS:,}")
    for index, layout in enumerate(layouts):
        layout.pairs, layout.pair_count = (pairs, count) if index == 0 else (b"", 0)
        _add_split_pairs(layout, index, len(layouts), len(header.tensors))
    return layouts


def _add_split_pairs(layout: GGUFLayout, number: int, count: int, tensors: int) -> None:
    sign = "<" if layout.byte_order == "little" else ">"
    # This is gguf-split's order: it sets the count last, when it knows it.
    for key, form, code, value in (
        (SPLIT_NUMBER, "H", _UINT16, number),
        (SPLIT_TENSORS, "i", _INT32, tensors),
        (SPLIT_COUNT, "H", _UINT16, count),
    ):
        name = key.encode()
        layout.pairs += struct.pack(f"{sign}Q", len(name)) + name + struct.pack(f"{sign}I{form}", code, value)
        layout.pair_count += 1


def split_bytes(path: Path, max_bytes: int) -> dict[str, Any]:
    """Cut a file into plain pieces `NAME-split-a`, `NAME-split-b` … beside it; `cat` joins them again.

    Returns:
        `files`: `path`, `bytes` and `sha256` of each piece; `kind`: `plain`.

    Raises:
        UsageError: the file need not be cut, would have more than 26 pieces, or a piece exists.
        SourceError: there is no such file.
        StorageError: the disk has too little space.
    """
    with translate_read_errors(path), path.open("rb") as source:
        size = path.stat().st_size
        _require_larger(path, max_bytes)
        starts = range(0, size, max_bytes)
        if len(starts) > len(_LETTERS):
            raise UsageError(
                f"--max-size: gives {len(starts):,} pieces, the limit is {len(_LETTERS)}",
                hint=f"at least --max-size {-(-size // len(_LETTERS))}",
            )
        paths = [path.with_name(plain_part_name(path.name, index)) for index in range(len(starts))]
        with (
            progress(f"split {path.name}", size, unit="B") as bar,
            create_new_files(paths, size, bar) as files,
        ):
            for new, start in zip(files, starts, strict=True):
                with new:
                    new.copy(source, path, start, min(max_bytes, size - start))
    return {"files": [new.record for new in files], "kind": "plain"}
