"""The quantize stage: a model as GGUF files, one a type."""

import resource
import time
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

from meditron.ground.console import progress, table
from meditron.ground.units import size
from meditron.model.tokenizer import model_tokenizer
from meditron.model.weights import load_model, save_gguf
from meditron.release.config import GGUFType, QuantizeConfig
from meditron.store.artifact import Artifact
from meditron.store.files import sha256_file
from meditron.store.gguf import GGUF
from meditron.store.models import ModelFiles, resolve

__all__ = ["describe", "run"]

_NOTE = "one-dimensional tensors (norms) are F32 in every type, as llama.cpp reads them"


def run(config: QuantizeConfig, inputs: Mapping[str, Artifact], out: Path) -> dict[str, Any]:
    """Write `TYPE.gguf` for every type; a file that an earlier run finished stays as it is.

    Returns:
        `files` (see `describe`), `seconds`, `peak_rss` (of the process so far, in bytes), `notes`.

    Raises:
        InputError: the model's files are damaged.
        UsageError: its values do not fit in the type, or GGUF cannot say what the model needs.
    """
    began = time.monotonic()
    missing = [kind for kind in config.types if not _path(out, kind).is_file()]
    if missing:
        _write(resolve(inputs["model"].spec), missing, out)
    files = [describe(_path(out, kind), kind) for kind in config.types]
    rows = [(f["path"], f["type"], size(f["bytes"]), f"{f['bpw']:.2f}", len(f["fallbacks"])) for f in files]
    table(("file", "type", "size", "bits per weight", "fallbacks"), rows, title="Quantized files")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
    seconds = round(time.monotonic() - began, 3)
    return {"files": files, "seconds": seconds, "peak_rss": peak, "notes": [_NOTE]}


def describe(path: Path, kind: GGUFType) -> dict[str, Any]:
    """What a file holds, read back from it.

    `bpw` is the bits of its tensors by the number of weights; `fallbacks` names the matrices that have
    another type than asked for.
    """
    with GGUF(path) as gguf:
        tensors = gguf.tensors.values()
        weights = sum(prod(tensor.shape) for tensor in tensors)
        bits = 8 * sum(tensor.nbytes for tensor in tensors)
        fallbacks = {t.name: t.type for t in tensors if len(t.shape) > 1 and t.type != kind}
    return {
        "path": path.name,
        "type": kind,
        "bytes": path.stat().st_size,
        "bpw": bits / weights,
        "fallbacks": fallbacks,
        "sha256": sha256_file(path),
    }


def _write(files: ModelFiles, kinds: Sequence[GGUFType], out: Path) -> None:
    """Load the model once, in float32, and write each type from it."""
    tokenizer = model_tokenizer(files)
    model = load_model(files)
    with progress("quantize", len(kinds), "files") as bar:
        for kind in kinds:
            save_gguf(model, model.config, tokenizer, _path(out, kind), type=kind)
            bar.advance()


def _path(out: Path, kind: GGUFType) -> Path:
    return out / f"{kind}.gguf"
