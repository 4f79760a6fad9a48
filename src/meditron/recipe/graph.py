"""The graph of a recipe's stages: references between them, their order, dependencies and dependents."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from meditron.core.errors import RecipeError
from meditron.recipe.schema import Recipe, StageSpec
from meditron.recipe.toml import nearest_word_hint

__all__ = [
    "InputReference",
    "dependencies",
    "dependents",
    "input_references",
    "place_of_reference",
    "resolve_reference",
    "topological_order",
]


@dataclass(frozen=True, slots=True)
class InputReference:
    """A stage's reference to one of its inputs, resolved to a stage of the recipe or an external source."""

    text: str
    """The reference as written in the recipe: `base`, `quantize:F16`, `pypi:…`."""
    stage: str | None = None
    """Name of the stage that is referred to; None for an external input."""
    selector: str | None = None
    """Name that selects one of that stage's files, such as `F16`."""
    source: str | None = None
    """The source to fetch for an external input; None for a stage."""


def input_references(recipe: Recipe, spec: StageSpec) -> dict[str, InputReference]:
    """Resolve all inputs of a stage (input name → reference); RecipeError for one that does not exist."""
    return {name: resolve_reference(recipe, spec, text) for name, text in spec.config.inputs().items()}


def resolve_reference(recipe: Recipe, spec: StageSpec, text: str) -> InputReference:
    """Resolve one input's text to a stage of the recipe or to an external source.

    Raises:
        RecipeError: the text names neither of them; the error names the recipe's file and line.
    """
    # The recipe's own stages come before files: a file named like a stage is written as ./NAME.
    head, _, selector = text.partition(":")
    keys = [key for key, reference in spec.config.inputs().items() if reference == text]
    kinds = {kind.name for key, kind in spec.config.input_kinds().items() if key in keys}
    if head in recipe.stages:
        _check_stage_reference(recipe, spec, text, as_model="model" in kinds)
        return InputReference(text, stage=head, selector=selector or None)
    if text == "base":
        if recipe.base is None:
            raise RecipeError(
                f"{_reference_with_place(recipe, spec, text)}, which is not set",
                hint='write base = "…" at the top',
            )
        return InputReference(text, source=_with_recipe_seed(recipe.base, recipe.seed))
    # A name that begins with a kind of stage always means a stage, even if a file has that name.
    is_kind = head.partition(".")[0] in recipe.kinds
    if not is_kind and (":" in text or "/" in text or Path(text).exists()):
        return InputReference(text, source=text)
    if not is_kind and kinds and "model" not in kinds:  # an input of data is never a stage
        no_task = " or task of that name" if "questions" in kinds else ""
        files = [path.name for path in Path().iterdir() if not path.name.startswith(".")]
        raise RecipeError(
            f"{_reference_with_place(recipe, spec, text)}: no such file{no_task}"
            f"{nearest_word_hint(text, files)}",
            hint="paths are relative to the folder in which meditron runs",
        )
    names = ("base", *recipe.stages)
    if text in recipe.kinds and not recipe.text.contains_value(spec.place, text):
        # A name that the recipe does not write: the default of `on`, or a stage that this kind always reads.
        default = getattr(spec.config, "on", None) == text
        where = recipe.text.location_of(spec.place)
        if default:
            others = ", ".join(name for name in names if name != spec.name)
            needs, hint = f"`on` is '{text}' by default", f'write on = "…": one of {others}'
        else:
            needs, hint = f"needs the stage [{text}]", f"add [{text}]"
        raise RecipeError(f"{where}: {spec.name}: {needs}, and this recipe has none", hint=hint)
    raise RecipeError(
        f"{_reference_with_place(recipe, spec, text)}, which is neither a stage of this recipe nor a file"
        f"{nearest_word_hint(head, names)}",
        hint=f"this recipe has {', '.join(names)}",
    )


def _check_stage_reference(recipe: Recipe, spec: StageSpec, text: str, *, as_model: bool) -> None:
    """Raise RecipeError if a stage writes no model but one is needed, or if it is not clear which file is."""
    head, _, selector = text.partition(":")
    config = recipe.stages[head].config
    names = config.selectors()
    if as_model and not config.exports_model:
        models = [name for name, stage in recipe.stages.items() if stage.config.exports_model]
        raise RecipeError(
            f"{_reference_with_place(recipe, spec, text)}, which is no model",
            hint=f"models of this recipe: {', '.join(['base', *models])}",
        )
    if selector and names and selector not in names:
        raise RecipeError(
            f"{_reference_with_place(recipe, spec, text)}: {head} has no file '{selector}'"
            f"{nearest_word_hint(selector, names)}",
            hint=f"files of {head}: {', '.join(names)}",
        )
    if as_model and not selector and len(names) > 1:
        raise RecipeError(
            f"{_reference_with_place(recipe, spec, text)}, which writes {len(names)} models",
            hint=f"write one of {', '.join(f'{head}:{name}' for name in names)}",
        )


def place_of_reference(recipe: Recipe, spec: StageSpec, text: str) -> tuple[StageSpec, str]:
    """Return the stage whose table names an input of `spec`, and the file and line where.

    That is another stage for a benchmark that the corpus takes from the evaluation.
    """
    # A benchmark is written as its name, which is the input's key, and not as its source.
    keys = [key for key, reference in spec.config.inputs().items() if reference == text]
    for written in (text, *keys):
        if recipe.text.contains_value(spec.place, written):
            return spec, recipe.text.location_of_value(spec.place, written)
        for other in recipe.stages.values():
            if written in other.config.benchmarks():
                return other, recipe.text.location_of_value(other.place, written)
    return spec, recipe.text.location_of_value(spec.place, text)


def _reference_with_place(recipe: Recipe, spec: StageSpec, text: str) -> str:
    naming, place = place_of_reference(recipe, spec, text)
    return f"{place}: {naming.name} refers to '{text}'"


def _with_recipe_seed(base: str, seed: int) -> str:
    """Add the recipe's seed to `init:NAME`, so that stages with different seeds get the same base."""
    return f"{base}:{seed}" if base.startswith("init:") and base.count(":") == 1 else base


def topological_order(recipe: Recipe) -> list[StageSpec]:
    """Return the stages such that each comes after its dependencies, else in the registry's order.

    Raises:
        RecipeError: the stages' inputs form a cycle.
    """
    ordered_specs: dict[str, StageSpec] = {}

    def visit_stage(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            cycle = " → ".join([*path[path.index(name) :], name])
            raise RecipeError(f"{recipe.path}: the stages' inputs form a cycle: {cycle}")
        if name not in ordered_specs:
            spec = recipe.stages[name]
            for reference in input_references(recipe, spec).values():
                if reference.stage:
                    visit_stage(reference.stage, (*path, name))
            ordered_specs[name] = spec

    for name in recipe.stages:
        visit_stage(name, ())
    return list(ordered_specs.values())


def dependencies(recipe: Recipe, names: Iterable[str]) -> set[str]:
    """Return the named stages and all stages that they depend on."""
    reached_stages: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name not in reached_stages:
            reached_stages.add(name)
            references = input_references(recipe, recipe.stages[name]).values()
            waiting += [reference.stage for reference in references if reference.stage]
    return reached_stages


def dependents(recipe: Recipe, names: Iterable[str]) -> set[str]:
    """Return the named stages and all stages that depend on them."""
    changed = set(names)
    return {name for name in recipe.stages if changed & dependencies(recipe, [name])}
