"""Training state as safetensors: each rank writes its shards to one file, and any layout reads them back.

torch's Distributed Checkpoint (DCP) plans which rank writes which shard (replicas are written once) and which
parts of which files a rank reads. The files have the header that DCP's own `HuggingFaceStorageReader` reads:
under DCP_SHARDING_INFO the offsets of each shard within its whole tensor. The writer is not DCP's, because
that one serializes a whole file in memory, and the hash of what it wrote needs a second pass over the disk.
"""

import hashlib
import json
import math
import os
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.planner import WriteItem
from torch.distributed.tensor import DTensor

from meditron.parallel.rank_group import RankGroup
from meditron.store.files import translate_write_errors

__all__ = ["Shard", "StagedFile", "State", "load_shards", "plan_shards", "read_private"]

State = Mapping[str, Mapping[str, Tensor]]
"""Tensors by kind (`weights`, `exp_avg`, …) and parameter name; DTensors if they are sharded."""

# safetensors' names of the types that training state has.
_DTYPES = {torch.float64: "F64", torch.float32: "F32", torch.bfloat16: "BF16", torch.uint8: "U8"}
_PRIVATE = "private"
"""First part of the keys of tensors that belong to one rank and not to the state."""
_PIECE = 16 << 20  # bytes per write and hash update; both release Python's lock


@dataclass(frozen=True)
class Shard:
    """A box of a tensor, written by one rank."""

    key: str
    """`KIND.NAME`."""
    offsets: tuple[int, ...]
    """Position of the box in the whole tensor."""
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


def plan_shards(state: State, group: RankGroup) -> list[Shard]:
    """Return the shards that this rank writes, such that all ranks together write each element once.

    A tensor that several ranks have whole or in equal shards is written by the one of them with the least
    work. Every rank must call this.

    Raises:
        ValueError: The shards of a tensor overlap or leave a gap; raised by all ranks.
    """
    planner = DefaultSavePlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
    planner.set_up_planner(_flatten(state), is_coordinator=group.rank == 0)
    plan = planner.create_local_plan()
    # Ranks without a part of a tensor that is shorter than their number plan an empty shard.
    items = [item for item in plan.items if _shard(item).nbytes]
    # Every rank computes the same global plan from all local ones, which saves sending the result.
    plans, _ = planner.create_global_plan(group.gather(replace(plan, items=items)))
    return [_shard(item) for item in plans[group.rank].items]


def _shard(item: WriteItem) -> Shard:
    data = item.tensor_data
    assert data is not None  # noqa: S101 (for the type checker: all values are tensors)
    assert data.chunk is not None  # noqa: S101
    return Shard(item.index.fqn, tuple(data.chunk.offsets), tuple(data.chunk.sizes), data.properties.dtype)


class StagedFile:
    """One rank's safetensors file as a copy in host memory, which a thread writes while training goes on.

    The copy is one buffer with the layout of the file. It is reused by later checkpoints; of tensors on a GPU
    it is page-locked, because copies to it are several times as fast.

    Args:
        shards: The shards of the state that this rank writes.
        private: Further small tensors of this rank alone, by name; their shapes and types are fixed.
        rank: Number of the rank, part of the names of the private tensors.
        pin: Whether to lock the buffer's pages for copies from a GPU.
    """

    def __init__(
        self, shards: Sequence[Shard], private: Mapping[str, Tensor], *, rank: int, pin: bool
    ) -> None:
        self._private_keys = {name: _private_key(rank, name) for name in private}
        own = [
            Shard(self._private_keys[name], (0,) * tensor.dim(), tuple(tensor.shape), tensor.dtype)
            for name, tensor in private.items()
        ]
        # The widest types come first, so that every tensor starts at a multiple of its element size.
        shards = sorted([*shards, *own], key=lambda shard: -shard.dtype.itemsize)
        ends = [0]
        for shard in shards:
            ends.append(ends[-1] + shard.nbytes)
        self._buffer = torch.empty(ends[-1], dtype=torch.uint8)
        self._pinned = pin
        if pin:
            _pin_pages(self, self._buffer)
        self._views = {
            shard.key: self._buffer[start:end].view(shard.dtype).view(shard.shape)
            for shard, start, end in zip(shards, ends[:-1], ends[1:], strict=True)
        }
        self._header = _header(shards, ends)

    def fill(self, state: State, private: Mapping[str, Tensor]) -> None:
        """Copy the tensors; the state may change as soon as this returns. The file must not be in writing."""
        tensors = _flatten(state) | {self._private_keys[name]: tensor for name, tensor in private.items()}
        for key, view in self._views.items():
            # The rows beyond the shape of the shard are padding.
            local = _local(tensors[key])[tuple(slice(size) for size in view.shape)]
            view.copy_(local, non_blocking=True)
        if self._pinned:
            # Copies to locked pages are queued; they are complete when the stream is.
            torch.cuda.current_stream().synchronize()

    def write(self, path: Path) -> str:
        """Write the file to the disk and return its SHA-256.

        Raises:
            StorageError: The disk is full or cannot be written.
        """
        content: memoryview[Any] = memoryview(self._buffer.numpy().data)
        starts = range(0, len(content), _PIECE)
        header = memoryview(self._header)
        digest = hashlib.sha256()
        with translate_write_errors(path), path.open("xb") as file:
            for piece in (header, *(content[start : start + _PIECE] for start in starts)):
                digest.update(piece)
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        return digest.hexdigest()


def _header(shards: Sequence[Shard], ends: Sequence[int]) -> bytes:
    """Return the beginning of a safetensors file: a length of 8 bytes, then JSON padded to 8 bytes."""
    offsets = {shard.key: {"saved_offsets": shard.offsets} for shard in shards}
    metadata = {"format": "pt", "DCP_VERSION": "1.0", "DCP_SHARDING_INFO": json.dumps(offsets)}
    entries = {
        shard.key: {"dtype": _DTYPES[shard.dtype], "shape": shard.shape, "data_offsets": [start, end]}
        for shard, start, end in zip(shards, ends[:-1], ends[1:], strict=True)
    }
    text = json.dumps({"__metadata__": metadata} | entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _pin_pages(owner: object, buffer: Tensor) -> None:
    # Not `pin_memory=True`: torch's allocator would round the size up to a power of two.
    runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    torch.cuda.check_error(int(runtime.cudaHostRegister(buffer.data_ptr(), buffer.nbytes, 0)))
    unpin = weakref.finalize(owner, runtime.cudaHostUnregister, buffer.data_ptr())
    unpin.atexit = False  # the driver may be gone by then


def load_shards(folder: Path, state: State, group: RankGroup) -> None:
    """Copy a stored state into `state`, whatever layouts the two have. Every rank must call this.

    Args:
        folder: The files of all ranks that wrote the state.
        state: Tensors of this rank, changed in place; other types and devices are converted to.
        group: All ranks of this job; together they must have the tensors that are stored.

    Raises:
        ValueError: Names or shapes do not match; no tensor has changed. Raised by all ranks.
        TrainingError: A file cannot be read. Raised by all ranks.
    """
    tensors = _flatten(state)
    reader = HuggingFaceStorageReader(str(folder))
    metadata = group.agree(reader.read_metadata)
    stored = {
        key: tuple(entry.size)
        for key, entry in metadata.state_dict_metadata.items()
        if isinstance(entry, TensorStorageMetadata) and not key.startswith(f"{_PRIVATE}.")
    }
    wanted: dict[str, tuple[int, ...]] = {}
    for shapes in group.gather({key: tuple(tensor.shape) for key, tensor in tensors.items()}):
        wanted |= shapes
    _require_equal_shapes(stored, wanted)

    def read() -> None:
        planner = DefaultLoadPlanner(flatten_state_dict=False, flatten_sharded_tensors=False)
        planner.set_up_planner(tensors, metadata, is_coordinator=group.rank == 0)
        reader.set_up_storage_reader(metadata, is_coordinator=group.rank == 0)
        reader.read_data(planner.create_local_plan(), planner).wait()

    group.agree(read)


def _require_equal_shapes(
    stored: Mapping[str, tuple[int, ...]], wanted: Mapping[str, tuple[int, ...]]
) -> None:
    for key in sorted(stored.keys() | wanted.keys()):
        if stored.get(key) != wanted.get(key):
            parts = [
                f"{'has no' if shape is None else 'has'} {key}{'' if shape is None else f' of shape {shape}'}"
                for shape in (stored.get(key), wanted.get(key))
            ]
            raise ValueError(f"the checkpoint {parts[0]}, the model {parts[1]}")


def read_private(file: Path, rank: int, names: Sequence[str]) -> dict[str, Tensor]:
    """Return those of the named private tensors that a rank's file has."""
    with safe_open(file, framework="pt") as tensors:
        stored = set(tensors.keys())
        return {
            name: tensors.get_tensor(key) for name in names if (key := _private_key(rank, name)) in stored
        }


def _private_key(rank: int, name: str) -> str:
    # The rank makes the key unique among all files of a checkpoint, as DCP's reader requires.
    return f"{_PRIVATE}.{rank:05d}.{name}"


def _flatten(state: State) -> dict[str, Tensor]:
    return {f"{kind}.{name}": tensor for kind, tensors in state.items() for name, tensor in tensors.items()}


def _local(tensor: Tensor) -> Tensor:
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach()
