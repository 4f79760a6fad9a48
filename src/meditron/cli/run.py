"""`meditron run`: build the stages of a recipe."""

from functools import partial
from pathlib import Path
from typing import Annotated

from cyclopts import Group, Parameter
from cyclopts.validators import Number

from meditron.cli.options import Json, Out, RecipeFile, Set, print_json
from meditron.core.console import info
from meditron.core.errors import DriftError

__all__ = ["run"]

_STAGES = Group("Stages", sort_key=1)
_DRIFT = Group("Stages that are out of date", sort_key=2)
_RANKS = Group("Several processes", sort_key=3)

DryRun = Annotated[
    bool,
    Parameter(
        help="Print what would be built and why, check all local inputs, and estimate tokens, time, disk and "
        "memory. Builds nothing and downloads no data; servers of collections are asked for their lists of "
        "files. Exit code 1 if an input cannot be used."
    ),
]

Rebuild = Annotated[
    tuple[str, ...],
    Parameter(group=_DRIFT, help="Build this stage and its dependents again. Repeatable."),
]
ProcessCount = Annotated[
    int | None,
    Parameter(
        group=_RANKS,
        validator=Number(gte=1, lte=4096),
        help="Processes on this machine that train and evaluate together, one per GPU; by default 1. The "
        "recipe's [pretrain.parallel] divides a training; the questions of an evaluation are divided. On "
        "several machines, start the command with torchrun.",
    ),
]


def run(
    recipe: RecipeFile,
    /,
    *,
    set_: Set = (),
    out: Out = Path("runs"),
    dry_run: DryRun = False,
    full: Annotated[bool, Parameter(help="Print every table of the results, not only the scores.")] = False,
    only: Annotated[str | None, Parameter(group=_STAGES, help="Build this stage and no other.")] = None,
    until: Annotated[str | None, Parameter(group=_STAGES, help="Build the stages up to this one.")] = None,
    rebuild: Rebuild = (),
    nproc: ProcessCount = None,
    accept_drift: Annotated[
        bool, Parameter(group=_DRIFT, help="Keep finished stages although their config or inputs changed.")
    ] = False,
    as_json: Json = False,
) -> int:
    """Build the stages of a recipe.

    For example:

        meditron run recipes/quickstart.toml --set pretrain.tokens=20_480

    Stages that are up to date are kept: running the command again is a no-op. After a kill or an
    interruption, the same command continues. If the config or inputs of a finished stage changed, the command
    changes nothing and lists the changed fields.

    With --nproc 4 the stages that train or evaluate run in 4 processes; all others are built by one.
    """
    from meditron.cli import show
    from meditron.parallel.cluster import open_ranks
    from meditron.recipe import load_recipe, run_recipe, status

    with open_ranks(nproc, dry_run=dry_run) as ranks:
        if ranks is None:  # under torchrun rank 0 plans and prints; this rank has done its part
            return 0
        loaded = load_recipe(recipe, set_)
        try:
            build = partial(run_recipe, loaded, out=out, dry_run=dry_run, ranks=ranks)
            result = build(only=only, until=until, rebuild=rebuild, accept_drift=accept_drift)
        except DriftError:
            current = status(loaded, out=out)
            show.print_drift(current, answer=not as_json)
            if as_json:
                print_json(current.to_json())
            raise
        except KeyboardInterrupt:
            same = "the same command without --rebuild" if rebuild else "the same command"
            info(f"finished work is kept: {same} continues")
            raise
    if dry_run:
        show.print_plan(result, answer=not as_json)
    else:
        show.print_outcome(result, answer=not as_json, full=full)
    if as_json:
        print_json(result.to_json())
    return 1 if dry_run and (result.refused_stages or result.problems) else 0
