"""`meditron quantize`: a model as GGUF files for llama.cpp, or as GPTQ and AWQ folders for vLLM."""

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

from cyclopts import Group, Parameter

from meditron.cli.options import Json, flags_from, print_json, validate_settings
from meditron.core.console import info
from meditron.core.errors import UsageError
from meditron.release.packed_types import PACKED_FORMS, is_packed_type, parse_packed_type
from meditron.release.types import GGUFType, parse_gguf_type

if TYPE_CHECKING:
    from meditron.release.config import QuantizeConfig
    from meditron.release.packed_types import PackedType
    from meditron.release.quantize import QuantizeOptions

__all__ = ["quantize"]

_FILES = Group("Files", sort_key=1)


@flags_from(
    "quantize", {"Files": ("target_size", "mix", "imatrix", "calibrate"), "Computation": ("threads",)}
)
def quantize(
    model: Annotated[str, Parameter(help="A MODEL: a run's stage, an HF folder, a .gguf file, pypi:….")],
    /,
    *types: Annotated[str, Parameter(help="Types, as with --type.")],
    type: Annotated[
        tuple[str, ...],
        Parameter(
            group=_FILES,
            help=f"Type of a GGUF file (Q4_K_M by default; {', '.join(get_args(GGUFType))}) or of a folder "
            f"({PACKED_FORMS}, …). Repeatable.",
        ),
    ] = (),
    out: Annotated[
        Path, Parameter(show_default=True, help="Folder of the files NAME-TYPE.gguf and folders NAME-TYPE.")
    ] = Path(),
    force: Annotated[bool, Parameter(help="Replace existing files.")] = False,
    check: Annotated[
        bool, Parameter(negative="--no-check", help="Compare each file with the model before it is kept.")
    ] = True,
    dry_run: Annotated[
        bool, Parameter(help="Show sizes and types without reading weights; needs a config.json only.")
    ] = False,
    as_json: Json = False,
    **settings: Any,  # noqa: ANN401  # keys of the recipe's table
) -> None:
    """Write a model in smaller types: GGUF files for llama.cpp, GPTQ and AWQ folders for vLLM.

    Shows the size, the memory and the cost in quality of each file, and the type to take. GPTQ and AWQ need a
    calibration text (--calibrate) and the extra gptq.

    For example:

        meditron quantize runs/quickstart/finetune.sections --type Q8_0 --type Q4_K_M --out gguf
    """
    from meditron.release.config import QuantizeConfig
    from meditron.release.summary import print_summary

    # Types may be given as arguments, as flags or both, and the same type twice.
    names = dict.fromkeys((*types, *type))
    packed = tuple(dict.fromkeys(parse_packed_type(name) for name in names if is_packed_type(name)))
    if kinds := tuple(dict.fromkeys(parse_gguf_type(name) for name in names if not is_packed_type(name))):
        settings["types"] = kinds
    writes_gguf = bool(kinds) or "target_size" in settings or not packed
    if not writes_gguf and (others := [key for key in ("mix", "imatrix") if key in settings]):
        raise UsageError(f"--{others[0]} is for GGUF files, not for {packed[0]}", hint="leave it out")
    config = validate_settings(QuantizeConfig, settings, names={"types": "--type"})
    run = _preview if dry_run else partial(_write, out=out, force=force)
    result = run(model, config, packed, writes_gguf=writes_gguf, check=check)
    if as_json:
        print_json(result)
        return
    title = "Files that would be written" if dry_run else "Quantized files"
    print_summary(result["files"], answer=True, title=title, memory=dry_run)
    for note in result["notes"] if dry_run else ():
        info(note)


def _options(config: "QuantizeConfig", *, check: bool) -> "QuantizeOptions":
    from meditron.release.quantize import QuantizeOptions

    return QuantizeOptions(
        mix=config.mix,
        imatrix=None if config.imatrix is None else Path(config.imatrix),
        calibrate=None if config.calibrate is None else Path(config.calibrate),
        target_size=config.target_size,
        threads=config.threads,
        check=check,
    )


def _preview(
    model: str,
    config: "QuantizeConfig",
    packed: "tuple[PackedType, ...]",
    *,
    writes_gguf: bool,
    check: bool,
) -> dict[str, Any]:
    from meditron.release.packed_shape import preview_packed
    from meditron.release.preview import preview

    files = preview_packed(model, packed)
    if not writes_gguf:
        return {"files": files, "recommended": None, "notes": []}
    result = preview(model, config.types, _options(config, check=check))
    return result | {"files": [*result["files"], *files]}


def _write(
    model: str,
    config: "QuantizeConfig",
    packed: "tuple[PackedType, ...]",
    *,
    writes_gguf: bool,
    check: bool,
    out: Path,
    force: bool,
) -> dict[str, Any]:
    """Write GGUF files and packed folders, after the checks of both."""
    from meditron.release.quantize import quantize as write_gguf

    options = _options(config, check=check)
    result: dict[str, Any] = {"files": [], "seconds": 0.0, "peak_rss": 0, "recommended": None, "notes": []}
    plan = None
    if packed:
        from meditron.release.packed import plan_packed, write_packed

        plan = plan_packed(
            model, packed, out, options.calibrate, threads=options.threads, check=check, force=force
        )
    if writes_gguf:
        result = write_gguf(model, config.types, out, options, force=force)
    if plan is not None:
        folders = write_packed(plan)
        result["files"] += folders["files"]
        result["seconds"] += folders["seconds"]
        result["peak_rss"] = max(result["peak_rss"], folders["peak_rss"])
    return result
