"""`meditron compare`: is one result better than another."""

from typing import Annotated

from cyclopts import Parameter

from meditron.cli.options import Json, emit

__all__ = ["compare"]

_Result = Annotated[
    str, Parameter(help="An evaluation's folder, or its rows file; :MODEL behind it chooses the model.")
]


def compare(a: _Result, b: _Result, /, *, as_json: Json = False) -> None:
    """Show the paired difference b - a of two results, with its 95 % interval, by source and by task.

    Only the same documents and questions compare, asked alike. With --json the object holds each source's and
    task's difference in "differences"; the fields beside it are the first's.

    For example:

        meditron compare runs/quickstart/evaluate:base runs/quickstart/evaluate:pretrain
    """
    from meditron.cli import show
    from meditron.evaluate.compare import compare as difference

    found = difference(a, b)
    if as_json:
        told = [record.model_dump(mode="json") for record in found]
        emit(told[0] | {"differences": told})
    else:
        show.differences(found, answer=True)
