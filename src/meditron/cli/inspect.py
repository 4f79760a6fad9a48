"""`meditron inspect`: look inside an artifact."""

from typing import Annotated

from cyclopts import Parameter

from meditron.cli.options import Json, emit

__all__ = ["inspect"]


def inspect(
    artifact: Annotated[
        str,
        Parameter(
            help="A stage's folder, documents (.jsonl, .jsonl.zst), tokens (.idx), a .gguf, a model's folder."
        ),
    ],
    /,
    *,
    rows: Annotated[
        int | None, Parameter(help="Rows to show; 5 documents, or every tensor, when absent.")
    ] = None,
    grep: Annotated[str | None, Parameter(help="Only rows that hold this text, in any case.")] = None,
    as_json: Json = False,
) -> None:
    """Look inside an artifact: what it is, what it was made from, and some of what it holds.

    Rows of a finetune are told by role: what is learned is bold and underlined, or without colours in ⟦ ⟧.

    For example:

        meditron inspect runs/quickstart/tokenize --rows 2 --grep aspirin
    """
    from meditron.cli.look import look, print_view

    view = look(artifact, rows, grep)
    if as_json:
        emit(view.to_json())
    else:
        print_view(view)
