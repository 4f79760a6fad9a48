"""The dry run of the quantize command: sizes and types from a model's config, without its weights."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from meditron.core.errors import MeditronError, UsageError
from meditron.model.config import LlamaConfig
from meditron.model.gguf_layout import gguf_header
from meditron.model.presets import model_tokenizer
from meditron.model.weight_rows import load_config
from meditron.release.file_plan import plan_files, planned_metadata
from meditron.release.naming import model_name
from meditron.release.quantize import DEFAULT_OPTIONS, QuantizeOptions, carried_metadata, read_importance
from meditron.release.summary import describe_plan, with_costs
from meditron.release.types import GGUFType
from meditron.report.quantization import measured_costs, recommended_type
from meditron.store.gguf_writer import encode_head
from meditron.store.models import ModelFiles, resolve_model

__all__ = ["preview"]


def preview(
    spec: str,
    types: Sequence[GGUFType],
    options: QuantizeOptions = DEFAULT_OPTIONS,
) -> dict[str, Any]:
    """Compute the files that `quantize` would write, from the model's config and tokenizer alone.

    Args:
        spec: The MODEL; a folder with a `config.json` is enough.
        types: Types of the files.
        options: Options that all files share.

    Returns:
        `files` (see `describe_plan`, with `cost`), `recommended`, `notes`. The sizes are exact, except that
        without a tokenizer they lack the vocabulary.

    Raises:
        UsageError: GGUF has no keys for the model's rotary scaling, or the mix has no such type.
    """
    if options.target_size is not None or options.calibrate is not None:
        raise UsageError(
            "a dry run reads no weights, which calibrate and target_size need",
            hint="use --imatrix FILE, or run without --dry-run",
        )
    files = resolve_model(spec, weights=False)
    config = load_config(files)
    importance = read_importance(options, config)
    header, notes = _preview_header(files, config, check=options.check)
    described = []
    for plan in plan_files(types, config, options.mix, importance):
        if plan.without_imatrix and not importance:
            notes.append(f"{plan.kind} needs an importance matrix")
        tensors = [(tensor.name, tensor.shape, tensor.type) for tensor in plan.tensors]
        head = encode_head(Path(files.path), planned_metadata(plan, header, importance), tensors)
        described.append(describe_plan(plan, config, head.file_size))
    described = with_costs(Path(files.path), described)
    recommended = recommended_type(described, measured_costs(Path(files.path)))
    return {"files": described, "recommended": recommended, "notes": notes}


def _preview_header(
    files: ModelFiles, config: LlamaConfig, *, check: bool
) -> tuple[dict[str, Any], list[str]]:
    """Return the metadata of the files, and a note if the tokenizer is missing."""
    carried = carried_metadata(files, check=check)
    try:
        tokenizer = model_tokenizer(files)
    except MeditronError as error:
        note = f"the sizes do not include the vocabulary, because there is no tokenizer: {error.message}"
        return {**carried, **config.to_gguf()}, [note]
    return gguf_header(config, tokenizer, model_name(files), carried), []
