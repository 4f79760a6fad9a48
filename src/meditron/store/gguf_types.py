"""ggml's tensor types: a row is stored in blocks of so many values, each in so many bytes."""

from dataclasses import dataclass
from functools import cache
from math import prod

__all__ = ["TensorType", "tensor_type", "tensor_type_of_code"]


@dataclass(frozen=True, slots=True)
class TensorType:
    """One type and the size of its blocks."""

    name: str
    """ggml's: `F16`, `Q4_K`."""
    code: int
    """What stands for it in a file."""
    block: int
    """Values in a block; a row is whole blocks."""
    block_bytes: int

    def nbytes(self, shape: tuple[int, ...]) -> int:
        """Bytes of a tensor of this shape (slowest dimension first, a scalar has none)."""
        return prod(shape) // self.block * self.block_bytes


@cache
def _types() -> dict[str, TensorType]:
    from gguf.constants import GGML_QUANT_SIZES

    return {kind.name: TensorType(kind.name, int(kind), *sizes) for kind, sizes in GGML_QUANT_SIZES.items()}


@cache
def _codes() -> dict[int, TensorType]:
    return {kind.code: kind for kind in _types().values()}


def tensor_type(name: str) -> TensorType:
    """The type called `name`; KeyError where ggml has none of that name."""
    return _types()[name]


def tensor_type_of_code(code: int) -> TensorType | None:
    """The type a file means by `code`, None where it is not known."""
    return _codes().get(code)
