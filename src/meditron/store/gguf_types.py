"""ggml's tensor types. A tensor is stored in blocks of a fixed number of values and bytes."""

from dataclasses import dataclass
from functools import cache
from math import prod

__all__ = ["FLOAT_TYPES", "TensorType", "tensor_type", "tensor_type_of_code"]

FLOAT_TYPES = frozenset({"F32", "F16", "BF16"})
"""Types that are not quantized: each value is stored and rounded independently of the others."""


@dataclass(frozen=True, slots=True)
class TensorType:
    """A tensor type with its block size."""

    name: str
    """ggml's name: `F16`, `Q4_K`."""
    code: int
    """The number that represents the type in a file."""
    block_size: int
    """Values per block; the length of a row is a multiple of it."""
    block_bytes: int

    def nbytes(self, shape: tuple[int, ...]) -> int:
        """Return the bytes of a tensor of this shape (slowest dimension first; () for a scalar)."""
        return prod(shape) // self.block_size * self.block_bytes


@cache
def _types_by_name() -> dict[str, TensorType]:
    from gguf.constants import GGML_QUANT_SIZES

    return {kind.name: TensorType(kind.name, int(kind), *sizes) for kind, sizes in GGML_QUANT_SIZES.items()}


@cache
def _types_by_code() -> dict[int, TensorType]:
    return {kind.code: kind for kind in _types_by_name().values()}


def tensor_type(name: str) -> TensorType:
    """Return the type with this name; KeyError for an unknown name."""
    return _types_by_name()[name]


def tensor_type_of_code(code: int) -> TensorType | None:
    """Return the type with this code in a file; None for an unknown code."""
    return _types_by_code().get(code)
