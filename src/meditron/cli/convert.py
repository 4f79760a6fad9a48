"""`meditron convert`: a model from one form to the other."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from meditron.cli.options import Json, emit
from meditron.ground.console import say
from meditron.ground.units import size

__all__ = ["convert"]


def convert(
    model: Annotated[str, Parameter(help="A MODEL: a run's stage, an HF folder, a .gguf file, pypi:….")],
    out: Annotated[Path, Parameter(help="A GGUF file where it ends in .gguf, else an HF folder.")],
    /,
    *,
    type: Annotated[
        Literal["F16", "F32"] | None, Parameter(help="Tensor type of a GGUF file; F16 when absent.")
    ] = None,
    dtype: Annotated[
        Literal["float32", "float16", "bfloat16"] | None,
        Parameter(help="Number format of an HF folder; float32 when absent, which loses nothing."),
    ] = None,
    force: Annotated[bool, Parameter(help="Replace what is there.")] = False,
    as_json: Json = False,
) -> None:
    """Write a model in the other form: HF safetensors to GGUF, or GGUF to HF safetensors.

    For example:

        meditron convert runs/quickstart/pretrain model.gguf --type F16
    """
    from meditron.release.convert import convert as write

    written = write(model, out, type=type, dtype=dtype, force=force)
    if as_json:
        emit(written)
    else:
        say(f"{written['path']}: {size(written['bytes'])}")
