"""The typed recipe: what is asked for, read from TOML, with nothing in it that is not known."""

import difflib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, Field, ValidationError
from pydantic_core import ErrorDetails

from meditron.core.config import Config
from meditron.core.errors import RecipeError
from meditron.core.stage import StageConfig
from meditron.recipe.registry import STAGES, Stage
from meditron.recipe.toml import Place, Source, nearest, read

__all__ = ["Recipe", "Step", "load_recipe"]

_NAME = re.compile(r"[A-Za-z0-9_-]+")
_Model = TypeVar("_Model", bound=BaseModel)


class Head(Config):
    """What a recipe says outside its tables."""

    base: str | None = Field(default=None, min_length=1)
    """The MODEL that the recipe starts from."""

    seed: int = Field(default=0, ge=0, lt=1 << 63)
    """Seed of every stage that names none of its own."""


@dataclass(frozen=True, slots=True)
class Step:
    """A stage as a recipe asks for it."""

    name: str
    """`pretrain`, or `finetune.medqa` for one of several; also the folder under the run's."""
    stage: Stage
    config: StageConfig
    """With its seed resolved."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """A whole run as it is asked for, every default filled in."""

    name: str
    """The file's name without its suffix; also the run's folder."""
    path: Path
    base: str | None
    seed: int
    steps: Mapping[str, Step]
    """By name, in the registry's order."""
    kinds: frozenset[str]
    """Every kind of stage that it could have had."""

    def resolved(self) -> dict[str, Any]:
        """The recipe with every default filled in, as plain JSON values."""
        tables = {
            name: step.config.model_dump(mode="json", by_alias=True) for name, step in self.steps.items()
        }
        return {"base": self.base, "seed": self.seed, **tables}


def load_recipe(
    path: Path | str, overrides: Sequence[str] = (), *, stages: Sequence[Stage] = STAGES
) -> Recipe:
    """Read a recipe; `overrides` are `table.key=value`, laid over the file before anything is checked.

    UsageError where there is no file, RecipeError (the file, the line, the nearest known key) where a key, a
    type or a value is wrong; its `others` are the mistakes beside the first.
    """
    path = Path(path)
    raw, source = read(path, overrides)
    known = {stage.kind: stage for stage in stages}
    errors = [
        _unknown_key(source, (key,), [*Head.model_fields, *known])
        for key in raw
        if key not in known and key not in Head.model_fields
    ]
    try:
        head = _validate(Head, {key: raw[key] for key in raw if key in Head.model_fields}, (), source)
    except RecipeError as error:
        errors.append(error)
        head = Head()
    steps: dict[str, Step] = {}
    for stage in stages:
        if stage.kind in raw:
            try:
                steps |= {step.name: step for step in _steps(stage, raw[stage.kind], head.seed, source)}
            except RecipeError as error:
                errors.append(error)
    if errors:
        raise RecipeError.of_all(errors)
    if not steps:
        raise RecipeError(f"{path}: asks for no stage", hint=f"its tables may be {', '.join(known)}")
    configs = {name: step.config for name, step in steps.items()}
    for name, step in steps.items():
        for key, why in step.config.cross_stage_errors(configs).items():
            raise RecipeError(f"{source.where((step.stage.kind, key))}: {name}.{key}: {why}")
    return Recipe(path.stem, path, head.base, head.seed, steps, frozenset(known))


def _steps(stage: Stage, raw: object, seed: int, source: Source) -> Iterator[Step]:
    """The steps of one kind: its table, or each table of its array."""
    errors = []
    for place, name, table in _tables(stage, raw, source):
        try:
            config = _validate(stage.config, table, place, source)
        except RecipeError as error:
            errors.append(error)
            continue
        if config.seed is None:
            config = config.model_copy(update={"seed": seed})
        yield Step(name, stage, config)
    if errors:
        raise RecipeError.of_all(errors)


def _tables(stage: Stage, raw: object, source: Source) -> Iterator[tuple[Place, str, dict[str, Any]]]:
    kind = stage.kind
    if isinstance(raw, dict) and not stage.many:
        yield (kind,), kind, raw
        return
    entries = [raw] if isinstance(raw, dict) else raw
    if not stage.many or not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
        form = f"[[{kind}]]" if stage.many else f"[{kind}]"
        raise RecipeError(f"{source.where((kind,))}: {kind} is a table: write {form}")
    seen: set[str] = set()
    for index, entry in enumerate(entries):
        place: Place = (kind,) if isinstance(raw, dict) else (kind, index)
        name = _name(kind, entry.get("name"), alone=len(entries) == 1, where=source.where(place))
        if name in seen:
            raise RecipeError(f"{source.where(place)}: two tables are named {name}")
        seen.add(name)
        yield place, name, {key: value for key, value in entry.items() if key != "name"}


def _name(kind: str, name: object, *, alone: bool, where: str) -> str:
    if name is None and alone:
        return kind
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise RecipeError(
            f"{where}: each [[{kind}]] needs a name of letters, digits, - and _",
            hint=f'write name = "…" as the first line of each [[{kind}]]',
        )
    return f"{kind}.{name}"


def _validate(model: type[_Model], table: dict[str, Any], place: Place, source: Source) -> _Model:
    """Through JSON: only there does pydantic's strict mode read a list as a tuple, a string as a path."""
    try:
        return model.model_validate_json(json.dumps(table, default=str), strict=True)
    except ValidationError as error:
        found = error.errors(include_url=False)
    # Unknown keys come first: one may be the misspelt name of one that is missing.
    found.sort(key=lambda each: each["type"] != "extra_forbidden")
    errors: dict[str, RecipeError] = {}  # one for each line: a union's members all complain of one value
    guessed: set[Place] = set()
    for each in found:
        at = (*place, *each["loc"])
        if each["type"] == "extra_forbidden":
            known = _keys(model, each["loc"][:-1])
            problem = _unknown_key(source, at, known)
            guessed |= {(*at[:-1], key) for key in difflib.get_close_matches(str(at[-1]), known, n=1)}
        elif each["type"] == "missing" and at in guessed:
            continue
        else:
            problem = RecipeError(f"{source.where(at)}: {_dotted(at) or 'recipe'}: {_complaint(each)}")
        errors.setdefault(_dotted(at) if each["type"] == "missing" else source.where(at), problem)
    raise RecipeError.of_all(list(errors.values()))


def _unknown_key(source: Source, place: Place, known: Sequence[str]) -> RecipeError:
    *table, key = place
    owner = _dotted(table) or "a recipe"
    return RecipeError(
        f"{source.where(place)}: {owner} has no key '{key}'{nearest(str(key), known)}",
        hint=f"keys of {owner}: {', '.join(sorted(known))}",
    )


def _complaint(error: ErrorDetails) -> str:
    """Pydantic's message in one line, with the value that it is about."""
    message = error["msg"].removeprefix("Value error, ").replace("\n", " ")
    message = message[:1].lower() + message[1:]
    value = error["input"]
    simple = isinstance(value, str | int | float | bool)
    return f"{message}, not {json.dumps(value)}" if simple and error["type"] != "value_error" else message


def _keys(model: type[BaseModel], place: Place) -> list[str]:
    """The keys that may stand at `place` below a model, through optional, listed and mapped models."""
    models = [model]
    for part in place:
        fields = [
            field
            for candidate in models
            for name, field in candidate.model_fields.items()
            if part in (name, field.alias)
        ]
        # A list's index and a mapping's own key are no field: the annotation already told what they hold.
        if fields:
            models = [inner for field in fields for inner in _models(field.annotation)]
    return [field.alias or name for candidate in models for name, field in candidate.model_fields.items()]


def _models(annotation: object) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    else:
        for argument in get_args(annotation):
            yield from _models(argument)


def _dotted(place: Sequence[str | int]) -> str:
    return ".".join(str(part) for part in place)
