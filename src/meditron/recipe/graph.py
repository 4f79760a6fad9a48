"""What stands on what: references between stages, their order, and all below or above a stage."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from meditron.core.errors import RecipeError
from meditron.recipe.schema import Recipe, Step
from meditron.recipe.toml import nearest

__all__ = ["Reference", "needed_by", "ordered", "references", "resolve_reference", "standing_on"]


@dataclass(frozen=True, slots=True)
class Reference:
    """What one input of a stage points to: a stage of the recipe, or something outside."""

    text: str
    """As the recipe says it: `base`, `quantize:F16`, `pypi:…`."""
    step: str | None = None
    """The stage's name; None for what comes from outside."""
    selector: str | None = None
    """Which of the stage's files: `F16`."""
    source: str | None = None
    """What is to be fetched, where it comes from outside."""


def references(recipe: Recipe, step: Step) -> dict[str, Reference]:
    """Each input of a stage, resolved; RecipeError for what the recipe does not have."""
    return {name: resolve_reference(recipe, step, text) for name, text in step.config.inputs().items()}


def resolve_reference(recipe: Recipe, step: Step, text: str) -> Reference:
    """Resolve one input's text to a stage of the recipe or to something outside.

    Raises:
        RecipeError: it names neither.
    """
    head, _, selector = text.partition(":")
    if head in recipe.steps:
        return Reference(text, step=head, selector=selector or None)
    if text == "base":
        if recipe.base is None:
            raise RecipeError(f"{recipe.path}: {step.name} needs a base", hint='write base = "…" at the top')
        return Reference(text, source=_seeded(recipe.base, recipe.seed))
    # A stage's kind never means a file, even where one has its name.
    named = head.partition(".")[0] in recipe.kinds
    if not named and (":" in text or "/" in text or Path(text).exists()):
        return Reference(text, source=text)
    keys = [key for key, reference in step.config.inputs().items() if reference == text]
    kinds = {kind.name for key, kind in step.config.input_kinds().items() if key in keys}
    if not named and kinds and "model" not in kinds:  # no stage can be meant
        tasks = ", nor a task of that name" if "questions" in kinds else ""
        raise RecipeError(
            f"{recipe.path}: {step.name} refers to '{text}': no such file{tasks}{nearest(text, _files())}",
            hint="paths are relative to the folder in which meditron runs",
        )
    names = ["base", *recipe.steps]
    raise RecipeError(
        f"{recipe.path}: {step.name} refers to '{text}', which is neither a stage of this recipe nor a file"
        f"{nearest(head, names)}",
        hint=f"this recipe has {', '.join(names)}",
    )


def _files() -> list[str]:
    """Return the names in the working folder, of which a misspelt input may be one."""
    return [path.name for path in Path().iterdir() if not path.name.startswith(".")]


def _seeded(base: str, seed: int) -> str:
    """`init:NAME` with the recipe's seed: a base is the same for every stage, whatever seed a stage has."""
    return f"{base}:{seed}" if base.startswith("init:") and base.count(":") == 1 else base


def ordered(recipe: Recipe) -> list[Step]:
    """The stages, each after what it stands on, else in the registry's order; RecipeError for a circle."""
    done: dict[str, Step] = {}

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            circle = " → ".join([*path[path.index(name) :], name])
            raise RecipeError(f"{recipe.path}: stages stand on each other in a circle: {circle}")
        if name not in done:
            step = recipe.steps[name]
            for reference in references(recipe, step).values():
                if reference.step:
                    visit(reference.step, (*path, name))
            done[name] = step

    for name in recipe.steps:
        visit(name, ())
    return list(done.values())


def needed_by(recipe: Recipe, names: Iterable[str]) -> set[str]:
    """The stages named and all that they stand on."""
    needed: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name not in needed:
            needed.add(name)
            waiting += [ref.step for ref in references(recipe, recipe.steps[name]).values() if ref.step]
    return needed


def standing_on(recipe: Recipe, names: Iterable[str]) -> set[str]:
    """The stages named and all that stands on them."""
    wanted = set(names)
    return {name for name in recipe.steps if wanted & needed_by(recipe, [name])}
