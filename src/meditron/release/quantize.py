"""The quantize stage and command: a model as GGUF files, one per type."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

from torch import Tensor

from meditron.core.console import info, progress, warn
from meditron.core.errors import UsageError
from meditron.core.machine import usable_cores
from meditron.model.config import LlamaConfig
from meditron.model.gguf_layout import gguf_header, read_gguf_config
from meditron.model.gguf_weights import encode_floats, lazy_gguf_tensors
from meditron.model.presets import model_tokenizer
from meditron.model.weights import open_weights
from meditron.release.check import CHECK_KEY, ExportCheck
from meditron.release.config import QuantizeConfig
from meditron.release.encode import load_libgguf, quantize_matrix
from meditron.release.memory import measure_peak_memory
from meditron.release.naming import file_stem, model_name
from meditron.release.quant_recipes import QUANT_RECIPES, fallback_type, target_type
from meditron.release.staged import replace_when_complete
from meditron.release.types import GGUFType
from meditron.report.quantization import (
    QuantizationCost,
    files_table,
    measured_costs,
    published_cost,
    recommendation,
    recommended_type,
)
from meditron.report.terminal import print_table
from meditron.store.ancestry import GGUF_KEY, read_ancestry
from meditron.store.authorship import read_authorship
from meditron.store.files import make_folder, sha256_file
from meditron.store.gguf import GGUF, Array, write_gguf
from meditron.store.gguf_types import FLOAT_TYPES
from meditron.store.manifest import Artifact
from meditron.store.models import ModelFiles, resolve_model

__all__ = ["carried_metadata", "describe_gguf", "print_summary", "quantize", "run"]

_CONTEXT = 4096
"""Tokens of the KV cache in the memory estimate, at most."""
_NOTE = "one-dimensional tensors (norms) are F32 in every type, as llama.cpp reads them"


def run(config: QuantizeConfig, inputs: Mapping[str, Artifact], out: Path) -> dict[str, Any]:
    """Write `TYPE.gguf` for every type; files that an earlier attempt finished are kept.

    Returns:
        `files` (see `describe_gguf`), `seconds` (of which the export check took `check_seconds`), `peak_rss`
        (bytes), `notes`.

    Raises:
        InputError: The model's files are damaged.
        UsageError: A value of the model overflows in the type, or GGUF has no keys for its rotary scaling.
        ExportError: A written file differs from the model.
        MissingExtra: A type is quantized and libgguf is not installed.
    """
    paths = {kind: out / f"{kind}.gguf" for kind in config.types}
    missing = [kind for kind, path in paths.items() if not path.is_file()]
    result = _write_missing_files(inputs["model"].spec, paths, missing, config.threads)
    # The evaluation of these files comes later in a run, so only published costs are known here.
    print_summary(result["files"])
    return result


def quantize(
    spec: str,
    types: Sequence[GGUFType],
    out: Path,
    *,
    threads: int | None = None,
    force: bool = False,
    check: bool = True,
) -> dict[str, Any]:
    """Write `NAME-TYPE.gguf` of any MODEL for each type into the folder `out`.

    Args:
        spec: The MODEL.
        types: Types of the files.
        out: The folder of the files.
        threads: Threads that quantize; None for all cores.
        force: Replace existing files.
        check: Compare each file with the model before it is kept. If false, the files record that they were
            not checked.

    Returns:
        The same as `run`. Each file has a `cost` (the change in perplexity, whether it was measured, and on
        which text), and `recommended` is the recommended type.

    Raises:
        UsageError: A file exists and `force` is not set, or as in `run`.
    """
    if threads is not None and threads < 1:
        raise UsageError(f"threads must be at least 1, got {threads}", hint="without --threads: all cores")
    if out.suffix.lower() == ".gguf" or out.is_file():
        raise UsageError(f"--out must be a folder, got {out}", hint="the files are named NAME-TYPE.gguf")
    files = resolve_model(spec)
    stem = file_stem(files)
    paths = {kind: out / f"{stem}-{kind}.gguf" for kind in types}
    # All names are checked before the first file is written.
    for path in filter(Path.exists, paths.values()):
        if files.kind != "init" and path.samefile(files.path):
            raise UsageError(f"{path} is the model itself", hint="choose another folder with --out")
        if not force:
            raise UsageError(f"{path} already exists", hint="use --force to replace it, or another --out")
    make_folder(out)
    result = _write_missing_files(spec, paths, list(paths), threads, check=check)
    costs = measured_costs(Path(files.path)) if files.kind == "hf" else {}
    described = []
    for file in result["files"]:
        cost = costs.get(file["type"]) or published_cost(file["type"])
        described.append(file | {"path": str(out / file["path"]), "cost": cost and cost.to_json()})
    return result | {"files": described, "recommended": recommended_type(described, costs)}


def print_summary(files: Sequence[Mapping[str, Any]], *, answer: bool = False) -> None:
    """Print the files with size, memory and cost in quality, their fallback types, and the recommended type.

    Args:
        files: As `run` or `quantize` returns them; a file without a `cost` gets the published one.
        answer: True to print the table on stdout.
    """
    costs = {file["type"]: QuantizationCost.from_json(file["cost"]) for file in files if file.get("cost")}
    table = files_table(files, costs, "Quantized files")
    print_table(table.headers, table.rows, title=table.caption, answer=answer)
    for file in files:
        if file["fallbacks"]:
            counts = Counter(file["fallbacks"].values()).most_common()
            listed = ", ".join(f"{count} × {kind}" for kind, count in counts)
            info(f"{file['type']}: fallback types {listed} (row length is not a multiple of the block size)")
    if advice := recommendation(files, costs):
        info(advice)


def describe_gguf(path: Path, kind: GGUFType) -> dict[str, Any]:
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
        checked = gguf.metadata.get(CHECK_KEY, "passed")
    matrices = [tensor for tensor in tensors if len(tensor.shape) > 1]
    context = min(_CONTEXT, config.max_position_embeddings)
    return {
        "path": path.name,
        "type": kind,
        "bytes": path.stat().st_size,
        "bpw": 8 * sum(t.nbytes for t in tensors) / sum(prod(t.shape) for t in tensors),
        "fallbacks": {t.name: t.type for t in matrices if t.type != target_type(kind, t.name, config)},
        "ram": path.stat().st_size + context * config.kv_cache_bytes_per_token,
        "context": context,
        "check": checked,
        "sha256": sha256_file(path),
    }


def _write_missing_files(
    spec: str,
    paths: Mapping[GGUFType, Path],
    missing: Sequence[GGUFType],
    threads: int | None,
    *,
    check: bool = True,
) -> dict[str, Any]:
    """Write the missing files, then describe all of them."""
    started, check_seconds = time.monotonic(), 0.0
    with measure_peak_memory() as peak:
        if missing:
            check_seconds = _write_files(
                resolve_model(spec),
                {kind: paths[kind] for kind in missing},
                threads or usable_cores(),
                check=check,
            )
        files = [describe_gguf(path, kind) for kind, path in paths.items()]
    notes = [_NOTE, *(["peak_rss is of the process since its start"] if peak.since_start else [])]
    seconds = round(time.monotonic() - started, 3)
    return {
        "files": files,
        "seconds": seconds,
        "check_seconds": round(check_seconds, 3),
        "peak_rss": peak.bytes,
        "notes": notes,
    }


def carried_metadata(files: ModelFiles, *, check: bool) -> dict[str, Any]:
    """Return the metadata that a GGUF file takes from its source, and the record of a skipped check."""
    ancestry = read_ancestry(files)
    return {
        **read_authorship(files),
        **({} if ancestry is None else {GGUF_KEY: ancestry.model_dump_json()}),
        **({} if check else {CHECK_KEY: "skipped"}),
    }


def _write_files(files: ModelFiles, paths: Mapping[GGUFType, Path], threads: int, *, check: bool) -> float:
    """Write each file in one pass over the model's tensors, with one tensor in memory at a time.

    Returns the seconds of the export check.
    """
    if not set(paths) <= FLOAT_TYPES:
        load_libgguf()  # a missing extra must fail before anything is read
        _warn_if_already_quantized(files)
    tokenizer, name = model_tokenizer(files), model_name(files)
    comparison = ExportCheck(files, tokenizer)
    with open_weights(files) as (config, weights), ThreadPoolExecutor(threads) as workers:

        def encode(name: str, weight: Tensor, kind: str) -> Array:
            values = (encode_floats if kind in FLOAT_TYPES else partial(quantize_matrix, workers=workers))(
                name, weight, kind
            )
            bar.advance(values.nbytes)
            return values

        bodies = {
            kind: lazy_gguf_tensors(weights, config, partial(_stored_type, kind, config), encode)
            for kind in paths
        }
        # Sizes are known before any tensor is encoded, because a type has a fixed number of bytes per block.
        total = sum(tensor.nbytes for body in bodies.values() for _, tensor in body)
        header = gguf_header(config, tokenizer, name, carried_metadata(files, check=check))
        with progress("quantize", total, unit="B") as bar:
            for kind, body in bodies.items():
                with replace_when_complete(paths[kind]) as temporary:
                    write_gguf(temporary, header | {"general.file_type": QUANT_RECIPES[kind].file_type}, body)
                    if check:
                        written = ModelFiles(str(paths[kind]), "gguf", temporary)
                        comparison.require_same_model(written, kind, paths[kind])
    return comparison.seconds


def _stored_type(kind: GGUFType, config: LlamaConfig, name: str, width: int) -> str:
    return fallback_type(target_type(kind, name, config), width)


def _warn_if_already_quantized(files: ModelFiles) -> None:
    """Warn if the model is already quantized, because the errors add up."""
    if files.kind != "gguf":
        return
    with GGUF(Path(files.path)) as gguf:
        kinds = sorted({tensor.type for tensor in gguf.tensors.values()} - FLOAT_TYPES)
    if kinds:
        warn(f"{files.spec} is already quantized ({', '.join(kinds)}): the errors of both add up")
