"""Conversion between HF safetensors and GGUF."""

from pathlib import Path
from typing import Any, Literal

import torch

from meditron.core.errors import InputError, UsageError
from meditron.model.lora_files import ADAPTER_CONFIG, read_adapter, save_adapter_gguf
from meditron.model.presets import model_tokenizer
from meditron.model.weight_rows import load_config
from meditron.model.weights import open_weights, save_gguf, save_hf
from meditron.release.check import CHECK_KEY, ExportCheck
from meditron.release.naming import model_name
from meditron.release.quantize import carried_metadata
from meditron.release.staged import replace_when_complete
from meditron.release.summary import describe_gguf
from meditron.store.ancestry import read_ancestry, write_ancestry
from meditron.store.authorship import CARD_FILE, read_authorship, write_card
from meditron.store.files import list_files, read_json, write_json
from meditron.store.gguf_parts import existing_parts
from meditron.store.models import ModelFiles, resolve_model

__all__ = ["DType", "FloatType", "convert", "write_carried_files"]

FloatType = Literal["F16", "F32"]
"""Types of a converted GGUF file; `quantize` writes the others."""

DType = Literal["float32", "float16", "bfloat16"]
"""Number formats of an HF folder."""


def convert(
    spec: str,
    out: Path,
    *,
    type: FloatType | None = None,
    dtype: DType | None = None,
    force: bool = False,
    check: bool = True,
) -> dict[str, Any]:
    """Write any MODEL to `out`: a GGUF file if it ends in `.gguf`, else an HF folder.

    One tensor is in memory at a time. The written model is compared with its source before it replaces `out`
    (`meditron.release.check`). The `adapter` folder of a finetune becomes a file for llama.cpp's `--lora`.

    Args:
        spec: The MODEL, or the `adapter` folder of a finetune.
        out: The file or folder.
        type: Type of a GGUF file; F16 by default.
        dtype: Number format of an HF folder; float32 by default, which is lossless for every source.
        force: Replace an existing output.
        check: False to skip the comparison; the output records it.

    Returns:
        For a GGUF file the fields of `describe_gguf`; for a folder `path`, `dtype`, `bytes`, `check`.

    Raises:
        SourceError: `spec` is not a model.
        UsageError: `out` exists, its parent folder does not exist, `type` or `dtype` does not apply to this
            kind of output, or a value overflows in `type`.
        InputError: The model's files are damaged.
        ExportError: The written model differs from its source.
    """
    to_gguf = _is_gguf(out)
    _refuse_option_of_other_kind(out, type if not to_gguf else None, dtype if to_gguf else None)
    if (Path(spec) / ADAPTER_CONFIG).is_file():
        return _convert_adapter(Path(spec), out, type, force=force)
    files = resolve_model(spec)
    _require_replaceable_output(out, Path(files.path), force=force)
    tokenizer, name = model_tokenizer(files), model_name(files)
    kind = (type or "F16") if to_gguf else (dtype or "float32")
    # The check runs on the temporary output: a model that fails it never replaces an older one.
    with replace_when_complete(out) as temporary:
        with open_weights(files) as (config, weights):
            if to_gguf:
                carried = carried_metadata(files, check=check)
                save_gguf(weights, config, tokenizer, temporary, type or "F16", name=name, carried=carried)
            else:
                save_hf(weights, config, tokenizer, temporary, getattr(torch, kind))
                write_carried_files(files, temporary, name, check=check)
        if check:
            written = ModelFiles(str(out), "gguf" if to_gguf else "hf", temporary)
            ExportCheck(files, tokenizer).require_same_model(written, kind, out)
    if to_gguf:
        return describe_gguf(out, type or "F16") | {"path": str(out)}
    size = sum(file.stat().st_size for file in list_files(out))
    return {"path": str(out), "dtype": kind, "bytes": size, "check": "passed" if check else "skipped"}


def _convert_adapter(folder: Path, out: Path, type: FloatType | None, *, force: bool) -> dict[str, Any]:
    """Write the adapter of a finetune as a GGUF file; the finetune's model is in the folder above."""
    if not _is_gguf(out) or type == "F16":
        raise UsageError(
            f"{folder} is an adapter, which is converted to a GGUF file of type F32 only",
            hint="the folder above it has the merged model, in every other form",
        )
    model = folder.resolve().parent
    if not (model / "config.json").is_file():
        # The order of llama.cpp's rows depends on the heads of the model.
        raise InputError(folder, "the adapter's model is not in the folder above", hint="move it back")
    _require_replaceable_output(out, folder, force=force)
    shape = load_config(resolve_model(str(model)))
    save_adapter_gguf(read_adapter(folder, shape), shape, out, name=f"{model.name} adapter")
    return {"path": str(out), "type": "F32", "bytes": out.stat().st_size}


def write_carried_files(source: ModelFiles, folder: Path, name: str, *, check: bool) -> None:
    """Write the source's authorship, ancestry and card into a model's folder, and record a skipped check."""
    if (ancestry := read_ancestry(source)) is not None:
        write_ancestry(folder, ancestry)
    authorship = read_authorship(source)
    card = Path(source.path) / CARD_FILE if source.kind == "hf" else None
    if authorship:
        write_card(folder, {"general.name": name} | authorship, card=card)
    if not check:
        write_json(folder / "config.json", read_json(folder / "config.json") | {CHECK_KEY: "skipped"})


def _is_gguf(out: Path) -> bool:
    """Return whether an output is a GGUF file, by its suffix in upper or lower case."""
    return out.suffix.lower() == ".gguf"


def _refuse_option_of_other_kind(out: Path, type_for_folder: str | None, dtype_for_file: str | None) -> None:
    """Raise UsageError for a GGUF type with an HF folder, or for a dtype with a GGUF file."""
    if type_for_folder:
        raise UsageError(
            f"{out}: --type {type_for_folder} is for GGUF files, and this is an HF folder",
            hint=f"write {out}.gguf, or use --dtype",
        )
    if dtype_for_file:
        raise UsageError(
            f"{out}: --dtype {dtype_for_file} is for HF folders, and this is a GGUF file",
            hint="use --type F16 or F32",
        )


def _require_replaceable_output(out: Path, source: Path, *, force: bool) -> None:
    """Raise UsageError if `out` exists and `force` is false, is the source itself, or is not a model."""
    if not out.parent.is_dir():
        raise UsageError(f"{out}: folder {out.parent} does not exist", hint=f"mkdir -p {out.parent}")
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    # Replacing the source would delete it while it is read.
    if any(part.resolve().is_relative_to(out.resolve()) for part in existing_parts(source)):
        raise UsageError(f"{out} is the model itself, or contains it", hint="choose another output")
    replaceable = out.is_file() if _is_gguf(out) else (out / "config.json").is_file()
    if not replaceable:
        kind = "GGUF file" if _is_gguf(out) else "model folder"
        raise UsageError(f"{out} exists and is not a {kind}", hint="choose another output")
    if not force:
        raise UsageError(f"{out} already exists", hint="replace it with --force, or choose another output")
