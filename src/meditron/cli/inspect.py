"""`meditron inspect`: print the contents of an artifact."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from meditron.cli.options import Json, Out, print_json

__all__ = ["inspect"]


def inspect(
    artifact: Annotated[
        str,
        Parameter(
            help="A stage's or run's folder, documents (.jsonl, .jsonl.zst), tokens (.idx), a .gguf or "
            ".safetensors file, a model's folder, or a recipe (.toml) for the rows of its finetunes."
        ),
    ],
    /,
    *,
    rows: Annotated[
        int | None,
        Parameter(
            help="Rows to print; by default 5 documents, or all tensors. Of a stage: rows of all its "
            "files together, by default 5. Of a recipe: rows of each source, by default 1."
        ),
    ] = None,
    grep: Annotated[
        str | None, Parameter(help="Print only rows that contain this text, ignoring case.")
    ] = None,
    out: Out = Path("runs"),
    as_json: Json = False,
) -> None:
    """Print the contents of an artifact: a summary of its manifest, documents, tokens or tensors.

    With --json the whole manifest is printed, with rows of each of its files.

    For example:

        meditron inspect runs/quickstart/tokenize --rows 2 --grep aspirin

    Of a recipe, rows of the data of each finetune are tokenized as training will do it, before anything is
    trained. A task that is made from the corpus needs the recipe's corpus in --out.

    In rows of a finetune, the tokens that training computes the loss on are bold and underlined, or in ⟦ ⟧
    on a terminal without colors.
    """
    from meditron.cli.inspect_views import inspect_artifact, print_view

    view = inspect_artifact(artifact, rows, grep, runs=out)
    if as_json:
        print_json(view.to_json())
    else:
        print_view(view, rows)
