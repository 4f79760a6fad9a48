"""`meditron status`: the state of a run's stages."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from meditron.cli.options import Json, Out, RecipeFile, Set, print_json

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
    """Show the state and metrics of a recipe's stages.

    For example:

        meditron status recipes/quickstart.toml --verify

    For stages that are out of date, the changed fields are listed. The exit code is 1 if a stage is out of
    date, failed or damaged.
    """
    from meditron.cli import show
    from meditron.recipe import load_recipe
    from meditron.recipe import status as recipe_status

    result = recipe_status(load_recipe(recipe, set_), out=out, verify=verify)
    if as_json:
        print_json(result.to_json())
    else:
        show.print_stages(result, answer=True)
    show.print_drift(result, answer=not as_json)
    return 0 if result.none_stale_or_failed else 1
