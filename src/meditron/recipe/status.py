"""How a run stands: states, metrics, and on drift the fields that differ."""

from pathlib import Path

from meditron.recipe.plan import plan
from meditron.recipe.run import RUNS, RunResult
from meditron.recipe.schema import Recipe

__all__ = ["status"]


def status(recipe: Recipe, *, out: Path = RUNS, verify: bool = False) -> RunResult:
    """How each stage of a recipe stands; `verify` reads every byte again and compares its hash."""
    return RunResult(recipe.name, out / recipe.name, plan(recipe, out, hashes=verify))
