"""Descriptions of GGUF files: sizes, types and memory, of written files and of planned ones."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from math import prod
from pathlib import Path
from typing import Any, cast, get_args

from meditron.core.console import info
from meditron.model.config import LlamaConfig
from meditron.model.gguf_layout import read_gguf_config
from meditron.release.check import CHECK_KEY
from meditron.release.file_plan import MIX_KEY, FilePlan
from meditron.release.quant_recipes import RecipeOptions, target_type
from meditron.release.types import GGUFType, Mix
from meditron.report.quantization import (
    QuantizationCost,
    measured_costs,
    published_cost,
    recommendation,
)
from meditron.report.quantization_tables import files_table, memory_table
from meditron.report.terminal import print_table
from meditron.store.files import sha256_file
from meditron.store.gguf import GGUF
from meditron.store.gguf_header import TensorInfo
from meditron.store.model_memory import CONTEXT, ModelShape, offloads

__all__ = ["describe_gguf", "describe_plan", "gguf_shape", "gguf_sizes", "print_summary", "with_costs"]


def describe_gguf(path: Path, kind: str) -> dict[str, Any]:
    """Describe a GGUF file by reading it back.

    Returns:
        `path` (its name), `type`, `bytes`, `sha256`; `bpw` (bits of all tensors per weight); `fallbacks`
        (matrix → type, of those that have another type than the recipe's, because their row length is not a
        multiple of its block size); `check` (`skipped` if the file was not compared with its source); and
        the memory with a context of `context` tokens (see `store.model_memory`): `ram` (bytes without
        offloading), `context_bytes` (keys and values of 1,000 tokens), `offload` (layers, RAM, VRAM).
    """
    with GGUF(path) as gguf:
        config = read_gguf_config(gguf)
        tensors = list(gguf.tensors.values())
        metadata = gguf.metadata
    mix = cast("Mix", metadata.get(MIX_KEY, "current"))
    options = RecipeOptions(mix, has_imatrix="quantize.imatrix.file" in metadata)
    fallbacks = {}
    if kind in get_args(GGUFType):
        fallbacks = {
            tensor.name: tensor.type
            for tensor in tensors
            if len(tensor.shape) > 1
            and tensor.type != target_type(cast("GGUFType", kind), tensor.name, config, options)
        }
    return {
        "path": path.name,
        "type": kind,
        **_sizes(config, tensors, path.stat().st_size),
        "fallbacks": fallbacks,
        "check": metadata.get(CHECK_KEY, "passed"),
        "sha256": sha256_file(path),
    }


def gguf_sizes(path: Path) -> dict[str, Any]:
    """Return `bytes`, `bpw` and the memory of a GGUF file (see `describe_gguf`), from its header."""
    with GGUF(path) as gguf:
        return _sizes(read_gguf_config(gguf), list(gguf.tensors.values()), gguf.nbytes)


def describe_plan(plan: FilePlan, config: LlamaConfig, size: int) -> dict[str, Any]:
    """Describe a file before it is written: the fields of `describe_gguf` that are known.

    Args:
        plan: The file.
        config: The model's config.
        size: Bytes of the file.

    Returns:
        `type`, `bytes`, `bpw`, `fallbacks`, the memory; `types` (ggml type → number of tensors).
    """
    return {
        "type": plan.kind,
        "bytes": size,
        "bpw": plan.bits_per_weight,
        "fallbacks": plan.fallbacks,
        **_memory(config, size, {tensor.name: tensor.nbytes for tensor in plan.tensors}),
        "types": dict(Counter(tensor.type for tensor in plan.tensors)),
    }


def _sizes(config: LlamaConfig, tensors: Sequence[TensorInfo], size: int) -> dict[str, Any]:
    weights = sum(prod(tensor.shape) for tensor in tensors)
    return {
        "bytes": size,
        "bpw": 8 * sum(tensor.nbytes for tensor in tensors) / weights,
        **_memory(config, size, {tensor.name: tensor.nbytes for tensor in tensors}),
    }


def _memory(config: LlamaConfig, size: int, tensors: Mapping[str, int]) -> dict[str, Any]:
    shape = _shape(config)
    levels = offloads(shape, size, tensors)
    return {
        "ram": levels[0].ram,
        "context": min(CONTEXT, shape.max_context),
        "context_bytes": 1_000 * config.kv_cache_bytes_per_token,
        "offload": [asdict(level) for level in levels],
    }


def gguf_shape(gguf: GGUF) -> ModelShape:
    """Return the shape that determines the memory of a file."""
    return _shape(read_gguf_config(gguf))


def _shape(config: LlamaConfig) -> ModelShape:
    return ModelShape(
        layers=config.num_hidden_layers,
        cache_elements=config.kv_cache_bytes_per_token // 2,
        max_context=config.max_position_embeddings,
        width=config.hidden_size,
        feed_forward=config.intermediate_size,
        vocabulary=config.vocab_size,
    )


def print_summary(
    files: Sequence[Mapping[str, Any]],
    *,
    answer: bool = False,
    title: str = "Quantized files",
    memory: bool = False,
) -> None:
    """Print the files with size, memory and cost in quality, their fallback types, and the recommended type.

    Args:
        files: As `describe_gguf` or `describe_plan` returns them; a file without a `cost` gets the published
            one.
        answer: True to print the table on stdout.
        title: Title of the table.
        memory: True to print a table of the memory with offloaded layers, too.
    """
    costs = {file["type"]: QuantizationCost.from_json(file["cost"]) for file in files if file.get("cost")}
    table = files_table(files, costs, title)
    for each in (table, *([memory_table(files)] if memory else ())):
        print_table(each.headers, each.rows, title=each.caption, answer=answer)
    for file in files:
        if file["fallbacks"]:
            counts = Counter(file["fallbacks"].values()).most_common()
            listed = ", ".join(f"{count} × {kind}" for kind, count in counts)
            info(f"{file['type']}: fallback types {listed} (row length is not a multiple of the block size)")
    if advice := recommendation(files, costs):
        info(advice)


def with_costs(model: Path, files: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Add the cost in quality of each type: measured if the model has an evaluation, else published."""
    costs = measured_costs(model)
    found = [costs.get(file["type"]) or published_cost(file["type"]) for file in files]
    return [{**file, "cost": cost and cost.to_json()} for file, cost in zip(files, found, strict=True)]
