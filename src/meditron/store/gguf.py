"""A GGUF model in one file or several parts, for untrusted files."""

import mmap
import os
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self, cast

import numpy as np
import numpy.typing as npt

from meditron.core.errors import InputError
from meditron.store.files import translate_read_errors
from meditron.store.gguf_blocks import BLOCK_FIELDS, swap_blocks
from meditron.store.gguf_header import GGUFHeader, MetadataValue, TensorInfo, read_gguf_header
from meditron.store.gguf_parts import find_parts, require_complete_split
from meditron.store.gguf_writer import Array, LazyTensor, write_gguf

__all__ = ["GGUF", "Array", "LazyTensor", "MetadataValue", "TensorInfo", "map_gguf", "write_gguf"]


def map_gguf(path: Path) -> tuple[mmap.mmap, GGUFHeader]:
    """Map one GGUF file into memory, and read its header.

    Raises:
        InputError: the file violates the format; the error names the byte or the tensor.
        SourceError: there is no such file.
    """
    with translate_read_errors(path), path.open("rb") as file:
        if os.fstat(file.fileno()).st_size < 4:
            raise InputError(path, "too short for a GGUF file", place="byte 0")
        data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    return data, read_gguf_header(path, data)


class GGUF:
    """A memory-mapped, validated GGUF model and a context manager. Returned arrays stay valid after closing.

    Any part of a split model opens the whole model; the other parts are found by their names.

    Raises:
        InputError: a file violates the format, or a part is missing; the error names the byte or the tensor.
        SourceError: there is no such file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        data, header = map_gguf(path)
        self.files = tuple(find_parts(path, header))
        """The file, or all parts of a split model in order."""
        self._maps: list[mmap.mmap] | None = [data]
        headers = [header]
        if len(self.files) > 1:
            # The given part is mapped again, so that all parts are in order.
            mapped = [map_gguf(part) for part in self.files]
            self._maps, headers = [data for data, _ in mapped], [header for _, header in mapped]
            require_complete_split(self.files, headers)
        self.version: int = headers[0].version
        self.byte_order: Literal["little", "big"] = headers[0].byte_order
        """Byte order of the file; everything that is returned has the machine's."""
        self.metadata: dict[str, MetadataValue] = headers[0].metadata
        """Key → value, as plain Python values; of a split model those of the first part."""
        self.tensors: dict[str, TensorInfo] = {
            name: replace(info, part=index) if index else info
            for index, header in enumerate(headers)
            for name, info in header.tensors.items()
        }
        """Name → tensor, in the file's order."""

    @property
    def nbytes(self) -> int:
        """Size of the file, or of all parts together, in bytes."""
        return sum(part.stat().st_size for part in self.files)

    def raw_tensor(self, name: str) -> npt.NDArray[np.uint8]:
        """Return a tensor's stored bytes in little-endian order, of shape (*shape[:-1], bytes per row).

        The array is a read-only view of the file; of a big-endian file it is a copy.
        """
        info = self._tensor_info(name)
        if self._maps is None:
            raise ValueError(f"{self.path} is closed")
        data = np.frombuffer(self._maps[info.part], np.uint8, info.nbytes, info.offset)
        if self.byte_order == "big":
            if info.type not in BLOCK_FIELDS:
                problem = f"cannot read big-endian tensors of type {info.type}"
                raise InputError(self.files[info.part], problem, place=name)
            data = swap_blocks(data, info.type)
        return data.reshape(*info.shape[:-1], -1) if info.shape else data

    def dequantize(self, name: str) -> npt.NDArray[np.float32]:
        """Return a tensor's values as a new float32 array; InputError for a type that gguf-py cannot read."""
        from gguf.constants import GGMLQuantizationType
        from gguf.quants import dequantize

        info = self._tensor_info(name)
        kind = GGMLQuantizationType[info.type]
        try:
            # In a damaged file the scale of a block can be infinite. numpy's warnings about the resulting
            # infinite values are suppressed, and the values are returned.
            with np.errstate(all="ignore"):
                values: npt.NDArray[Any] = dequantize(self.raw_tensor(name), kind)
        except NotImplementedError as error:
            raise InputError(self.path, f"cannot read tensors of type {info.type}", place=name) from error
        # For F32 the result of gguf-py is a read-only view of the mapped file; callers get a writable copy.
        is_copy = values.flags.owndata and values.flags.writeable
        values = values if is_copy else values.copy()
        self.release_pages(name)
        return cast("npt.NDArray[np.float32]", values).reshape(info.shape)

    def release_pages(self, name: str) -> None:
        """Let the kernel drop a tensor's pages from memory; it reads them from the file again if needed."""
        info = self._tensor_info(name)
        if self._maps is not None and hasattr(mmap.mmap, "madvise"):
            start = info.offset // mmap.PAGESIZE * mmap.PAGESIZE
            self._maps[info.part].madvise(mmap.MADV_DONTNEED, start, info.offset + info.nbytes - start)

    def _tensor_info(self, name: str) -> TensorInfo:
        if name not in self.tensors:
            raise InputError(self.path, "no such tensor", place=name)
        return self.tensors[name]

    def close(self) -> None:
        """Close the files. Python unmaps one when no array refers to it any more."""
        self._maps = None

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close."""
        self.close()
