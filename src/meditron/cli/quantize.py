"""`meditron quantize`: a model as GGUF files for llama.cpp and the tools built on it."""

from pathlib import Path
from typing import Annotated, get_args

from cyclopts import Parameter

from meditron.cli.options import Json, emit
from meditron.release.types import GGUFType, parse_gguf_type

__all__ = ["quantize"]


def quantize(
    model: Annotated[str, Parameter(help="A MODEL: a run's stage, an HF folder, a .gguf file, pypi:….")],
    /,
    *types: Annotated[str, Parameter(help="Types of the files, as with --type.")],
    type: Annotated[
        tuple[str, ...], Parameter(help=f"Type of a file. Repeatable. {', '.join(get_args(GGUFType))}.")
    ] = (),
    out: Annotated[Path, Parameter(show_default=True, help="Folder of the files NAME-TYPE.gguf.")] = Path(),
    threads: Annotated[int | None, Parameter(help="Threads; all cores by default.")] = None,
    force: Annotated[bool, Parameter(help="Replace existing files.")] = False,
    check: Annotated[
        bool, Parameter(negative="--no-check", help="Compare each file with the model before it is kept.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Write a model as GGUF files in smaller types (Q4_K_M by default).

    Shows the size, the memory and the cost in quality of each file, and the type to take.

    For example:

        meditron quantize runs/quickstart/finetune.sections --type Q8_0 --type Q4_K_M --out gguf
    """
    from meditron.release.quantize import print_summary
    from meditron.release.quantize import quantize as write

    kinds = tuple(dict.fromkeys(parse_gguf_type(text) for text in (*types, *type))) or ("Q4_K_M",)
    result = write(model, kinds, out, threads=threads, force=force, check=check)
    if as_json:
        emit(result)
    else:
        print_summary(result["files"], answer=True)
