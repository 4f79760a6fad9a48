"""GPTQ and AWQ: a model as a folder whose matrices are packed, for vLLM and transformers.

GPTQModel computes the packed matrices in a process of its own (`gptqmodel_worker`). Config, tokenizer, chat
template, generation config, card and ancestry are written here, as `convert` writes them.
"""

import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from meditron.core.console import info, progress, warn
from meditron.core.errors import EngineError, MissingExtra, UsageError
from meditron.core.machine import usable_cores
from meditron.model.config import LlamaConfig
from meditron.model.presets import model_tokenizer
from meditron.model.shapes import parameter_shapes
from meditron.model.weight_rows import load_config, open_weight_rows
from meditron.model.weights import open_weights, save_hf
from meditron.release.check import ExportCheck, ExportError
from meditron.release.check_logits import kl_divergence
from meditron.release.convert import write_carried_files
from meditron.release.gptqmodel_worker import Job
from meditron.release.imatrix import CHUNK_SIZE, Calibration, read_calibration
from meditron.release.memory import child_peak_bytes
from meditron.release.naming import file_stem, model_name
from meditron.release.packed_shape import describe_packed, require_fitting_shape
from meditron.release.packed_types import PackedType
from meditron.release.quantize import warn_if_already_quantized
from meditron.release.staged import replace_when_complete
from meditron.store.checksums import CHECKSUMS_FILE, write_checksums
from meditron.store.files import (
    atomic_write,
    fsync_path,
    list_files,
    make_folder,
    read_json,
    sha256_file,
    write_json,
)
from meditron.store.models import ModelFiles, resolve_model

__all__ = ["PackedPlan", "plan_packed", "write_packed"]

_MAX_CHUNKS = 128
"""Most chunks of the calibration text that are read."""
_CHECK_TOKENS = 256
_MOST_KL = {8: 0.5, 4: 3.0, 3: 5.0, 2: 8.0}
"""Bits → largest mean KL divergence of a written model, in nats per token: several times that of a model of
135 million parameters. A wrong zero point or order gives about the entropy of the vocabulary, 10."""
_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@dataclass(frozen=True, slots=True)
class PackedPlan:
    """Folders to write, after all checks that need no weights."""

    files: ModelFiles
    config: LlamaConfig
    calibration: Calibration
    paths: Mapping[PackedType, Path]
    threads: int
    check: bool


def plan_packed(
    spec: str,
    kinds: Sequence[PackedType],
    out: Path,
    calibrate: Path | None,
    *,
    threads: int | None = None,
    check: bool = True,
    force: bool = False,
) -> PackedPlan:
    """Check everything that can be checked before the weights are read.

    Args:
        spec: The MODEL.
        kinds: Types of the folders.
        out: The folder of the folders `NAME-TYPE`.
        calibrate: The calibration text.
        threads: Threads; None for all cores.
        check: Compare each folder with the model before it is kept.
        force: Replace existing folders.

    Raises:
        UsageError: there is no calibration text, a type does not fit the model's shape, or a folder exists.
        MissingExtra: GPTQModel is not installed.
        InputError: the model's config or the text is damaged.
    """
    names = ", ".join(map(str, kinds))
    if calibrate is None:
        raise UsageError(f"{names} needs a calibration text", hint="use --calibrate TEXT")
    files = resolve_model(spec)
    config = load_config(files)
    for kind in kinds:
        require_fitting_shape(kind, config)
    if importlib.util.find_spec("gptqmodel") is None:
        raise MissingExtra("GPTQModel", "gptq")
    stem = file_stem(files)
    paths = {kind: out / f"{stem}-{kind}" for kind in kinds}
    for path in paths.values():
        if path.exists() and not force:
            raise UsageError(f"{path} already exists", hint="use --force to replace it, or another --out")
        if path.exists() and not (path / "config.json").is_file():
            raise UsageError(f"{path} exists and is not a model folder", hint="choose another --out")
        if path.exists() and files.kind != "init" and path.samefile(files.path):
            raise UsageError(f"{path} is the model itself", hint="choose another folder with --out")
    chunk = min(CHUNK_SIZE, config.max_position_embeddings)
    calibration = read_calibration(calibrate, model_tokenizer(files), chunk, _MAX_CHUNKS)
    return PackedPlan(files, config, calibration, paths, threads or usable_cores(), check)


def write_packed(plan: PackedPlan) -> dict[str, Any]:
    """Write the planned folders.

    Returns:
        `files` (for each folder `path`, `type`, `bytes`, `bpw`, `ram`, `context`, `fallbacks` (always empty),
        `check`, `kl`, and `sha256`, that of the folder's SHA256SUMS), `seconds`, `peak_rss` (of the largest
        process).

    Raises:
        UsageError: a weight overflows in float16.
        EngineError: GPTQModel failed.
        ExportError: a written folder differs from the model.
    """
    started = time.monotonic()
    warn_if_already_quantized(plan.files)
    _warn_of_short_text(plan)
    out = make_folder(next(iter(plan.paths.values())).parent)
    described = []
    with tempfile.TemporaryDirectory(prefix=".gptq-", dir=out) as folder:
        source = Path(folder) / "source"
        # The library reads HF folders only; its reader then sees the config and tensors that ours writes.
        with open_weights(plan.files) as (config, weights):
            save_hf(weights, config, model_tokenizer(plan.files), source, torch.float16)
        write_carried_files(plan.files, source, model_name(plan.files), check=plan.check)
        for kind, path in plan.paths.items():
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                described.append(_write_folder(plan, kind, path, source, Path(scratch)))
    seconds = round(time.monotonic() - started, 3)
    return {"files": described, "seconds": seconds, "peak_rss": child_peak_bytes()}


def _warn_of_short_text(plan: PackedPlan) -> None:
    tokens = len(plan.calibration.chunks) * plan.calibration.chunk_size
    widest = max(shape[-1] for name, shape in parameter_shapes(plan.config).items() if ".layers." in name)
    if tokens < 4 * widest:
        warn(
            f"{plan.calibration.path} has {tokens:,} tokens for rows of {widest:,} values: "
            "use a longer text, tens of thousands of tokens"
        )


def _write_folder(
    plan: PackedPlan, kind: PackedType, path: Path, source: Path, scratch: Path
) -> dict[str, Any]:
    """Write one folder under a temporary name, check it, and return its description."""
    with replace_when_complete(path) as temporary:
        packed = scratch / "packed"
        _run_gptqmodel(plan, kind, path, source, packed, scratch)
        _assemble(source, packed, temporary, _quantization_config(kind, plan.calibration))
        kl = _check(plan, kind, path, temporary) if plan.check else None
        digests = {file.name: sha256_file(file) for file in list_files(temporary)}
        write_checksums(temporary, digests)
    return describe_packed(kind, plan.config) | {
        "path": str(path),
        "bytes": sum(file.stat().st_size for file in list_files(path)),
        "check": "passed" if plan.check else "skipped",
        "kl": kl,
        "sha256": sha256_file(path / CHECKSUMS_FILE),
    }


def _run_gptqmodel(
    plan: PackedPlan, kind: PackedType, path: Path, source: Path, packed: Path, scratch: Path
) -> None:
    """Let GPTQModel write the packed weights of `path` to the folder `packed`."""
    job = Job(
        source=str(source.absolute()),
        out=str(packed.absolute()),
        scratch=str((scratch / "offload").absolute()),
        method=kind.method,
        bits=kind.bits,
        group_size=kind.group_size,
        act_order=kind.act_order,
        threads=plan.threads,
        chunks=plan.calibration.chunks,
    )
    write_json(scratch / "job.json", job)
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": str(plan.threads),
        # Its pool needs two workers, more than it takes by itself on two cores.
        "GPTQMODEL_CPU_WORKERS": str(max(2, plan.threads)),
        "HF_HUB_OFFLINE": "1",
        "TMPDIR": str(scratch.absolute()),
    }
    command = [sys.executable, "-P", "-m", "meditron.release.gptqmodel_worker", "job.json"]
    with (scratch / "log").open("w+b") as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env=environment,
            cwd=scratch,  # where the library writes a folder of logs
            start_new_session=True,  # Ctrl-C is handled here
        )
        assert process.stdout is not None  # noqa: S101  # a pipe
        with process, progress(f"{kind}", plan.config.num_hidden_layers, "layers") as bar:
            try:
                for _ in process.stdout:
                    bar.advance()
                process.wait()  # before its stdin is closed, which would end it
            except BaseException:
                process.kill()
                raise
        if process.returncode:
            log.seek(0)
            raise EngineError(
                f"{path}: GPTQModel {_last_words(process.returncode, log.read())}",
                hint="it was not written; folders and files that were written before it are kept",
            )


def _last_words(code: int, log: bytes) -> str:
    """Return why the process ended, in one line."""
    if code < 0:
        return f"was ended by signal {-code}; 9 is often the system's, out of memory"
    text = _ANSI.sub("", log.decode("utf-8", "replace").replace("\r", "\n"))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return f"failed: {lines[-1] if lines else f'exit code {code}'}"


def _quantization_config(kind: PackedType, calibration: Calibration) -> dict[str, Any]:
    """Return the key of config.json that vLLM and transformers read, with the calibration text."""
    if kind.method == "AWQ":
        layout = {"checkpoint_format": "gemm", "version": "gemm", "zero_point": True}
    else:
        layout = {"checkpoint_format": "gptq", "desc_act": kind.act_order, "sym": True, "lm_head": False}
    return {
        "quant_method": kind.method.lower(),
        "bits": kind.bits,
        "group_size": kind.group_size,
        **layout,
        "meta": {
            "quantizer": [f"gptqmodel:{importlib.metadata.version('gptqmodel')}"],
            "calibration": {
                "file": calibration.path.name,
                "sha256": calibration.sha256,
                "chunks": len(calibration.chunks),
                "chunk_size": calibration.chunk_size,
            },
        },
    }


def _assemble(source: Path, packed: Path, out: Path, quantization: Mapping[str, Any]) -> None:
    """Move the packed weights to `out`, beside the source's other files and its config."""
    make_folder(out)
    for file in [*packed.glob("*.safetensors"), *packed.glob("*.safetensors.index.json")]:
        file.rename(out / file.name)
        fsync_path(out / file.name)
    for file in list_files(source):
        if file.suffix != ".safetensors" and file.name != "config.json":
            with atomic_write(out / file.name) as copy:
                copy.write(file.read_bytes())
    write_json(out / "config.json", read_json(source / "config.json") | {"quantization_config": quantization})


def _check(plan: PackedPlan, kind: PackedType, path: Path, temporary: Path) -> float:
    """Compare a written folder with the model; return the KL divergence on the calibration text."""
    written = ModelFiles(str(path), "hf", temporary)
    ExportCheck(plan.files, model_tokenizer(plan.files)).require_same_model(written, "float16", path)
    ids = plan.calibration.chunks[0][:_CHECK_TOKENS]
    with open_weight_rows(plan.files) as (config, source), open_weight_rows(written) as (_, weights):
        kl = kl_divergence(config, source, weights, ids)
    if not kl <= _MOST_KL[kind.bits]:
        limit = f"{_MOST_KL[kind.bits]:g}"
        raise ExportError(path, f"the predictions have a KL divergence of {kl:.3g}; {limit} is allowed")
    info(f"{kind}: KL divergence {kl:.4f} nats per token on {len(ids)} tokens of the calibration text")
    return kl
