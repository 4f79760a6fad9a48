"""Descriptions of GGUF files: sizes, types and memory, of written files and of planned ones."""

from collections import Counter
from collections.abc import Mapping, Sequence
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
    files_table,
    measured_costs,
    published_cost,
    recommendation,
)
from meditron.report.terminal import print_table
from meditron.store.files import sha256_file
from meditron.store.gguf import GGUF

__all__ = ["describe_gguf", "describe_plan", "print_summary", "with_costs"]

_CONTEXT = 4096
"""Tokens of the KV cache in the memory estimate, at most."""


def describe_gguf(path: Path, kind: str) -> dict[str, Any]:
    """Describe a GGUF file by reading it back.

    Returns:
        `path` (its name), `type`, `bytes`, `sha256`; `bpw` (bits of all tensors per weight); `fallbacks`
        (matrix → type, of those that have another type than the recipe's, because their row length is not a
        multiple of its block size); `ram` (bytes of the file and of an F16 KV cache of `context` tokens);
        `check` (`skipped` if the file was not compared with its source).
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
    size = path.stat().st_size
    return {
        "path": path.name,
        "type": kind,
        "bytes": size,
        "bpw": 8 * sum(t.nbytes for t in tensors) / sum(prod(t.shape) for t in tensors),
        "fallbacks": fallbacks,
        **_memory(config, size),
        "check": metadata.get(CHECK_KEY, "passed"),
        "sha256": sha256_file(path),
    }


def describe_plan(plan: FilePlan, config: LlamaConfig, size: int) -> dict[str, Any]:
    """Describe a file before it is written: the fields of `describe_gguf` that are known.

    Args:
        plan: The file.
        config: The model's config.
        size: Bytes of the file.

    Returns:
        `type`, `bytes`, `bpw`, `fallbacks`, `ram`, `context`; `types` (ggml type → number of tensors).
    """
    return {
        "type": plan.kind,
        "bytes": size,
        "bpw": plan.bits_per_weight,
        "fallbacks": plan.fallbacks,
        **_memory(config, size),
        "types": dict(Counter(tensor.type for tensor in plan.tensors)),
    }


def _memory(config: LlamaConfig, size: int) -> dict[str, int]:
    context = min(_CONTEXT, config.max_position_embeddings)
    return {"ram": size + context * config.kv_cache_bytes_per_token, "context": context}


def print_summary(
    files: Sequence[Mapping[str, Any]], *, answer: bool = False, title: str = "Quantized files"
) -> None:
    """Print the files with size, memory and cost in quality, their fallback types, and the recommended type.

    Args:
        files: As `describe_gguf` or `describe_plan` returns them; a file without a `cost` gets the published
            one.
        answer: True to print the table on stdout.
        title: Title of the table.
    """
    costs = {file["type"]: QuantizationCost.from_json(file["cost"]) for file in files if file.get("cost")}
    table = files_table(files, costs, title)
    print_table(table.headers, table.rows, title=table.caption, answer=answer)
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
