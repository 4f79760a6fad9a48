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
from meditron.recipe.toml import Place, RecipeText, nearest_word_hint, read_toml

__all__ = ["Recipe", "RecipeHeader", "StageSpec", "load_recipe", "replace_strings"]

_NAME = re.compile(r"[A-Za-z0-9_-]+")
_SHORTER = {
    "input should be": "must be",
    "greater than or equal to": "at least",
    "less than or equal to": "at most",
    "greater than": "above",
    "less than": "below",
}
"""Phrase in pydantic's error messages → the shorter phrase that replaces it."""
_Model = TypeVar("_Model", bound=BaseModel)


class RecipeHeader(Config):
    """Keys of a recipe outside its tables."""

    base: str | None = Field(default=None, min_length=1)
    """MODEL that stages refer to as `base`."""

    seed: int = Field(default=0, ge=0, lt=1 << 63)
    """Random seed of every stage that does not set its own."""


@dataclass(frozen=True, slots=True)
class StageSpec:
    """One stage of a recipe: its name, kind and validated config."""

    name: str
    """`pretrain`, or `finetune.medqa` for a named table; also the name of the stage's folder in the run's."""
    stage: Stage
    config: StageConfig
    """The validated table; a missing seed is replaced by the recipe's."""
    place: Place = ()
    """Position of the stage's table in the recipe."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """A validated recipe, with every default filled in."""

    name: str
    """The file's name without its suffix; also the run's folder."""
    path: Path
    base: str | None
    seed: int
    stages: Mapping[str, StageSpec]
    """Stage name → stage, in the registry's order."""
    kinds: frozenset[str]
    """Names of all kinds of stages that a recipe may have."""
    text: RecipeText
    """The recipe's text, by which errors find the line of a value."""

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
        overrides: Texts `table.key=value`, which replace values of the file before validation.
        stages: The kinds of stages that the recipe may have.

    Raises:
        UsageError: there is no such file, or its name has only dots before `.toml`.
        RecipeError: a key, type or value is wrong. The error names the file, the line and, for an unknown
            key, the most similar known key. Its `further_errors` are the recipe's other errors.
    """
    path = Path(path)
    if path.stem in (".", ".."):  # the run's folder has the recipe's name
        raise UsageError(f"{path}: a recipe needs a name before .toml")
    raw, text = read_toml(path, overrides)
    known = {stage.kind: stage for stage in stages}
    errors = [
        _unknown_key_error(text, (key,), "a recipe", [*RecipeHeader.model_fields, *known])
        for key in raw
        if key not in known and key not in RecipeHeader.model_fields
    ]
    try:
        keys = {key: raw[key] for key in raw if key in RecipeHeader.model_fields}
        header = _validate_table(RecipeHeader, keys, text, (), "")
    except RecipeError as error:
        errors.append(error)
        header = RecipeHeader()
    specs: dict[str, StageSpec] = {}
    for stage in stages:
        if stage.kind in raw:
            try:
                specs |= {
                    spec.name: spec for spec in _validated_stages(stage, raw[stage.kind], header.seed, text)
                }
            except RecipeError as error:
                errors.append(error)
    # All errors of a recipe are reported together, so that they can be corrected in one pass.
    if errors:
        raise RecipeError.combine(errors)
    if not specs:
        raise RecipeError(f"{path}: no stage", hint=f"its tables may be {', '.join(known)}")
    configs = {name: spec.config for name, spec in specs.items()}
    specs = {
        name: replace(spec, config=spec.config.with_recipe_defaults(configs)) for name, spec in specs.items()
    }
    specs = {name: _with_canonical_selectors(spec, specs, text) for name, spec in specs.items()}
    _raise_cross_stage_errors(specs, text)
    return Recipe(path.stem, path, header.base, header.seed, specs, frozenset(known), text)


def _validated_stages(stage: Stage, raw: object, seed: int, text: RecipeText) -> Iterator[StageSpec]:
    """Yield the validated stages of one kind: that of its table, or of each table in its array."""
    errors = []
    for place, name, table in _stage_tables(stage, raw, text):
        try:
            config = _validate_table(stage.config, table, text, place, name)
        except RecipeError as error:
            errors.append(error)
            continue
        if config.seed is None:
            config = config.model_copy(update={"seed": seed})
        yield StageSpec(name, stage, config, place)
    if errors:
        raise RecipeError.combine(errors)


def _stage_tables(stage: Stage, raw: object, text: RecipeText) -> Iterator[tuple[Place, str, dict[str, Any]]]:
    kind = stage.kind
    if isinstance(raw, dict) and not stage.repeatable:
        yield (kind,), kind, raw
        return
    entries = [raw] if isinstance(raw, dict) else raw
    if not stage.repeatable or not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
        form = f"[[{kind}]]" if stage.repeatable else f"[{kind}]"
        raise RecipeError(f"{text.location_of((kind,))}: {kind} is a table: write {form}")
    names: set[str] = set()
    for index, entry in enumerate(entries):
        place: Place = (kind,) if isinstance(raw, dict) else (kind, index)
        name = _stage_name(kind, entry.get("name"), only=len(entries) == 1, where=text.location_of(place))
        if name in names:
            raise RecipeError(f"{text.location_of(place)}: two tables are named {name}")
        names.add(name)
        yield place, name, {key: value for key, value in entry.items() if key != "name"}


def _stage_name(kind: str, name: object, *, only: bool, where: str) -> str:
    if name is None and only:
        return kind
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise RecipeError(
            f"{where}: each [[{kind}]] needs a name of letters, digits, - and _",
            hint=f'write name = "…" as the first line of each [[{kind}]]',
        )
    return f"{kind}.{name}"


def _with_canonical_selectors(spec: StageSpec, specs: Mapping[str, StageSpec], text: RecipeText) -> StageSpec:
    """Replace references that differ in case from a stage's file: `quantize:q4_k_m` by `quantize:Q4_K_M`."""
    canonical_references: dict[str, str] = {}
    for reference in spec.config.inputs().values():
        head, _, selector = reference.partition(":")
        names = specs[head].config.selectors() if head in specs else ()
        for name in names:
            if selector != name and selector.lower() == name.lower():
                canonical_references[reference] = f"{head}:{name}"
    if not canonical_references:
        return spec
    table = replace_strings(spec.config.model_dump(mode="json", by_alias=True), canonical_references)
    return replace(spec, config=_validate_table(type(spec.config), table, text, spec.place, spec.name))


def replace_strings(value: Any, replacements: Mapping[str, str]) -> Any:  # noqa: ANN401  # any JSON value
    """Return a JSON value in which each string that is a key of `replacements` is replaced; keys are kept."""
    if isinstance(value, dict):
        return {key: replace_strings(inner, replacements) for key, inner in value.items()}
    if isinstance(value, list):
        return [replace_strings(inner, replacements) for inner in value]
    return replacements.get(value, value) if isinstance(value, str) else value


def _raise_cross_stage_errors(specs: Mapping[str, StageSpec], text: RecipeText) -> None:
    configs = {name: spec.config for name, spec in specs.items()}
    for name, spec in specs.items():
        for key, problem in spec.config.cross_stage_errors(configs).items():
            raise RecipeError(f"{text.location_of((*spec.place, key))}: {name}.{key}: {problem}")


def _validate_table(
    model: type[_Model], table: dict[str, Any], text: RecipeText, place: Place, name: str
) -> _Model:
    """Validate one table; RecipeError for its first problem, with the others in `further_errors`.

    The table is validated as JSON text, because pydantic's strict mode accepts a list for a tuple and a
    string for a path only in JSON.
    """
    try:
        return model.model_validate_json(json.dumps(table, default=str), strict=True)
    except ValidationError as error:
        details = error.errors(include_url=False)
    # Unknown keys are handled first, because one of them may be the misspelt name of a required key, which is
    # then not reported as missing.
    details.sort(key=lambda detail: detail["type"] != "extra_forbidden")
    errors: dict[str, RecipeError] = {}  # one per line: every member of a union complains about one value
    misspelt_keys: set[Place] = set()
    for detail in details:
        inner = detail["loc"]
        full, label = (*place, *inner), _dotted_name(name, inner)
        if detail["type"] == "extra_forbidden":
            known = _allowed_keys(model, inner[:-1])
            problem = _unknown_key_error(text, full, _dotted_name(name, inner[:-1]) or "a recipe", known)
            close = difflib.get_close_matches(str(full[-1]), known, n=1)
            misspelt_keys |= {(*full[:-1], key) for key in close}
        elif detail["type"] == "missing" and full in misspelt_keys:
            continue
        else:
            problem = RecipeError(
                f"{text.location_of(full)}: {label or 'recipe'}: {_validation_message(detail)}"
            )
        errors.setdefault(label if detail["type"] == "missing" else text.location_of(full), problem)
    raise RecipeError.combine(list(errors.values()))


def _unknown_key_error(text: RecipeText, place: Place, table: str, known: Sequence[str]) -> RecipeError:
    key = str(place[-1])
    return RecipeError(
        f"{text.location_of(place)}: {table} has no key '{key}'{nearest_word_hint(key, known)}",
        hint=f"keys of {table}: {', '.join(sorted(known))}",
    )


def _validation_message(error: ErrorDetails) -> str:
    """Return pydantic's error message in one line, with the rejected value at the end."""
    message = error["msg"].removeprefix("Value error, ").replace("\n", " ")
    message = message[:1].lower() + message[1:]
    for long, short in _SHORTER.items():
        message = message.replace(long, short)
    value = error["input"]
    simple = isinstance(value, str | int | float | bool)
    return f"{message}, got {json.dumps(value)}" if simple and error["type"] != "value_error" else message


def _allowed_keys(model: type[BaseModel], place: Place) -> list[str]:
    """List the keys that are allowed at `place` inside a model, also in optional, list and dict types."""
    models = [model]
    for part in place:
        fields = [
            field
            for candidate in models
            for name, field in candidate.model_fields.items()
            if part in (name, field.alias)
        ]
        # An index of a list or a key of a dict is not a field of a model; the models inside that list or dict
        # were found in the annotation of the field before it.
        if fields:
            models = [inner for field in fields for inner in _model_classes(field.annotation)]
    return [field.alias or name for candidate in models for name, field in candidate.model_fields.items()]


def _model_classes(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    else:
        for argument in get_args(annotation):
            yield from _model_classes(argument)


def _dotted_name(name: str, place: Sequence[str | int]) -> str:
    """Return the dotted name of a key in a stage: `evaluate.fidelity[0].model`."""
    parts = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
    return f"{name}{parts}".removeprefix(".")
