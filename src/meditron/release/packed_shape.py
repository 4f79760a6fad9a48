"""Sizes of GPTQ and AWQ files, and the shapes that they allow; from a model's config, without torch."""

from collections.abc import Iterator, Sequence
from math import prod
from typing import Any

from meditron.core.errors import UsageError
from meditron.model.config import LlamaConfig
from meditron.model.shapes import parameter_shapes
from meditron.model.weight_rows import load_config
from meditron.release.packed_types import GROUP_SIZES, PackedType
from meditron.store.model_memory import CONTEXT
from meditron.store.models import resolve_model

__all__ = ["describe_packed", "preview_packed", "require_fitting_shape"]


def _matrices(config: LlamaConfig) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield the matrices that are packed: those of the layers, not the embedding and the head."""
    for name, shape in parameter_shapes(config).items():
        if name.startswith("model.layers.") and len(shape) == 2:
            yield name, (shape[0], shape[1])


def require_fitting_shape(kind: PackedType, config: LlamaConfig) -> None:
    """Raise UsageError if the model has a matrix that cannot be packed in this type."""
    for name, (rows, columns) in _matrices(config):
        if kind.group_size != -1 and columns % kind.group_size:
            fitting = [size for size in GROUP_SIZES if not any(c % size for _, (_, c) in _matrices(config))]
            raise UsageError(
                f"{kind}: rows of {name} have {columns} values, which is not a multiple of {kind.group_size}",
                hint=f"group sizes that fit: {', '.join(map(str, fitting)) or 'none'}",
            )
        # AWQ searches its clipping bounds for 64 rows at a time.
        for count, of, unit in ((rows, "rows", 64 if kind.method == "AWQ" else 32), (columns, "columns", 32)):
            if count % unit:
                raise UsageError(f"{kind}: {name} has {count} {of}, which is not a multiple of {unit}")


def _tensor_bytes(kind: PackedType, config: LlamaConfig) -> int:
    """Return the bytes of a model's tensors."""
    packed = dict(_matrices(config))
    total = sum(2 * prod(shape) for name, shape in parameter_shapes(config).items() if name not in packed)
    for rows, columns in packed.values():
        groups = 1 if kind.group_size == -1 else columns // kind.group_size
        total += (rows * columns + groups * rows) * kind.bits // 8  # values and zero points
        total += 2 * groups * rows  # scales
        total += 4 * columns if kind.method == "GPTQ" else 0  # g_idx
    return total


def describe_packed(kind: PackedType, config: LlamaConfig) -> dict[str, Any]:
    """Describe a folder by its type and the model's shape.

    Returns:
        `type`, `bytes` (of the tensors), `bpw` (their bits per weight), `ram` (with an F16 KV cache of
        `context` tokens), `fallbacks` (always empty: a type that does not fit is refused), `cost` (None: it
        depends on the calibration text, so there are no published ones).
    """
    size, context = _tensor_bytes(kind, config), min(CONTEXT, config.max_position_embeddings)
    return {
        "type": str(kind),
        "bytes": size,
        "bpw": 8 * size / config.parameter_count,
        "ram": size + context * config.kv_cache_bytes_per_token,
        "context": context,
        "fallbacks": {},
        "cost": None,
    }


def preview_packed(spec: str, kinds: Sequence[PackedType]) -> list[dict[str, Any]]:
    """Describe the folders that `write_packed` would write, from the model's config alone.

    Raises:
        UsageError: a type does not fit the model's shape.
    """
    if not kinds:
        return []
    config = load_config(resolve_model(spec, weights=False))
    for kind in kinds:
        require_fitting_shape(kind, config)
    return [describe_packed(kind, config) for kind in kinds]
