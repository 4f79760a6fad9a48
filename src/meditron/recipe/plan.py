"""How every stage of a recipe stands: fresh, stale, half-built, missing. Reads; never writes or fetches."""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain, count
from pathlib import Path
from typing import Any, Literal

from meditron.core.config import semantic
from meditron.core.errors import InputError
from meditron.recipe.attempt import BESIDE, Begun, read_begun, read_failure
from meditron.recipe.drift import Difference, differences
from meditron.recipe.graph import Reference, ordered, references
from meditron.recipe.outside import identity
from meditron.recipe.schema import Recipe, Step
from meditron.store.fetch import public
from meditron.store.files import list_files
from meditron.store.manifest import FILE_NAME, Manifest, check, read_manifest

__all__ = ["Standing", "State", "payload", "plan", "stand"]

State = Literal["built", "fresh", "stale", "partial", "missing", "failed"]


@dataclass(frozen=True, slots=True)
class Standing:
    """How one stage stands."""

    step: Step
    """As it is recorded: its sources as `store.fetch.public` gives them."""
    folder: Path
    state: State
    """`built` by this run; `fresh`: whole, and made from what is asked for; `stale`: made from something
    else, or damaged; `partial`: begun; `failed`: begun, and ended in an error; `missing`: not there."""
    inputs: Mapping[str, Reference]
    """By the names that the recorded step has; only a reference's `source` is as the recipe has it."""
    digests: Mapping[str, str | None]
    """Input → what stands for its content; None for a stage that is yet to be built."""
    drift: tuple[Difference, ...] = ()
    manifest: Manifest | None = None
    begun: Begun | None = None
    failure: str | None = None

    @property
    def name(self) -> str:
        """The stage's name in the recipe."""
        return self.step.name

    @property
    def metrics(self) -> dict[str, Any]:
        """What the finished stage measured."""
        return self.manifest.metrics if self.manifest else {}

    @property
    def damaged(self) -> bool:
        """Whether bytes were lost or altered."""
        return any(difference.damage for difference in self.drift)

    def to_json(self) -> dict[str, Any]:
        """The stable form of `run` and `status`."""
        form = {
            "state": self.state,
            "seconds": self.metrics.get("seconds"),
            "metrics": self.metrics,
            "drift": [difference.to_json() for difference in self.drift],
        }
        return form | ({"message": self.failure} if self.failure else {})


def payload(step: Step, digests: Mapping[str, str | None]) -> dict[str, Any]:
    """What an artifact is made from: kind, version, what of its configuration decides the result, inputs."""
    return {
        "kind": step.stage.kind,
        "version": step.stage.version,
        "config": semantic(step.config),
        "inputs": dict(digests),
    }


def plan(recipe: Recipe, out: Path, *, hashes: bool = False) -> dict[str, Standing]:
    """How each stage stands under `out/<recipe>`, in the order of the work; `hashes` reads every byte again.

    RecipeError for references that lead nowhere or in a circle, SourceError for a missing local input.
    """
    standings: dict[str, Standing] = {}
    for step in ordered(recipe):
        standing = stand(recipe, step, out / recipe.name / step.name, standings, hashes=hashes)
        standings[step.name] = _inherit(standing, standings)
    return standings


def stand(
    recipe: Recipe, step: Step, folder: Path, before: Mapping[str, Standing], *, hashes: bool = False
) -> Standing:
    """How one stage stands, on `before`: those that it stands on."""
    step, inputs = _recorded(step, references(recipe, step))
    digests = {name: _digest(reference, before, cached=not hashes) for name, reference in inputs.items()}
    found = Standing(step, folder, "missing", inputs, digests)
    now = payload(step, digests)
    try:
        manifest = read_manifest(folder)
        if manifest is None and folder.is_symlink():  # work is never done through a link
            linked = Difference("folder", "a folder", "a link", damage=True)
            return replace(found, state="stale", drift=(linked,))
        worked = _holds_work(folder)
        begun = _begun(folder, now, worked=worked) if manifest is None else None
        problems = check(folder, hashes=hashes) if manifest else []
    except InputError as error:
        damaged = Difference(f"files.{Path(error.path).name}", "whole", error.message, damage=True)
        return replace(found, state="stale", drift=(damaged,))
    if manifest:
        damage = tuple(_damage(problem) for problem in problems)
        drift = differences(manifest.payload, now) + damage
        return replace(found, state="stale" if drift else "fresh", drift=drift, manifest=manifest)
    failure = read_failure(folder)
    if begun:
        drift = differences(begun.payload, now)
        state: State = "stale" if drift else "failed" if failure else "partial"
        return replace(found, state=state, drift=drift, begun=begun, failure=failure)
    if not worked:  # nothing to lose: it is begun anew, whatever it was begun for
        return replace(found, state="failed" if failure else "missing", failure=failure)
    unknown = Difference(f"files.{FILE_NAME}", "whole", "missing, with files beside it", damage=True)
    return replace(found, state="stale", drift=(unknown,))


def _begun(folder: Path, now: dict[str, Any], *, worked: bool) -> Begun | None:
    """Read what an unfinished stage was begun for; None where it left nothing for what it is for now."""
    if worked:
        return read_begun(folder)
    with suppress(InputError):
        begun = read_begun(folder)
        return begun if begun and begun.payload == now else None
    return None


def _holds_work(folder: Path) -> bool:
    """Return whether a stage's folder holds more than the records of its attempts."""
    return folder.is_dir() and any(
        path.relative_to(folder).as_posix() not in BESIDE for path in list_files(folder)
    )


def _recorded(step: Step, inputs: Mapping[str, Reference]) -> tuple[Step, dict[str, Reference]]:
    """Replace the sources in a step's config, and the inputs' names, by what may be recorded of them.

    The stage gets this config, so that nothing it writes can hold a secret or an absolute path. Two sources
    that would be recorded alike are numbered.
    """
    shown: dict[str, str] = {}
    for reference in inputs.values():
        if reference.source is not None and reference.text not in shown:
            form = public(reference.text)
            names = chain([form], (f"{form} ({number})" for number in count(2)))
            shown[reference.text] = next(name for name in names if name not in shown.values())
    config = step.config.model_dump(mode="json", by_alias=True)
    if (replaced := _replaced(config, shown)) != config:
        parsed = type(step.config).model_validate_json(json.dumps(replaced), strict=True)
        step = replace(step, config=parsed)
    named = {
        shown.get(name, name): replace(reference, text=shown.get(reference.text, reference.text))
        for name, reference in inputs.items()
    }
    return step, named


def _replaced(value: Any, shown: Mapping[str, str]) -> Any:  # noqa: ANN401  # JSON is what it is
    if isinstance(value, dict):
        return {key: _replaced(inner, shown) for key, inner in value.items()}
    if isinstance(value, list):
        return [_replaced(inner, shown) for inner in value]
    return shown.get(value, value) if isinstance(value, str) else value


def _digest(reference: Reference, before: Mapping[str, Standing], *, cached: bool) -> str | None:
    if reference.source is not None:
        return identity(reference.source, cached=cached)
    manifest = before[str(reference.step)].manifest
    return manifest.digest if manifest else None


def _damage(problem: str) -> Difference:
    file, _, what = problem.partition(" ")
    return Difference(f"files.{file}", "whole", what, damage=True)


def _inherit(standing: Standing, before: Mapping[str, Standing]) -> Standing:
    """What stands on something stale is stale itself: a rebuild below would reach it."""
    if standing.state == "missing":
        return standing
    drift = tuple(
        Difference(f"inputs.{name}", standing.digests[name], f"{reference.step} is stale", inherited=True)
        for name, reference in standing.inputs.items()
        if reference.step and before[reference.step].state == "stale"
    )
    return replace(standing, state="stale", drift=standing.drift + drift) if drift else standing
