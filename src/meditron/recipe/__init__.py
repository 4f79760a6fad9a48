"""Recipes: parsing, the status of their stages, and running them."""

from meditron.recipe.registry import STAGES, Stage
from meditron.recipe.result import RunResult, status
from meditron.recipe.run import run_recipe
from meditron.recipe.schema import Recipe, load_recipe

__all__ = ["STAGES", "Recipe", "RunResult", "Stage", "load_recipe", "run_recipe", "status"]
