"""The plan of a GGUF file: name, shape and type of each tensor, and the sizes that follow from them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

from meditron.model.config import LlamaConfig
from meditron.model.gguf_layout import ROPE_FACTORS, gguf_tensor_name, rope_factors
from meditron.model.shapes import parameter_shapes
from meditron.release.importance import Importance
from meditron.release.quant_recipes import (
    DEFAULT_OPTIONS,
    RecipeOptions,
    recipe_for,
    requires_imatrix,
    stored_type,
    target_type,
)
from meditron.release.types import GGUFType, Mix
from meditron.store.gguf_types import FLOAT_TYPES, tensor_type

__all__ = ["MIX_KEY", "FilePlan", "PlannedTensor", "plan_file", "plan_files", "planned_metadata"]

MIX_KEY = "meditron.quantize.mix"
"""Key of the mix in a file's metadata, if it is not the current one."""


@dataclass(frozen=True, slots=True)
class PlannedTensor:
    """A tensor of a file."""

    source: str | None
    """HF's name of the weight; None for the tensor of Llama 3's rotary scaling."""
    name: str
    """GGUF's name."""
    shape: tuple[int, ...]
    type: str
    """ggml's name of the type."""
    target: str
    """The recipe's type, from which `type` differs if the rows are not a multiple of its block size."""

    @property
    def nbytes(self) -> int:
        """Bytes of the tensor."""
        return tensor_type(self.type).nbytes(self.shape)


@dataclass(frozen=True)
class FilePlan:
    """The tensors of a file, in the file's order."""

    kind: str
    """Type of the file, a `GGUFType` or the target size of a mix of types."""
    tensors: tuple[PlannedTensor, ...]
    record: Mapping[str, Any]
    """Metadata that records how the types were chosen."""

    @property
    def is_quantized(self) -> bool:
        """True if a tensor has a quantized type."""
        return any(tensor.type not in FLOAT_TYPES for tensor in self.tensors)

    @cached_property
    def bits_per_weight(self) -> float:
        """Bits of all tensors per weight."""
        weights = sum(prod(tensor.shape) for tensor in self.tensors)
        return 8 * sum(tensor.nbytes for tensor in self.tensors) / weights

    @property
    def fallbacks(self) -> dict[str, str]:
        """GGUF name → type of the tensors that have another type than the recipe's."""
        return {tensor.name: tensor.type for tensor in self.tensors if tensor.type != tensor.target}

    @property
    def without_imatrix(self) -> list[PlannedTensor]:
        """The tensors that llama.cpp refuses to write in their type without an importance matrix."""
        return [tensor for tensor in self.tensors if requires_imatrix(tensor.name, tensor.type)]


def plan_file(kind: GGUFType, config: LlamaConfig, options: RecipeOptions = DEFAULT_OPTIONS) -> FilePlan:
    """Plan a file from the model's shape.

    Args:
        kind: Type of the file.
        config: The model's shape.
        options: The rules, and whether there is an importance matrix.

    Raises:
        UsageError: the mix has no such type.
    """
    tensors = []
    if (factors := rope_factors(config)) is not None:
        tensors.append(PlannedTensor(None, ROPE_FACTORS, factors.shape, "F32", "F32"))
    for source, shape in parameter_shapes(config).items():
        name = gguf_tensor_name(source)
        # Norms and biases are F32, the only type that llama.cpp accepts for them.
        stored = target = "F32"
        if len(shape) > 1:
            stored = stored_type(kind, name, shape[-1], config, options)
            target = target_type(kind, name, config, options)
        tensors.append(PlannedTensor(source, name, shape, stored, target))
    mix = {} if options.mix == "current" else {MIX_KEY: options.mix}
    return FilePlan(
        kind, tuple(tensors), {**mix, "general.file_type": recipe_for(kind, options.mix).file_type}
    )


def plan_files(
    types: Sequence[GGUFType], config: LlamaConfig, mix: Mix, importance: Importance
) -> list[FilePlan]:
    """Plan a file of each type; errors are those of `plan_file`."""
    options = RecipeOptions(mix, has_imatrix=bool(importance))
    return [plan_file(kind, config, options) for kind in types]


def planned_metadata(plan: FilePlan, header: Mapping[str, Any], importance: Importance) -> dict[str, Any]:
    """Return the metadata of a file: the header that all files of a model share, and the types' record.

    Args:
        plan: The file.
        header: Metadata that all files of the model share.
        importance: The importance matrix that its matrices are quantized with, if any.
    """
    return (
        {**header, **importance.metadata, **plan.record} if plan.is_quantized else {**header, **plan.record}
    )
