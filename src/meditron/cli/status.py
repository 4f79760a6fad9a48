"""`meditron status`: how a run stands."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from meditron.cli.options import Json, Out, RecipeFile, Set, emit

__all__ = ["status"]


def status(
    recipe: RecipeFile,
    /,
    *,
    set_: Set = (),
    out: Out = Path("runs"),
    verify: Annotated[bool, Parameter(help="Read every file again and compare its SHA-256.")] = False,
    as_json: Json = False,
) -> int:
    """Show how each stage of a recipe stands, what it measured, and on drift the fields that differ.

    Ends with 1 where a stage is stale, failed or damaged.

    For example:

        meditron status recipes/quickstart.toml --verify
    """
    from meditron.cli import show
    from meditron.recipe import load_recipe
    from meditron.recipe import status as look

    result = look(load_recipe(recipe, set_), out=out, verify=verify)
    if as_json:
        emit(result.to_json())
    else:
        show.stages(result, answer=True)
    show.drift(result, answer=not as_json)
    return 0 if result.sound else 1
