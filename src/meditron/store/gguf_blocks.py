"""The fields of ggml's blocks that are wider than a byte: scales, offsets and packed integers.

The layouts are those of the block structs in ggml's `ggml-common.h`. In a big-endian GGUF file these fields
are big-endian, and everything else in a block is single bytes (`gguf_convert_endian.py` of gguf-py swaps the
same fields).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from meditron.store.gguf_types import tensor_type

__all__ = ["BLOCK_FIELDS", "BlockField", "swap_blocks"]


@dataclass(frozen=True, slots=True)
class BlockField:
    """A field of a block, or `count` fields of the same type in a row."""

    offset: int
    """Bytes from the block's start."""
    dtype: str = "<f2"
    """numpy's name of the type, little-endian."""
    count: int = 1
    reach: float = 1.0
    """Largest factor between the field and a value of its block; 0 for a field that is not a scale."""


def _scales(*offsets: int, reach: float) -> tuple[BlockField, ...]:
    return tuple(BlockField(offset, reach=reach) for offset in offsets)


def _packed(offset: int, dtype: str, count: int = 1) -> BlockField:
    return BlockField(offset, dtype, count, reach=0)


BLOCK_FIELDS: dict[str, tuple[BlockField, ...]] = {
    "F64": (BlockField(0, "<f8"),),
    "F32": (BlockField(0, "<f4"),),
    "F16": (BlockField(0),),
    # A bfloat16 is the upper half of a float32; its bits are checked by `release.verify`.
    "BF16": (_packed(0, "<u2"),),
    "I8": (),
    "I16": (_packed(0, "<i2"),),
    "I32": (_packed(0, "<i4"),),
    "I64": (_packed(0, "<i8"),),
    "Q4_0": _scales(0, reach=8),
    "Q4_1": _scales(0, 2, reach=15),
    "Q5_0": _scales(0, reach=16),
    "Q5_1": _scales(0, 2, reach=31),
    "Q8_0": _scales(0, reach=128),
    "Q1_0": _scales(0, reach=1),
    "Q2_K": _scales(80, 82, reach=15 * 3),
    "Q3_K": _scales(108, reach=32 * 4),
    "Q4_K": _scales(0, 2, reach=63 * 15),
    "Q5_K": _scales(0, 2, reach=63 * 31),
    "Q6_K": _scales(208, reach=128 * 32),
    "IQ1_S": (BlockField(0), _packed(34, "<u2", 8)),
    "IQ1_M": (),
    "IQ2_XXS": (BlockField(0), _packed(2, "<u2", 32)),
    "IQ2_XS": (BlockField(0), _packed(2, "<u2", 32)),
    "IQ2_S": (BlockField(0),),
    "IQ3_XXS": (BlockField(0),),
    "IQ3_S": (BlockField(0),),
    "IQ4_NL": _scales(0, reach=127),
    "IQ4_XS": (BlockField(0, reach=32 * 127), _packed(2, "<u2")),
    "TQ1_0": _scales(52, reach=1),
    "TQ2_0": _scales(64, reach=1),
    "MXFP4": (),
    "NVFP4": (),
}
"""Type → its fields wider than a byte; a type that is missing here has an unknown layout."""


def swap_blocks(blocks: npt.NDArray[np.uint8], type_name: str) -> npt.NDArray[np.uint8]:
    """Return the bytes of a tensor's blocks with the byte order of every field reversed, as a new array.

    Args:
        blocks: The tensor's bytes, in any shape.
        type_name: ggml's name of the type, which must be in `BLOCK_FIELDS`.
    """
    swapped = blocks.copy()
    by_block = swapped.reshape(-1, tensor_type(type_name).block_bytes)
    for field in BLOCK_FIELDS[type_name]:
        field_dtype: np.dtype[Any] = np.dtype(field.dtype)
        size = field_dtype.itemsize
        for start in range(field.offset, field.offset + field.count * size, size):
            by_block[:, start : start + size] = by_block[:, start : start + size][:, ::-1].copy()
    return swapped
