"""Writing several GGUF files from one reading of a model's weights.

Rows are read, encoded and written in slices of about a megabyte, in threads. Every position in a file is
known before the first byte is written, so the slices are written in any order and memory does not grow with
the model. A slice that two files store in the same type is encoded once.
"""

import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from meditron.model.config import LlamaConfig
from meditron.model.gguf_layout import gguf_row_order, rope_factors
from meditron.model.weight_rows import WeightRows
from meditron.release.encode import encode_rows, row_slices
from meditron.release.file_plan import FilePlan
from meditron.release.importance import Importance
from meditron.store.files import atomic_write
from meditron.store.gguf_types import tensor_type
from meditron.store.gguf_writer import encode_head

__all__ = ["PlannedFile", "write_files"]

_SLICES_PER_THREAD = 4  # read ahead, so that threads do not wait at the end of a tensor


@dataclass(frozen=True, slots=True)
class PlannedFile:
    """A file to write."""

    path: Path
    plan: FilePlan
    metadata: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _Place:
    """Position of a tensor in an open file."""

    descriptor: int
    offset: int


@dataclass(frozen=True, slots=True)
class _Slice:
    """Rows of a weight and the places of its encodings."""

    source: str
    weight: WeightRows
    rows: slice
    order: npt.NDArray[np.intp] | None
    """Row in HF's order of each row in GGUF's order."""
    places: Mapping[str, Sequence[_Place]]
    """Type → places."""
    importance: npt.NDArray[np.float32] | None


def write_files(
    files: Sequence[PlannedFile],
    config: LlamaConfig,
    weights: Mapping[str, WeightRows],
    *,
    importance: Importance,
    threads: int,
    advance: Callable[[int], None],
) -> None:
    """Write files of one model atomically, all from one reading of its weights.

    Args:
        files: The files; their plans have the same tensors in the same order.
        config: The model's config.
        weights: The weights by HF's names.
        importance: Importance of the columns of matrices; may lack matrices.
        threads: Threads that encode.
        advance: Called with the number of bytes that were written.

    Raises:
        UsageError: a weight is not finite, or a type cannot represent it.
        StorageError: the disk is full or refuses the write.
    """
    with ExitStack() as stack:
        places: dict[str, dict[str, list[_Place]]] = {}
        for file in files:
            opened = stack.enter_context(atomic_write(file.path))
            tensors = [(tensor.name, tensor.shape, tensor.type) for tensor in file.plan.tensors]
            head = encode_head(file.path, file.metadata, tensors)
            opened.truncate(head.file_size)
            _write_at(opened.fileno(), memoryview(head.data), 0)
            for (name, _, kind), offset in zip(tensors, head.offsets, strict=True):
                by_type = places.setdefault(name, {})
                by_type.setdefault(kind, []).append(_Place(opened.fileno(), offset))
        workers = stack.enter_context(ThreadPoolExecutor(threads))
        pending: deque[Future[int]] = deque()
        try:
            for part in _slices(files[0].plan, config, weights, places, importance):
                pending.append(workers.submit(partial(_write_slice, part)))
                if len(pending) > threads * _SLICES_PER_THREAD:
                    advance(pending.popleft().result())
            while pending:
                advance(pending.popleft().result())
        finally:
            for future in pending:
                future.cancel()


def _slices(
    plan: FilePlan,
    config: LlamaConfig,
    weights: Mapping[str, WeightRows],
    places: Mapping[str, Mapping[str, Sequence[_Place]]],
    importance: Importance,
) -> Iterator[_Slice]:
    for tensor in plan.tensors:
        if tensor.source is None:
            weight, order = _rope_weight(config), None
        else:
            weight = weights[tensor.source]
            order = gguf_row_order(tensor.source, config, weight.rows)
        columns = importance.columns.get(tensor.name)
        for rows in row_slices(weight):
            source = tensor.source or tensor.name
            yield _Slice(source, weight, rows, order, places[tensor.name], columns)


def _rope_weight(config: LlamaConfig) -> WeightRows:
    factors = rope_factors(config)
    if factors is None:
        raise ValueError("the config has no rotary scaling with factors")
    return WeightRows(factors.shape, "F32", factors.reshape(1, -1), lambda stored: stored)


def _write_slice(part: _Slice) -> int:
    """Encode rows in each type and write them to all of their places; return the number of bytes."""
    rows = part.rows if part.order is None else part.order[part.rows]
    written = 0
    for kind, blocks in encode_rows(part.source, part.weight, rows, part.places, part.importance).items():
        start = part.rows.start * tensor_type(kind).nbytes((part.weight.shape[-1],))
        data = blocks.reshape(-1).view(np.uint8).data
        for place in part.places[kind]:
            _write_at(place.descriptor, data, place.offset + start)
            written += len(data)
    return written


def _write_at(descriptor: int, data: memoryview, offset: int) -> None:
    """Write all bytes at a position; the kernel may write fewer at a time."""
    while data:
        count = os.pwrite(descriptor, data, offset)
        data, offset = data[count:], offset + count
