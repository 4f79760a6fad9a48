"""`meditron imatrix`: the importance matrix of a model, from a calibration text."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from meditron.cli.options import Json, print_json
from meditron.core.console import info

__all__ = ["imatrix"]


def imatrix(
    model: Annotated[str, Parameter(help="A MODEL, best in its full precision.")],
    text: Annotated[Path, Parameter(help="Calibration text, UTF-8, of the kind the model will read.")],
    out: Annotated[Path, Parameter(help="File of the importance matrix.")],
    /,
    *,
    chunk_size: Annotated[
        int, Parameter(validator=Number(gte=16), help="Tokens that the model reads at a time.")
    ] = 512,
    max_chunks: Annotated[
        int | None, Parameter(validator=Number(gte=1), help="Chunks of the text to read; all by default.")
    ] = None,
    force: Annotated[bool, Parameter(help="Replace an existing file.")] = False,
    as_json: Json = False,
) -> None:
    """Compute which columns of a model's matrices matter, for better small quantized files.

    The file has llama.cpp's format. A stopped computation continues when it is started again.

    For example:

        meditron imatrix runs/quickstart/pretrain calibration.txt medical.imatrix
    """
    from meditron.release.imatrix import compute_imatrix

    result = compute_imatrix(model, text, out, chunk_size=chunk_size, max_chunks=max_chunks, force=force)
    if as_json:
        print_json(result)
    else:
        info(f"{result['path']}: {result['entries']} matrices, {result['tokens']:,} tokens")
