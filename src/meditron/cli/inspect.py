"""`meditron inspect`: print the contents of an artifact."""

from typing import Annotated

from cyclopts import Parameter

from meditron.cli.options import Json, print_json

__all__ = ["inspect"]


def inspect(
    artifact: Annotated[
        str,
        Parameter(
            help="A stage's or run's folder, documents (.jsonl, .jsonl.zst), tokens (.idx), a .gguf or "
            ".safetensors file, or a model's folder."
        ),
    ],
    /,
    *,
    rows: Annotated[
        int | None,
        Parameter(
            help="Rows to print; by default 5 documents, or all tensors. Of a stage: rows of all its "
            "files together, by default 5."
        ),
    ] = None,
    grep: Annotated[
        str | None, Parameter(help="Print only rows that contain this text, ignoring case.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Print the contents of an artifact: a summary of its manifest, documents, tokens or tensors.

    With --json the whole manifest is printed, with rows of each of its files.

    For example:

        meditron inspect runs/quickstart/tokenize --rows 2 --grep aspirin

    In rows of a finetune, the tokens that training computes the loss on are bold and underlined, or in ⟦ ⟧
    on a terminal without colors.
    """
    from meditron.cli.inspect_views import inspect_artifact, print_view

    view = inspect_artifact(artifact, rows, grep)
    if as_json:
        print_json(view.to_json())
    else:
        print_view(view, rows)
