"""The typed recipe: a TOML file parsed into one validated config per stage."""

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, Field, ValidationError
from pydantic_core import ErrorDetails

from meditron.core.config import Config, StageConfig
from meditron.core.errors import RecipeError, UsageError
from meditron.recipe.registry import STAGES, Stage
from meditron.recipe.toml import Place, RecipeText, nearest, read_toml

__all__ = ["Recipe", "RecipeHeader", "StageSpec", "load_recipe", "replace_strings"]

_NAME = re.compile(r"[A-Za-z0-9_-]+")
_SHORTER = {
    "input should be": "must be",
    "greater than or equal to": "at least",
    "less than or equal to": "at most",
    "greater than": "above",
    "less than": "below",
}
"""Wording of pydantic's messages → ours."""
_Model = TypeVar("_Model", bound=BaseModel)


class RecipeHeader(Config):
    """Keys of a recipe outside its tables."""

    base: str | None = Field(default=None, min_length=1)
    """The MODEL that the recipe starts from."""

    seed: int = Field(default=0, ge=0, lt=1 << 63)
    """Seed of every stage without its own."""


@dataclass(frozen=True, slots=True)
class StageSpec:
    """One stage of a recipe: its kind and its config."""

    name: str
    """`pretrain`, or `finetune.medqa` for one of several; also the folder under the run's."""
    stage: Stage
    config: StageConfig
    """With its seed resolved."""
    place: Place = ()
    """Position of its table in the recipe's text."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """A validated recipe, with every default filled in."""

    name: str
    """The file's name without its suffix; also the run's folder."""
    path: Path
    base: str | None
    seed: int
    stages: Mapping[str, StageSpec]
    """By name, in the registry's order."""
    kinds: frozenset[str]
    """Every kind of stage that a recipe may have."""
    text: RecipeText
    """The file's text, for errors that name a line."""

    def resolved(self) -> dict[str, Any]:
        """Return the recipe with every default filled in, as plain JSON values."""
        tables = {
            name: spec.config.model_dump(mode="json", by_alias=True) for name, spec in self.stages.items()
        }
        return {"base": self.base, "seed": self.seed, **tables}


def load_recipe(
    path: Path | str, overrides: Sequence[str] = (), *, stages: Sequence[Stage] = STAGES
) -> Recipe:
    """Read and validate a recipe.

    Args:
        path: The TOML file.
        overrides: `table.key=value`, applied to the file's values before validation.
        stages: The kinds of stages that the recipe may have.

    Raises:
        UsageError: there is no such file, or its name is dots only.
        RecipeError: a key, type or value is wrong; names the file, the line and the nearest known key. Its
            `others` are the recipe's further errors.
    """
    path = Path(path)
    if path.stem in (".", ".."):  # the run's folder has the recipe's name
        raise UsageError(f"{path}: a recipe needs a name before .toml")
    raw, text = read_toml(path, overrides)
    known = {stage.kind: stage for stage in stages}
    errors = [
        _unknown_key(text, (key,), "a recipe", [*RecipeHeader.model_fields, *known])
        for key in raw
        if key not in known and key not in RecipeHeader.model_fields
    ]
    try:
        keys = {key: raw[key] for key in raw if key in RecipeHeader.model_fields}
        header = _validate(RecipeHeader, keys, text, (), "")
    except RecipeError as error:
        errors.append(error)
        header = RecipeHeader()
    specs: dict[str, StageSpec] = {}
    for stage in stages:
        if stage.kind in raw:
            try:
                specs |= {spec.name: spec for spec in _specs(stage, raw[stage.kind], header.seed, text)}
            except RecipeError as error:
                errors.append(error)
    if errors:
        raise RecipeError.of_all(errors)
    if not specs:
        raise RecipeError(f"{path}: no stage", hint=f"its tables may be {', '.join(known)}")
    specs = {name: _with_canonical_selectors(spec, specs, text) for name, spec in specs.items()}
    _raise_cross_stage_errors(specs, text)
    return Recipe(path.stem, path, header.base, header.seed, specs, frozenset(known), text)


def _specs(stage: Stage, raw: object, seed: int, text: RecipeText) -> Iterator[StageSpec]:
    """Validate the stages of one kind: its table, or each table of its array."""
    errors = []
    for place, name, table in _tables(stage, raw, text):
        try:
            config = _validate(stage.config, table, text, place, name)
        except RecipeError as error:
            errors.append(error)
            continue
        if config.seed is None:
            config = config.model_copy(update={"seed": seed})
        yield StageSpec(name, stage, config, place)
    if errors:
        raise RecipeError.of_all(errors)


def _tables(stage: Stage, raw: object, text: RecipeText) -> Iterator[tuple[Place, str, dict[str, Any]]]:
    kind = stage.kind
    if isinstance(raw, dict) and not stage.many:
        yield (kind,), kind, raw
        return
    entries = [raw] if isinstance(raw, dict) else raw
    if not stage.many or not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
        form = f"[[{kind}]]" if stage.many else f"[{kind}]"
        raise RecipeError(f"{text.where((kind,))}: {kind} is a table: write {form}")
    names: set[str] = set()
    for index, entry in enumerate(entries):
        place: Place = (kind,) if isinstance(raw, dict) else (kind, index)
        name = _name(kind, entry.get("name"), only=len(entries) == 1, where=text.where(place))
        if name in names:
            raise RecipeError(f"{text.where(place)}: two tables are named {name}")
        names.add(name)
        yield place, name, {key: value for key, value in entry.items() if key != "name"}


def _name(kind: str, name: object, *, only: bool, where: str) -> str:
    if name is None and only:
        return kind
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise RecipeError(
            f"{where}: each [[{kind}]] needs a name of letters, digits, - and _",
            hint=f'write name = "…" as the first line of each [[{kind}]]',
        )
    return f"{kind}.{name}"


def _with_canonical_selectors(spec: StageSpec, specs: Mapping[str, StageSpec], text: RecipeText) -> StageSpec:
    """Spell references to a stage's files as the stage does: `quantize:q4_k_m` is `quantize:Q4_K_M`."""
    spelled: dict[str, str] = {}
    for reference in spec.config.inputs().values():
        head, _, selector = reference.partition(":")
        names = specs[head].config.selectors() if head in specs else ()
        for name in names:
            if selector != name and selector.lower() == name.lower():
                spelled[reference] = f"{head}:{name}"
    if not spelled:
        return spec
    table = replace_strings(spec.config.model_dump(mode="json", by_alias=True), spelled)
    return replace(spec, config=_validate(type(spec.config), table, text, spec.place, spec.name))


def replace_strings(value: Any, replacements: Mapping[str, str]) -> Any:  # noqa: ANN401  # any JSON value
    """Return a JSON value in which whole strings are replaced, keys left as they are."""
    if isinstance(value, dict):
        return {key: replace_strings(inner, replacements) for key, inner in value.items()}
    if isinstance(value, list):
        return [replace_strings(inner, replacements) for inner in value]
    return replacements.get(value, value) if isinstance(value, str) else value


def _raise_cross_stage_errors(specs: Mapping[str, StageSpec], text: RecipeText) -> None:
    configs = {name: spec.config for name, spec in specs.items()}
    for name, spec in specs.items():
        for key, problem in spec.config.cross_stage_errors(configs).items():
            raise RecipeError(f"{text.where((*spec.place, key))}: {name}.{key}: {problem}")


def _validate(
    model: type[_Model], table: dict[str, Any], text: RecipeText, place: Place, name: str
) -> _Model:
    """Validate one table.

    The values go through JSON: only there does pydantic's strict mode accept a list for a tuple and a string
    for a path.
    """
    try:
        return model.model_validate_json(json.dumps(table, default=str), strict=True)
    except ValidationError as error:
        details = error.errors(include_url=False)
    # Unknown keys come first: one of them may be a misspelt required key.
    details.sort(key=lambda detail: detail["type"] != "extra_forbidden")
    errors: dict[str, RecipeError] = {}  # one per line: every member of a union complains about one value
    misspelt: set[Place] = set()
    for detail in details:
        inner = detail["loc"]
        full, label = (*place, *inner), _label(name, inner)
        if detail["type"] == "extra_forbidden":
            known = _keys(model, inner[:-1])
            problem = _unknown_key(text, full, _label(name, inner[:-1]) or "a recipe", known)
            close = difflib.get_close_matches(str(full[-1]), known, n=1)
            misspelt |= {(*full[:-1], key) for key in close}
        elif detail["type"] == "missing" and full in misspelt:
            continue
        else:
            problem = RecipeError(f"{text.where(full)}: {label or 'recipe'}: {_complaint(detail)}")
        errors.setdefault(label if detail["type"] == "missing" else text.where(full), problem)
    raise RecipeError.of_all(list(errors.values()))


def _unknown_key(text: RecipeText, place: Place, table: str, known: Sequence[str]) -> RecipeError:
    key = str(place[-1])
    return RecipeError(
        f"{text.where(place)}: {table} has no key '{key}'{nearest(key, known)}",
        hint=f"keys of {table}: {', '.join(sorted(known))}",
    )


def _complaint(error: ErrorDetails) -> str:
    """Return pydantic's message in one line, with the rejected value."""
    message = error["msg"].removeprefix("Value error, ").replace("\n", " ")
    message = message[:1].lower() + message[1:]
    for long, short in _SHORTER.items():
        message = message.replace(long, short)
    value = error["input"]
    simple = isinstance(value, str | int | float | bool)
    return f"{message}, got {json.dumps(value)}" if simple and error["type"] != "value_error" else message


def _keys(model: type[BaseModel], place: Place) -> list[str]:
    """List the keys allowed at `place` below a model, through optional, listed and mapped models."""
    models = [model]
    for part in place:
        fields = [
            field
            for candidate in models
            for name, field in candidate.model_fields.items()
            if part in (name, field.alias)
        ]
        # A list's index and a mapping's own key are not fields: the annotation before them gave the models.
        if fields:
            models = [inner for field in fields for inner in _models(field.annotation)]
    return [field.alias or name for candidate in models for name, field in candidate.model_fields.items()]


def _models(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    else:
        for argument in get_args(annotation):
            yield from _models(argument)


def _label(name: str, place: Sequence[str | int]) -> str:
    """Return the dotted name of a key in a stage: `evaluate.fidelity[0].model`."""
    parts = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
    return f"{name}{parts}".removeprefix(".")
