"""`meditron quantize`: a model as GGUF files for llama.cpp and the tools built on it."""

from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from meditron.cli.options import Json, flags_from, print_json, validate_settings
from meditron.release.types import parse_gguf_type

__all__ = ["quantize"]

_FLAGS = {"types": "--type"}


@flags_from("quantize", {"Files": ("types",), "Computation": ("threads",)}, names=_FLAGS)
def quantize(
    model: Annotated[str, Parameter(help="A MODEL: a run's stage, an HF folder, a .gguf file, pypi:….")],
    /,
    *gguf_types: Annotated[str, Parameter(help="Types of the files, as with --type.")],
    out: Annotated[Path, Parameter(show_default=True, help="Folder of the files NAME-TYPE.gguf.")] = Path(),
    force: Annotated[bool, Parameter(help="Replace existing files.")] = False,
    check: Annotated[
        bool, Parameter(negative="--no-check", help="Compare each file with the model before it is kept.")
    ] = True,
    as_json: Json = False,
    **settings: Any,  # noqa: ANN401  # keys of the recipe's table
) -> None:
    """Write a model as GGUF files in smaller types.

    Shows the size, the memory and the cost in quality of each file, and the type to take.

    For example:

        meditron quantize runs/quickstart/finetune.sections --type Q8_0 --type Q4_K_M --out gguf
    """
    from meditron.release.config import QuantizeConfig
    from meditron.release.quantize import print_summary
    from meditron.release.quantize import quantize as write

    # Types may be given as arguments, as flags or both, and the same type twice.
    types = dict.fromkeys((*map(parse_gguf_type, gguf_types), *settings.pop("types", ())))
    if types:
        settings["types"] = tuple(types)
    config = validate_settings(QuantizeConfig, settings, names=_FLAGS)
    result = write(model, config.types, out, threads=config.threads, force=force, check=check)
    if as_json:
        print_json(result)
    else:
        print_summary(result["files"], answer=True)
