"""The plan of a file of a given size, with the mix of types that loses least on a calibration text."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from meditron.core.console import progress
from meditron.core.units import parse_bytes
from meditron.model.presets import model_tokenizer
from meditron.model.weight_rows import WeightRows, load_config
from meditron.release.file_plan import FilePlan, plan_file, planned_metadata
from meditron.release.imatrix import read_calibration
from meditron.release.importance import Importance
from meditron.release.sensitivity import measure_sensitivity
from meditron.release.size_mix import choose_types, sampled_errors
from meditron.store.gguf_writer import encode_head
from meditron.store.models import ModelFiles

__all__ = ["TARGET_SIZE_KEY", "plan_for_size"]

TARGET_SIZE_KEY = "meditron.quantize.target_size"
"""Metadata key of the size that a file was made for, in bytes."""
_CHUNKS, _CHUNK_SIZE = 4, 256
"""Text on which sensitivities are measured: 1,024 tokens."""


def plan_for_size(
    files: ModelFiles,
    weights: Mapping[str, WeightRows],
    size: str,
    text: Path,
    importance: Importance,
    header: Mapping[str, Any],
) -> FilePlan:
    """Return the plan of a file of at most `size`.

    The model is in memory in float32 while its sensitivity is measured.

    Args:
        files: The model.
        weights: Its weights.
        size: Size of the whole file, such as `4GB`.
        text: The calibration text.
        importance: Importance of the columns of matrices.
        header: Metadata of the file.

    Raises:
        UsageError: `size` is not a size, or is below that of the smallest types.
        InputError: the text is too short.
    """
    most = parse_bytes(size, "target_size")
    config, tokenizer = load_config(files), model_tokenizer(files)
    # llama.cpp finds the file type of a file without `general.file_type` from its tensors.
    plan = replace(plan_file("F16", config), kind=size, record={TARGET_SIZE_KEY: most})
    shapes = [(tensor.name, tensor.shape, tensor.type) for tensor in plan.tensors]
    metadata = {**planned_metadata(plan, header, importance), **importance.metadata}
    head = encode_head(Path(files.path), metadata, shapes)
    calibration = read_calibration(text, tokenizer, _CHUNK_SIZE, _CHUNKS)
    with progress("errors of types"):
        errors = sampled_errors(plan, weights, importance)
    sensitivity = measure_sensitivity(files, weights, calibration.chunks, errors, importance)
    return choose_types(plan, most - len(head.data), errors, sensitivity, alignment=head.alignment)
