"""Recipes: what is to be built, from what, in which order, and what of it stands already."""

from meditron.recipe.registry import STAGES, Stage
from meditron.recipe.run import RunResult, run_recipe
from meditron.recipe.schema import Recipe, load_recipe
from meditron.recipe.status import status

__all__ = ["STAGES", "Recipe", "RunResult", "Stage", "load_recipe", "run_recipe", "status"]
