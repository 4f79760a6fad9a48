"""A model from one form to the other: HF safetensors ↔ GGUF."""

from pathlib import Path
from typing import Any, Literal

import torch

from meditron.core.errors import UsageError
from meditron.model.presets import model_tokenizer
from meditron.model.weights import open_weights, save_gguf, save_hf
from meditron.release.check import CHECK_KEY, ExportCheck
from meditron.release.naming import model_name
from meditron.release.quantize import carried_metadata, describe
from meditron.release.staged import staged
from meditron.store.ancestry import read_ancestry, write_ancestry
from meditron.store.authorship import CARD, read_authorship, write_card
from meditron.store.files import list_files, read_json, write_json
from meditron.store.models import ModelFiles, resolve

__all__ = ["DType", "FloatType", "convert"]

FloatType = Literal["F16", "F32"]
"""The types a GGUF file can be converted to; the others are `quantize`'s."""

DType = Literal["float32", "float16", "bfloat16"]
"""The number formats an HF folder can be written in."""


def convert(
    spec: str,
    out: Path,
    *,
    type: FloatType | None = None,
    dtype: DType | None = None,
    force: bool = False,
    check: bool = True,
) -> dict[str, Any]:
    """Write the model `spec` (any MODEL) to `out`: a GGUF file where it ends in `.gguf`, else an HF folder.

    `type` is the GGUF file's, F16 when absent; `dtype` the HF folder's, float32 when absent, which loses
    nothing whatever the source is. One tensor is in memory at a time. What is there already is replaced with
    `force` only. Unless `check` is off, which the output records, the written model is compared with its
    source before it comes into place (`meditron.release.check`).

    Returns:
        For a GGUF file what `describe` says of it; for a folder its `path`, `dtype`, `bytes`, `check`.

    Raises:
        SourceError: `spec` names no model.
        UsageError: `out` exists, lies inside a folder that does not, or is of the other kind than `type` or
            `dtype` says; the values do not fit in `type`.
        InputError: the model's files are damaged.
        ExportError: the written model differs from its source.
    """
    to_gguf = out.suffix == ".gguf"
    _require_kind(out, type if not to_gguf else None, dtype if to_gguf else None)
    files = resolve(spec)
    _require_free(out, Path(files.path), force=force)
    tokenizer, name = model_tokenizer(files), model_name(files)
    kind = (type or "F16") if to_gguf else (dtype or "float32")
    with staged(out) as temporary:
        with open_weights(files) as (config, weights):
            if to_gguf:
                carried = carried_metadata(files, check=check)
                save_gguf(weights, config, tokenizer, temporary, type or "F16", name=name, carried=carried)
            else:
                save_hf(weights, config, tokenizer, temporary, getattr(torch, kind))
                _carry(files, temporary, name, check=check)
        if check:
            written = ModelFiles(str(out), "gguf" if to_gguf else "hf", temporary)
            ExportCheck(files, tokenizer).require_same(written, kind, out)
    if to_gguf:
        return describe(out, type or "F16") | {"path": str(out)}
    size = sum(file.stat().st_size for file in list_files(out))
    return {"path": str(out), "dtype": kind, "bytes": size, "check": "passed" if check else "skipped"}


def _carry(source: ModelFiles, folder: Path, name: str, *, check: bool) -> None:
    """Write into a model's folder what the source says of itself, its training data, and a skipped check."""
    if (ancestry := read_ancestry(source)) is not None:
        write_ancestry(folder, ancestry)
    authorship = read_authorship(source)
    card = Path(source.path) / CARD if source.kind == "hf" else None
    if authorship:
        write_card(folder, {"general.name": name} | authorship, card=card)
    if not check:
        write_json(folder / "config.json", read_json(folder / "config.json") | {CHECK_KEY: "skipped"})


def _require_kind(out: Path, type_for_folder: str | None, dtype_for_file: str | None) -> None:
    """Refuse a type for a folder and a dtype for a file: one of the two was not meant."""
    if type_for_folder:
        raise UsageError(
            f"{out} is a folder of safetensors, which has no type {type_for_folder}",
            hint=f"write {out}.gguf for a GGUF file, or give a dtype",
        )
    if dtype_for_file:
        raise UsageError(
            f"{out} is a GGUF file, which has no dtype {dtype_for_file}", hint="give a type: F16 or F32"
        )


def _require_free(out: Path, source: Path, *, force: bool) -> None:
    """Refuse to overwrite without `force`; and with it the source, or anything that is no model."""
    if not out.parent.is_dir():
        raise UsageError(f"{out}: there is no folder {out.parent}", hint=f"mkdir -p {out.parent}")
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if source.resolve().is_relative_to(out.resolve()):
        raise UsageError(f"{out} is where the model itself lies", hint="choose another place")
    replaceable = out.is_file() if out.suffix == ".gguf" else (out / "config.json").is_file()
    if not replaceable:
        kind = "GGUF file" if out.suffix == ".gguf" else "model's folder"
        raise UsageError(f"{out} is there already and is no {kind}", hint="choose another place")
    if not force:
        raise UsageError(f"{out} is there already", hint="--force replaces it, or choose another place")
