"""`meditron convert`: a model as an HF folder or a GGUF file."""

from pathlib import Path
from typing import Annotated, Literal, cast

from cyclopts import Parameter

from meditron.cli.options import Json, print_json
from meditron.core.console import info
from meditron.core.units import format_bytes
from meditron.release.types import parse_gguf_type

__all__ = ["convert"]


def convert(
    model: Annotated[
        str,
        Parameter(help="A MODEL: a run's stage, an HF folder, a .gguf file; or a finetune's adapter folder."),
    ],
    out: Annotated[Path, Parameter(help="A GGUF file if it ends in .gguf, else an HF folder.")],
    /,
    *,
    type: Annotated[str | None, Parameter(help="Tensor type of a GGUF file: F16 (default) or F32.")] = None,
    dtype: Annotated[
        Literal["float32", "float16", "bfloat16"] | None,
        Parameter(help="Number format of an HF folder; float32 by default, which is lossless."),
    ] = None,
    force: Annotated[bool, Parameter(help="Replace existing files.")] = False,
    check: Annotated[
        bool,
        Parameter(negative="--no-check", help="Compare the output with the model before it is kept."),
    ] = True,
    as_json: Json = False,
) -> None:
    """Convert a model from HF safetensors to GGUF, or from GGUF to HF safetensors.

    For example:

        meditron convert runs/quickstart/pretrain model.gguf --type F16
    """
    from meditron.release.convert import convert as write

    kind = None if type is None else cast("Literal['F16', 'F32']", parse_gguf_type(type, ("F16", "F32")))
    written = write(model, out, type=kind, dtype=dtype, force=force, check=check)
    if as_json:
        print_json(written)
    else:
        info(f"{written['path']}: {format_bytes(written['bytes'])}")
