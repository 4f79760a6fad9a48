"""`meditron compare`: the paired difference of two results."""

from typing import Annotated

from cyclopts import Parameter

from meditron.cli.options import Json, print_json

__all__ = ["compare"]

_Result = Annotated[
    str, Parameter(help="Folder of an evaluation, or a rows file; :MODEL after it selects a model.")
]


def compare(a: _Result, b: _Result, /, *, as_json: Json = False) -> None:
    """Show the paired difference b - a of two results, with its 95 % interval, by source and by task.

    Two results can be compared only if they have the same documents or questions and the same prompts. With
    --json the object lists all differences in "differences"; its other fields are those of the first
    difference.

    For example:

        meditron compare runs/quickstart/evaluate:base runs/quickstart/evaluate:pretrain
    """
    from meditron.cli import show
    from meditron.evaluate.compare import compare_results

    comparisons = compare_results(a, b)
    if as_json:
        records = [comparison.model_dump(mode="json") for comparison in comparisons]
        print_json(records[0] | {"differences": records})
    else:
        show.print_differences(comparisons, answer=True)
