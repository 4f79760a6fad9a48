"""`meditron run`: build what a recipe asks for."""

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from meditron.cli.options import Json, Out, RecipeFile, Set, emit
from meditron.core.console import info
from meditron.core.errors import DriftError

__all__ = ["run"]


def run(
    recipe: RecipeFile,
    /,
    *,
    only: Annotated[str | None, Parameter(help="Build this stage and no other.")] = None,
    until: Annotated[str | None, Parameter(help="Build up to and with this stage.")] = None,
    set_: Set = (),
    out: Out = Path("runs"),
    rebuild: Annotated[
        tuple[str, ...],
        Parameter(help="Build this stage and what stands on it again. Repeatable."),
    ] = (),
    accept_drift: Annotated[
        bool,
        Parameter(help="Go on with finished stages though they were made from something else."),
    ] = False,
    dry_run: Annotated[
        bool,
        Parameter(
            help="Show what would be built and why, open every local input, and estimate tokens, time, disk "
            "and memory. Builds and downloads nothing; exit code 1 if an input cannot be used."
        ),
    ] = False,
    full: Annotated[bool, Parameter(help="Print every table of the results, not only the scores.")] = False,
    as_json: Json = False,
) -> int:
    """Build what a recipe asks for, stage by stage.

    A stage that is there and was made from what is asked for is kept. A run that was killed or interrupted
    goes on with the same command. Where a stage was made from something else, nothing is touched, and the
    fields that differ are shown.

    For example:

        meditron run recipes/quickstart.toml --set pretrain.tokens=20_480
    """
    from meditron.cli import show
    from meditron.recipe import load_recipe, run_recipe, status

    asked = load_recipe(recipe, set_)
    try:
        result = run_recipe(
            asked,
            out=out,
            only=only,
            until=until,
            rebuild=rebuild,
            accept_drift=accept_drift,
            dry_run=dry_run,
        )
    except DriftError:
        stands = status(asked, out=out)
        show.drift(stands, answer=not as_json)
        if as_json:
            emit(stands.to_json())
        raise
    except KeyboardInterrupt:
        again = "the same command without --rebuild" if rebuild else "the same command"
        info(f"what is done is kept: {again} goes on from there")
        raise
    if dry_run:
        show.decisions(result, answer=not as_json)
    else:
        show.outcome(result, answer=not as_json, full=full)
    if as_json:
        emit(result.to_json())
    return 1 if dry_run and (result.refused or result.problems) else 0
