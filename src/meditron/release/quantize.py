"""The quantize stage and command: a model as GGUF files, one per type, from one reading of its weights."""

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from meditron.core.console import progress, warn
from meditron.core.errors import InputError, UsageError
from meditron.core.machine import usable_cores
from meditron.model.config import LlamaConfig
from meditron.model.gguf_layout import gguf_header
from meditron.model.packed_format import packed_format_of
from meditron.model.packed_weights import PACKED_TYPES
from meditron.model.presets import model_tokenizer
from meditron.model.weight_rows import open_weight_rows
from meditron.release.check import CHECK_KEY, ExportCheck
from meditron.release.config import QuantizeConfig
from meditron.release.file_plan import FilePlan, plan_files, planned_metadata
from meditron.release.ggml import load_ggml
from meditron.release.imatrix_file import read_imatrix
from meditron.release.importance import NO_IMPORTANCE, Importance, load_importance
from meditron.release.memory import measure_peak_memory
from meditron.release.naming import file_stem, model_name
from meditron.release.one_pass import PlannedFile, write_files
from meditron.release.staged import replace_when_complete
from meditron.release.summary import describe_gguf, print_summary, with_costs
from meditron.release.types import GGUFType, Mix
from meditron.report.quantization import measured_costs, recommended_type
from meditron.store.ancestry import GGUF_KEY, read_ancestry
from meditron.store.authorship import read_authorship
from meditron.store.checksums import write_checksums
from meditron.store.files import make_folder, sha256_file
from meditron.store.gguf import GGUF
from meditron.store.gguf_types import FLOAT_TYPES
from meditron.store.manifest import Artifact
from meditron.store.models import ModelFiles, model_digest, resolve_model

__all__ = [
    "DEFAULT_OPTIONS",
    "QuantizeOptions",
    "carried_metadata",
    "quantize",
    "read_importance",
    "run",
    "warn_if_already_quantized",
]

_NOTE = "one-dimensional tensors (norms) are F32 in every type, as llama.cpp reads them"


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizeOptions:
    """Options that all files of one call share."""

    mix: Mix = "current"
    """Rules by which the matrices of a file get their types."""
    imatrix: Path | None = None
    """File of an importance matrix."""
    calibrate: Path | None = None
    """Text from which an importance matrix is computed, instead of `imatrix`."""
    target_size: str | None = None
    """Size of one more file, such as `4GB`, with the mix of types that loses least."""
    threads: int | None = None
    """Threads that quantize; None for all cores."""
    check: bool = True
    """Compare each file with the model before it is kept. If false, the files record that they were not
    checked."""


DEFAULT_OPTIONS = QuantizeOptions()


def run(config: QuantizeConfig, inputs: Mapping[str, Artifact], out: Path) -> dict[str, Any]:
    """Write `TYPE.gguf` for every type, and `SHA256SUMS`; files that an earlier attempt finished are kept.

    Returns:
        `files` (see `describe_gguf`), `seconds` (of which the export check took `check_seconds`), `peak_rss`
        (bytes), `notes`.

    Raises:
        InputError: The model's files are damaged.
        UsageError: A value of the model overflows in the type, or GGUF has no keys for its rotary scaling.
        ExportError: A written file differs from the model.
        MissingExtra: A type is quantized and xllamacpp is not installed.
    """
    paths = {kind: out / f"{kind}.gguf" for kind in config.selectors()}
    missing = [kind for kind, path in paths.items() if not path.is_file()]
    imatrix = inputs["imatrix"].path if "imatrix" in inputs else None
    options = QuantizeOptions(
        mix=config.mix, imatrix=imatrix, target_size=config.target_size, threads=config.threads
    )
    if "calibrate" in inputs:
        options = replace(options, calibrate=inputs["calibrate"].path)
        options = _calibrated(inputs["model"].spec, options, out / "calibration.imatrix", force=True)
    result = _write_missing_files(inputs["model"].spec, paths, missing, options)
    write_checksums(out, {file["path"]: file["sha256"] for file in result["files"]})
    # The evaluation of these files comes later in a run, so only published costs are known here.
    print_summary(result["files"])
    return result


def quantize(
    spec: str,
    types: Sequence[GGUFType],
    out: Path,
    options: QuantizeOptions = DEFAULT_OPTIONS,
    *,
    force: bool = False,
) -> dict[str, Any]:
    """Write `NAME-TYPE.gguf` of any MODEL for each type into the folder `out`.

    Args:
        spec: The MODEL.
        types: Types of the files.
        out: The folder of the files.
        options: Options that all files share.
        force: Replace existing files.

    Returns:
        The same as `run`. Each file has a `cost` (the change in perplexity, whether it was measured, and on
        which text), and `recommended` is the recommended type.

    Raises:
        UsageError: A file exists and `force` is not set, or as in `run`.
    """
    if options.threads is not None and options.threads < 1:
        raise UsageError(f"threads must be at least 1, got {options.threads}", hint="default: all cores")
    if out.suffix.lower() == ".gguf" or out.is_file():
        raise UsageError(f"--out must be a folder, got {out}", hint="the files are named NAME-TYPE.gguf")
    files = resolve_model(spec)
    stem = file_stem(files)
    kinds = (*types, *([] if options.target_size is None else [options.target_size]))
    paths = {kind: out / f"{stem}-{kind}.gguf" for kind in kinds}
    # All names are checked before the first file is written.
    for path in filter(Path.exists, paths.values()):
        if files.kind != "init" and path.samefile(files.path):
            raise UsageError(f"{path} is the model itself", hint="choose another folder with --out")
        if not force:
            raise UsageError(f"{path} already exists", hint="use --force to replace it, or another --out")
    options = _calibrated(spec, options, out / f"{stem}.imatrix", force=force)
    result = _write_missing_files(spec, paths, list(paths), options)
    described = [
        file | {"path": str(out / file["path"])} for file in with_costs(Path(files.path), result["files"])
    ]
    costs = measured_costs(Path(files.path))
    return result | {"files": described, "recommended": recommended_type(described, costs)}


def _calibrated(spec: str, options: QuantizeOptions, path: Path, *, force: bool) -> QuantizeOptions:
    """Compute the importance matrix of a calibration text, if there is one, and use it.

    An existing file of the same text and model is used as it is. Another one is replaced with `force` only.
    """
    if options.calibrate is None:
        return options
    if not path.is_file() or not _is_matrix_of(path, spec, options.calibrate, force=force):
        from meditron.release.imatrix import compute_imatrix  # needs torch

        make_folder(path.parent)
        compute_imatrix(spec, options.calibrate, path, force=True)
    return replace(options, imatrix=path)


def _is_matrix_of(path: Path, spec: str, text: Path, *, force: bool) -> bool:
    """Return whether a matrix is of this model and the whole text; without `force` another is an error."""
    try:
        matrix = read_imatrix(path)
    except InputError:
        if force:
            return False
        raise
    files = resolve_model(spec)
    if (matrix.text_sha256, matrix.model_digest) == (sha256_file(text), model_digest(files)):
        from meditron.release.imatrix import CHUNK_SIZE, read_calibration  # needs torch

        # `meditron imatrix` may have read a part of the text only, or in other chunks.
        calibration = read_calibration(text, model_tokenizer(files), CHUNK_SIZE, None)
        if (matrix.chunks, matrix.chunk_size) == (len(calibration.chunks), CHUNK_SIZE):
            return True
    if not force:
        raise UsageError(
            f"{path} is of another text or model than {text} and {spec}, or of other chunks",
            hint="use it with --imatrix, replace it with --force, or choose another --out",
        )
    return False


def read_importance(options: QuantizeOptions, config: LlamaConfig) -> Importance:
    """Read the importance matrix that the options name, if any; errors are those of `load_importance`."""
    return NO_IMPORTANCE if options.imatrix is None else load_importance(options.imatrix, config)


def _write_missing_files(
    spec: str, paths: Mapping[str, Path], missing: Sequence[str], options: QuantizeOptions
) -> dict[str, Any]:
    """Write the missing files, then describe all of them."""
    started, check_seconds = time.monotonic(), 0.0
    with measure_peak_memory() as peak:
        if missing:
            missing_paths = {kind: paths[kind] for kind in missing}
            check_seconds = _write_files(resolve_model(spec), missing_paths, options)
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


def _write_files(files: ModelFiles, paths: Mapping[str, Path], options: QuantizeOptions) -> float:
    """Write the files in one pass over the model's weights; return the seconds of the export check."""
    if not set(paths) <= FLOAT_TYPES:
        load_ggml()  # a missing extra must fail before anything is read
        warn_if_already_quantized(files)
    tokenizer = model_tokenizer(files)
    comparison = ExportCheck(files, tokenizer)
    with open_weight_rows(files) as (config, weights), ExitStack() as complete:
        importance = read_importance(options, config)
        carried = carried_metadata(files, check=options.check)
        header = gguf_header(config, tokenizer, model_name(files), carried)
        types = [cast("GGUFType", kind) for kind in paths if kind != options.target_size]
        plans = {plan.kind: plan for plan in plan_files(types, config, options.mix, importance)}
        _require_imatrix(list(plans.values()), importance)
        if options.target_size is not None and options.target_size in paths and options.calibrate is not None:
            from meditron.release.target_size import plan_for_size  # needs torch

            plans[options.target_size] = plan_for_size(
                files, weights, options.target_size, options.calibrate, importance, header
            )
        planned = {}
        for kind, path in paths.items():
            make_folder(path.parent)  # only now, so that a refused call leaves no empty folder
            temporary, plan = complete.enter_context(replace_when_complete(path)), plans[kind]
            planned[kind] = PlannedFile(temporary, plan, planned_metadata(plan, header, importance))
        total = sum(tensor.nbytes for plan in plans.values() for tensor in plan.tensors)
        with progress("quantize", total, unit="B") as bar:
            write_files(
                list(planned.values()),
                config,
                weights,
                importance=importance,
                threads=options.threads or usable_cores(),
                advance=bar.advance,
            )
        if options.check:
            for kind, file in planned.items():
                comparison.require_same_model(
                    ModelFiles(str(paths[kind]), "gguf", file.path), kind, paths[kind]
                )
    return comparison.seconds


def _require_imatrix(plans: Sequence[FilePlan], importance: Importance) -> None:
    """Raise UsageError if a matrix would be garbage without the importance of its columns."""
    for plan in plans:
        for tensor in plan.without_imatrix:
            if tensor.name not in importance.columns:
                raise UsageError(
                    f"{plan.kind} needs an importance matrix with {tensor.name}, which is {tensor.type}",
                    hint="use --imatrix FILE, or --calibrate TEXT to compute one",
                )


def warn_if_already_quantized(files: ModelFiles) -> None:
    """Warn if the model is already quantized, because the errors add up."""
    kinds: list[str] = []
    if files.kind == "gguf":
        with GGUF(Path(files.path)) as gguf:
            kinds = sorted({tensor.type for tensor in gguf.tensors.values()} - FLOAT_TYPES)
    elif files.kind == "hf":
        packed = packed_format_of(files.path)
        kinds = [] if packed is None else [PACKED_TYPES[packed.quant_method]]
    if kinds:
        warn(f"{files.spec} is already quantized ({', '.join(kinds)}): the errors of both add up")
