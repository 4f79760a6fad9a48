"""`meditron quantize`: a model as GGUF files for llama.cpp and what is built on it."""

from pathlib import Path
from typing import Annotated, get_args

from cyclopts import Parameter

from meditron.cli.options import Json, emit
from meditron.release.types import GGUFType, gguf_type

__all__ = ["quantize"]


def quantize(
    model: Annotated[str, Parameter(help="A MODEL: a run's stage, an HF folder, a .gguf file, pypi:….")],
    /,
    *types: Annotated[str, Parameter(help="Types of the files, as with --type.")],
    type: Annotated[
        tuple[str, ...], Parameter(help=f"Type of a file; repeatable. {', '.join(get_args(GGUFType))}.")
    ] = (),
    out: Annotated[Path, Parameter(show_default=True, help="The folder for NAME-TYPE.gguf.")] = Path(),
    threads: Annotated[int | None, Parameter(help="Threads that quantize; all cores when absent.")] = None,
    force: Annotated[bool, Parameter(help="Replace what is there.")] = False,
    check: Annotated[
        bool, Parameter(negative="--no-check", help="Compare each file with the model before it is kept.")
    ] = True,
    as_json: Json = False,
) -> None:
    """Write a model as GGUF files in smaller types (Q4_K_M by default), and show sizes and memory.

    For example:

        meditron quantize runs/quickstart/finetune.sections --type Q8_0 --type Q4_K_M --out gguf
    """
    from meditron.release.quantize import quantize as write
    from meditron.release.quantize import tell

    kinds = tuple(dict.fromkeys(gguf_type(text) for text in (*types, *type))) or ("Q4_K_M",)
    made = write(model, kinds, out, threads=threads, force=force, check=check)
    if as_json:
        emit(made)
    else:
        tell(made["files"], answer=True)
