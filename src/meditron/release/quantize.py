"""A model as GGUF files, one a type: the quantize stage and its verb."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

from torch import Tensor

from meditron.core.console import info, progress, table, warn
from meditron.core.errors import UsageError
from meditron.core.machine import cores
from meditron.core.units import size
from meditron.model.config import LlamaConfig
from meditron.model.gguf_weights import as_floats, gguf_config, gguf_header, model_tensors
from meditron.model.presets import model_tokenizer
from meditron.model.weights import open_weights
from meditron.release.check import CHECK_KEY, ExportCheck
from meditron.release.config import QuantizeConfig
from meditron.release.encode import as_blocks, quantizers
from meditron.release.memory import peak_memory
from meditron.release.mix import FLOATS, MIXES, fitting, wanted
from meditron.release.naming import file_stem, model_name
from meditron.release.staged import staged
from meditron.release.types import GGUFType
from meditron.store.ancestry import GGUF_KEY, read_ancestry
from meditron.store.artifact import Artifact
from meditron.store.authorship import read_authorship
from meditron.store.files import make_folder, sha256_file
from meditron.store.gguf import GGUF, Array, write_gguf
from meditron.store.models import ModelFiles, resolve

__all__ = ["carried_metadata", "describe", "quantize", "run", "tell"]

_CONTEXT = 4096
"""Tokens that the memory column reckons with, at most."""
_NOTE = "one-dimensional tensors (norms) are F32 in every type, as llama.cpp reads them"


def run(config: QuantizeConfig, inputs: Mapping[str, Artifact], out: Path) -> dict[str, Any]:
    """Write `TYPE.gguf` for every type; a file that an earlier run finished stays as it is.

    Returns:
        `files` (see `describe`), `seconds` (of which `check_seconds` compared the files with the model),
        `peak_rss` (of this work, in bytes), `notes`.

    Raises:
        InputError: the model's files are damaged.
        UsageError: its values do not fit in the type, or GGUF cannot say what the model needs.
        ExportError: a written file differs from the model.
        MissingExtra: a quantized type without libgguf.
    """
    paths = {kind: out / f"{kind}.gguf" for kind in config.types}
    missing = [kind for kind, path in paths.items() if not path.is_file()]
    made = _made(inputs["model"].spec, paths, missing, config.threads)
    tell(made["files"])
    return made


def quantize(
    spec: str,
    types: Sequence[GGUFType],
    out: Path,
    *,
    threads: int | None = None,
    force: bool = False,
    check: bool = True,
) -> dict[str, Any]:
    """Write `NAME-TYPE.gguf` of the model `spec` (any MODEL) for each type into the folder `out`.

    Without `check` the files are not compared with the model, and say so. Returns and raises what `run` does,
    and UsageError where a file is there already, which `force` replaces.
    """
    if threads is not None and threads < 1:
        raise UsageError(f"{threads} threads cannot quantize", hint="leave --threads out for all cores")
    files = resolve(spec)
    stem = file_stem(files)
    paths = {kind: out / f"{stem}-{kind}.gguf" for kind in types}
    for path in filter(Path.exists, paths.values()):
        if files.kind != "init" and path.samefile(files.path):
            raise UsageError(f"{path} is the model itself", hint="choose another folder with --out")
        if not force:
            raise UsageError(f"{path} is there already", hint="--force replaces it, or choose another --out")
    make_folder(out)
    made = _made(spec, paths, list(paths), threads, check=check)
    return made | {"files": [file | {"path": str(out / file["path"])} for file in made["files"]]}


def tell(files: Sequence[Mapping[str, Any]], *, answer: bool = False) -> None:
    """Show the files as a table, and under it what fell back; `answer` is for who asked for just that."""
    rows = [(f["path"], f["type"], size(f["bytes"]), f"{f['bpw']:.2f}", size(f["ram"])) for f in files]
    memory = f"RAM, {files[0]['context']:,} tokens"
    table(("file", "type", "size", "bits per weight", memory), rows, title="Quantized files", answer=answer)
    for file in files:
        if file["fallbacks"]:
            found = Counter(file["fallbacks"].values()).most_common()
            counts = ", ".join(f"{count} {kind}" for kind, count in found)
            info(f"{file['type']}: {counts} instead, where rows are no whole blocks of what the mix has")


def describe(path: Path, kind: GGUFType) -> dict[str, Any]:
    """What a file holds, read back from it.

    `bpw` is the bits of its tensors by the number of weights; `fallbacks` gives the type of the matrices that
    have another than the mix wants, because their rows are no whole blocks of it; `ram` is the bytes of the
    file and of the keys and values (F16) of `context` tokens; `check` is `skipped` if it was not compared
    with its source.
    """
    with GGUF(path) as gguf:
        config = gguf_config(gguf)
        tensors = list(gguf.tensors.values())
        checked = gguf.metadata.get(CHECK_KEY, "passed")
    matrices = [tensor for tensor in tensors if len(tensor.shape) > 1]
    context = min(_CONTEXT, config.max_position_embeddings)
    return {
        "path": path.name,
        "type": kind,
        "bytes": path.stat().st_size,
        "bpw": 8 * sum(t.nbytes for t in tensors) / sum(prod(t.shape) for t in tensors),
        "fallbacks": {t.name: t.type for t in matrices if t.type != wanted(kind, t.name, config)},
        "ram": path.stat().st_size + context * config.cache_bytes,
        "context": context,
        "check": checked,
        "sha256": sha256_file(path),
    }


def _made(
    spec: str,
    paths: Mapping[GGUFType, Path],
    missing: Sequence[GGUFType],
    threads: int | None,
    *,
    check: bool = True,
) -> dict[str, Any]:
    """Write the files that are missing, then describe all."""
    began, checked = time.monotonic(), 0.0
    with peak_memory() as peak:
        if missing:
            checked = _write(
                resolve(spec), {kind: paths[kind] for kind in missing}, threads or cores(), check=check
            )
        files = [describe(path, kind) for kind, path in paths.items()]
    notes = [_NOTE, *(["peak_rss is of the process since its start"] if peak.since_start else [])]
    seconds = round(time.monotonic() - began, 3)
    return {
        "files": files,
        "seconds": seconds,
        "check_seconds": round(checked, 3),
        "peak_rss": peak.bytes,
        "notes": notes,
    }


def carried_metadata(files: ModelFiles, *, check: bool) -> dict[str, Any]:
    """Return the metadata that a GGUF file takes over from its source, and the record of a skipped check."""
    ancestry = read_ancestry(files)
    return {
        **read_authorship(files),
        **({} if ancestry is None else {GGUF_KEY: ancestry.model_dump_json()}),
        **({} if check else {CHECK_KEY: "skipped"}),
    }


def _write(files: ModelFiles, paths: Mapping[GGUFType, Path], threads: int, *, check: bool) -> float:
    """Write each file in one pass over the model's tensors, one of which is in memory at a time.

    Returns the seconds that the comparison with the model took.
    """
    if not set(paths) <= set(FLOATS):
        quantizers()  # or fail before anything is read
        _warn_of_quantized(files)
    tokenizer, name = model_tokenizer(files), model_name(files)
    comparison = ExportCheck(files, tokenizer)
    with open_weights(files) as (config, weights), ThreadPoolExecutor(threads) as workers:

        def encode(name: str, weight: Tensor, kind: str) -> Array:
            values = (as_floats if kind in FLOATS else partial(as_blocks, workers=workers))(
                name, weight, kind
            )
            bar.advance(values.nbytes)
            return values

        bodies = {
            kind: model_tensors(weights, config, partial(_stored_type, kind, config), encode)
            for kind in paths
        }
        total = sum(tensor.nbytes for body in bodies.values() for _, tensor in body)
        header = gguf_header(config, tokenizer, name, carried_metadata(files, check=check))
        with progress("quantize", total, unit="B") as bar:
            for kind, body in bodies.items():
                with staged(paths[kind]) as temporary:
                    write_gguf(temporary, header | {"general.file_type": MIXES[kind].file_type}, body)
                    if check:
                        written = ModelFiles(str(paths[kind]), "gguf", temporary)
                        comparison.require_same(written, kind, paths[kind])
    return comparison.seconds


def _stored_type(kind: GGUFType, config: LlamaConfig, name: str, width: int) -> str:
    return fitting(wanted(kind, name, config), width)


def _warn_of_quantized(files: ModelFiles) -> None:
    """Say so where the model has been quantized before: errors add up."""
    if files.kind != "gguf":
        return
    with GGUF(Path(files.path)) as gguf:
        kinds = sorted({tensor.type for tensor in gguf.tensors.values()} - set(FLOATS))
    if kinds:
        warn(f"{files.spec} is quantized already ({', '.join(kinds)}): its own error is in the new files too")
