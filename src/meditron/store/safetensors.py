"""A reader of safetensors files as memory-mapped numpy arrays.

The safetensors package validates the file, but its numpy interface cannot read bfloat16 and copies every
tensor. Here a tensor is a view of the mapped file, so a model of any size takes no memory of its own.
"""

import json
import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open

from meditron.core.errors import InputError
from meditron.store.files import read_json, translate_read_errors

__all__ = ["FLOAT_DTYPES", "SafetensorsFile", "StoredTensor", "stored_as_float32", "tensor_files"]

FLOAT_DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "BF16": np.dtype("<u2"),
}
"""Supported types → numpy's dtype; a bfloat16, which numpy lacks, is its bits in uint16."""


def stored_as_float32(stored: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Return floats of any stored type in float32; uint16 are the bits of bfloat16."""
    if stored.dtype == np.uint16:  # a bfloat16 is the upper half of a float32
        return (stored.astype(np.uint32) << 16).view(np.float32)
    return np.ascontiguousarray(stored, dtype=np.float32)


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor's type, shape and position."""

    type: str
    """safetensors' name of the type: `F32`, `BF16`, `I64`."""
    shape: tuple[int, ...]
    offset: int
    """Offset of the first byte in the file."""


class SafetensorsFile:
    """A validated, memory-mapped safetensors file. Arrays stay valid as long as they are referenced.

    Raises:
        InputError: the file violates the format.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with _validated(path), translate_read_errors(path), path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header: dict[str, Any] = json.loads(file.read(length))
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        header.pop("__metadata__", None)
        self.tensors = {
            name: StoredTensor(entry["dtype"], tuple(entry["shape"]), 8 + length + entry["data_offsets"][0])
            for name, entry in header.items()
        }
        """Name → tensor."""

    def array(self, name: str) -> npt.NDArray[Any]:
        """Return a tensor as a read-only view of the file; InputError for a type that is not supported."""
        tensor = self.tensors[name]
        if tensor.type not in FLOAT_DTYPES:
            problem = f"{tensor.type} is not supported; {', '.join(FLOAT_DTYPES)} are"
            raise InputError(self.path, problem, place=name)
        return self._view(tensor, FLOAT_DTYPES[tensor.type])

    def integers(self, name: str) -> npt.NDArray[np.int32]:
        """Return a tensor of int32 as a read-only view of the file; InputError for another type."""
        tensor = self.tensors[name]
        if tensor.type != "I32":
            raise InputError(self.path, f"{tensor.type} is not supported; only I32 is", place=name)
        return self._view(tensor, np.dtype("<i4"))

    def _view(self, tensor: StoredTensor, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        array: npt.NDArray[Any] = np.frombuffer(self._map, dtype, prod(tensor.shape), tensor.offset)
        return array.reshape(tensor.shape)


@contextmanager
def _validated(path: Path) -> Iterator[Any]:
    """Open a file with the safetensors package, which checks the header against the file's size."""
    try:
        tensors = safe_open(path, framework="np")
    except (SafetensorError, OSError) as error:
        hint = "the file may be incomplete: copy or download it again"
        raise InputError(path, f"cannot be read as safetensors: {error}", hint=hint) from error
    with tensors:
        yield tensors


def tensor_files(folder: Path) -> dict[str, Path]:
    """Return the file of each tensor of a folder: `model.safetensors`, or the files of the index.

    Files that the index does not name, for example from an earlier save, are ignored.

    Raises:
        InputError: there is no file, a file is not safetensors, or the index does not fit the files.
    """
    single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
    if single.is_file():
        with _validated(single) as tensors:
            return dict.fromkeys(tensors.keys(), single)
    if not index.is_file():
        if any(folder.glob("model-*.safetensors")):
            raise InputError(folder, f"the weights are in several files, and {index.name} is missing")
        hint = "only safetensors are read; pickled weights could run code"
        raise InputError(folder, "there is no model.safetensors", hint=hint)
    content = read_json(index)
    names = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(names, dict) or not names:
        raise InputError(index, "expected an object of tensors and files", place="weight_map")
    for name in names.values():
        if not isinstance(name, str) or Path(name).name != name or not name.endswith(".safetensors"):
            # A path such as ../other/model.safetensors is refused too: a downloaded index must not make us
            # read other folders.
            raise InputError(index, f"{name!r} is not a safetensors file of this folder", place="weight_map")
    for file in sorted(set(names.values())):
        with _validated(folder / file) as tensors:
            present = set(tensors.keys())
        for tensor, place in names.items():
            if place == file and tensor not in present:
                raise InputError(folder / file, "the tensor of the index is not in this file", place=tensor)
    return {tensor: folder / file for tensor, file in names.items()}
