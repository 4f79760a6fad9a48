"""`meditron quantize`: a model as GGUF files for llama.cpp and what is built on it."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from meditron.cli.options import Json, emit
from meditron.release.types import GGUFType

__all__ = ["quantize"]


def quantize(
    model: Annotated[str, Parameter(help="A MODEL: a run's stage, an HF folder, a .gguf file, pypi:….")],
    /,
    *,
    type: Annotated[tuple[GGUFType, ...], Parameter(help="Type of a file; repeatable.")] = ("Q4_K_M",),
    out: Annotated[Path, Parameter(show_default=True, help="The folder for NAME-TYPE.gguf.")] = Path(),
    threads: Annotated[int | None, Parameter(help="Threads that quantize; all cores when absent.")] = None,
    force: Annotated[bool, Parameter(help="Replace what is there.")] = False,
    as_json: Json = False,
) -> None:
    """Write a model as GGUF files in smaller types, and tell their sizes and the memory they need.

    For example:

        meditron quantize runs/quickstart/finetune.sections --type Q8_0 --type Q4_K_M --out gguf
    """
    from meditron.release.quantize import quantize as write
    from meditron.release.quantize import tell

    made = write(model, type, out, threads=threads, force=force)
    if as_json:
        emit(made)
    else:
        tell(made["files"], answer=True)
