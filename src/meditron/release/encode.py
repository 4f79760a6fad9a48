"""Quantization of matrices into ggml's blocks with ggml's own C code (libgguf), in chunks of rows."""

from concurrent.futures import Executor
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from meditron.core.errors import MissingExtra
from meditron.model.shapes import weight_range_error
from meditron.store.gguf_types import tensor_type

__all__ = ["load_libgguf", "quantize_matrix"]

_CHUNK = 1 << 18  # values per task: a megabyte in fp32
# The scales of blocks are F16: larger values could overflow them.
_MOST = float(np.finfo(np.float16).max)


def load_libgguf() -> Any:  # noqa: ANN401  # a module without types
    """Return libgguf's compiled functions; MissingExtra if it is not installed."""
    try:
        import libgguf
    except ImportError as error:
        raise MissingExtra("libgguf", "release") from error
    return libgguf


def quantize_matrix(name: str, weight_RC: Tensor, kind: str, workers: Executor) -> npt.NDArray[np.uint8]:
    """Quantize a matrix of R rows and C columns to the type `kind`.

    Each row is quantized on its own, so the bytes depend neither on the chunks nor on the workers. Only one
    chunk per worker is in memory as fp32.

    Returns:
        Bytes of shape (R, bytes per row).

    Raises:
        UsageError: A value is not finite, or above F16's largest.
    """
    library, width = load_libgguf(), weight_RC.shape[1]
    form = tensor_type(kind)
    stored_RC, rows = _as_numpy(weight_RC), weight_RC.shape[0]
    blocks = np.empty((rows, form.nbytes((width,))), dtype=np.uint8)
    step = max(1, _CHUNK // width)

    def quantize_rows(start: int) -> None:
        values = _as_float32(stored_RC[start : start + step])
        most = np.abs(values).max()
        if not most <= _MOST:
            raise weight_range_error(name, kind, finite=bool(np.isfinite(most)))
        library.quantize_rows_into_raw(form.code, values, blocks[start : start + step], len(values), width)

    for _ in workers.map(quantize_rows, range(0, rows, step)):
        pass
    return blocks


def _as_numpy(weight: Tensor) -> npt.NDArray[Any]:
    """Return the tensor as a numpy array; a bfloat16 tensor, which numpy lacks, as its bits in uint16."""
    contiguous = weight.contiguous()
    bare = contiguous.view(torch.uint16) if weight.dtype == torch.bfloat16 else contiguous
    array: npt.NDArray[Any] = bare.numpy()
    return array


def _as_float32(values: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    """Return the same values as fp32."""
    if values.dtype == np.uint16:  # a bfloat16 is the upper half of an fp32
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32, copy=False)
