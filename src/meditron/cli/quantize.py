"""`meditron quantize`: a model as GGUF files for llama.cpp and the tools built on it."""

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from meditron.cli.options import Json, flags_from, print_json, validate_settings
from meditron.core.console import info
from meditron.release.types import parse_gguf_type

__all__ = ["quantize"]

_FLAGS = {"types": "--type"}


@flags_from(
    "quantize",
    {"Files": ("types", "target_size", "mix", "imatrix", "calibrate"), "Computation": ("threads",)},
    names=_FLAGS,
)
def quantize(
    model: Annotated[str, Parameter(help="A MODEL: a run's stage, an HF folder, a .gguf file, pypi:….")],
    /,
    *gguf_types: Annotated[str, Parameter(help="Types of the files, as with --type.")],
    out: Annotated[Path, Parameter(show_default=True, help="Folder of the files NAME-TYPE.gguf.")] = Path(),
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
    """Write a model as GGUF files in smaller types.

    Shows the size, the memory and the cost in quality of each file, and the type to take.

    For example:

        meditron quantize runs/quickstart/finetune.sections --type Q8_0 --type Q4_K_M --out gguf
    """
    from meditron.release.config import QuantizeConfig
    from meditron.release.preview import preview
    from meditron.release.quantize import QuantizeOptions
    from meditron.release.quantize import quantize as write
    from meditron.release.summary import print_summary

    # Types may be given as arguments, as flags or both, and the same type twice.
    types = dict.fromkeys((*map(parse_gguf_type, gguf_types), *settings.pop("types", ())))
    if types:
        settings["types"] = tuple(types)
    config = validate_settings(QuantizeConfig, settings, names=_FLAGS)
    options = QuantizeOptions(
        mix=config.mix,
        imatrix=None if config.imatrix is None else Path(config.imatrix),
        calibrate=None if config.calibrate is None else Path(config.calibrate),
        target_size=config.target_size,
        threads=config.threads,
        check=check,
    )
    if dry_run:
        result = preview(model, config.types, options)
    else:
        result = write(model, config.types, out, options, force=force)
    if as_json:
        print_json(result)
        return
    title = "Files that would be written" if dry_run else "Quantized files"
    print_summary(result["files"], answer=True, title=title, memory=dry_run)
    for note in result["notes"] if dry_run else ():
        info(note)
