"""The status of a recipe's stages: fresh, stale, partial, missing or failed.

The functions of this module only read; they write and download nothing.
"""

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain, count
from pathlib import Path
from typing import Any, Literal

from meditron.core.config import semantic_fields
from meditron.core.errors import InputError, SourceError
from meditron.recipe.drift import FieldChange, field_changes
from meditron.recipe.external_inputs import input_identity
from meditron.recipe.graph import InputReference, input_references, topological_order
from meditron.recipe.in_progress import RECORDS, InProgress, read_failure, read_in_progress
from meditron.recipe.schema import Recipe, StageSpec, replace_strings
from meditron.store.fetch import public_source
from meditron.store.files import list_files
from meditron.store.manifest import FILE_NAME, Manifest, read_manifest, verify_artifact

__all__ = ["StageState", "StageStatus", "recipe_status", "stage_payload", "stage_status"]

StageState = Literal["built", "fresh", "stale", "partial", "missing", "failed"]


@dataclass(frozen=True, slots=True)
class StageStatus:
    """Status of one stage, with its manifest or the record of its unfinished work."""

    spec: StageSpec
    """The stage as the manifest records it: its config names sources without secrets and absolute paths
    (`store.fetch.public_source`)."""
    folder: Path
    state: StageState
    """`built`: built by this run; `fresh`: complete and up to date; `stale`: complete or unfinished, and out
    of date or damaged; `partial`: unfinished; `failed`: unfinished, ended by an error; `missing`: not built
    yet."""
    inputs: Mapping[str, InputReference]
    """Input name → reference. The names and texts are those of the recorded spec; only a reference's `source`
    is as written in the recipe."""
    digests: Mapping[str, str | None]
    """Input name → identity of its content; None for the output of a stage that is not built yet."""
    drift: tuple[FieldChange, ...] = ()
    """The changes because of which the stage is out of date or damaged."""
    manifest: Manifest | None = None
    """The manifest of a complete stage."""
    in_progress: InProgress | None = None
    """The record of an unfinished stage."""
    failure: str | None = None
    """The error that ended the last attempt at an unfinished stage."""

    @property
    def name(self) -> str:
        """The stage's name in the recipe."""
        return self.spec.name

    @property
    def state_text(self) -> str:
        """The state as it is printed; `--json` has `state`."""
        return {"fresh": "up to date", "stale": "out of date"}.get(self.state, self.state)

    @property
    def metrics(self) -> dict[str, Any]:
        """Metrics of a complete stage, from its manifest; empty for an unfinished one."""
        return self.manifest.metrics if self.manifest else {}

    @property
    def is_damaged(self) -> bool:
        """True if files of the stage were lost or altered."""
        return any(change.damage for change in self.drift)

    def to_json(self) -> dict[str, Any]:
        """Return the status as the --json of `run` and `status` prints it."""
        form = {
            "state": self.state,
            "seconds": self.metrics.get("seconds"),
            "metrics": self.metrics,
            "drift": [change.to_json() for change in self.drift],
        }
        return form | ({"message": self.failure} if self.failure else {})


def stage_payload(spec: StageSpec, digests: Mapping[str, str | None]) -> dict[str, Any]:
    """Return all that determines an artifact's content: kind, version, semantic config and input digests."""
    return {
        "kind": spec.stage.kind,
        "version": spec.stage.version,
        "config": semantic_fields(spec.config),
        "inputs": dict(digests),
    }


def recipe_status(
    recipe: Recipe, out: Path, *, hashes: bool = False, allow_missing_inputs: bool = False
) -> dict[str, StageStatus]:
    """Return the status of each stage under `out/<recipe>`, in the order in which stages are built.

    Args:
        recipe: The recipe.
        out: The folder that contains all runs.
        hashes: True to read all files again and compare their hashes.
        allow_missing_inputs: True to give a missing local input the identity `missing` instead of raising
            SourceError, so that a plan can be printed without it.

    Raises:
        RecipeError: a reference names nothing that exists, or the references form a cycle.
        SourceError: a local input is missing.
    """
    statuses: dict[str, StageStatus] = {}
    for spec in topological_order(recipe):
        status = stage_status(
            recipe,
            spec,
            out / recipe.name / spec.name,
            statuses,
            hashes=hashes,
            allow_missing_inputs=allow_missing_inputs,
        )
        statuses[spec.name] = _inherit_drift(status, statuses)
    return statuses


def stage_status(
    recipe: Recipe,
    spec: StageSpec,
    folder: Path,
    earlier: Mapping[str, StageStatus],
    *,
    hashes: bool = False,
    allow_missing_inputs: bool = False,
) -> StageStatus:
    """Return the status of one stage, given those of its dependencies in `earlier`."""
    spec, inputs = _with_public_sources(spec, input_references(recipe, spec))
    digests = {}
    for name, reference in inputs.items():
        try:
            digests[name] = _reference_identity(reference, earlier, cached=not hashes)
        except SourceError:
            if not allow_missing_inputs:
                raise
            digests[name] = "missing"
    missing = StageStatus(spec, folder, "missing", inputs, digests)
    payload = stage_payload(spec, digests)
    try:
        manifest = read_manifest(folder)
        if manifest is None and folder.is_symlink():  # nothing is ever written through a link
            return _damaged_status(missing, "folder", "a link", was="a folder")
        has_work = _has_unfinished_files(folder)
        record = _read_unfinished_record(folder, payload, has_work=has_work) if manifest is None else None
        problems = verify_artifact(folder, hashes=hashes) if manifest else []
    except InputError as error:
        return _damaged_status(missing, f"files.{Path(error.path).name}", error.message)
    if manifest:
        # The payloads are compared instead of the fingerprints, because they give the names of changed
        # fields.
        damage = tuple(_damaged_file(problem) for problem in problems)
        drift = field_changes(manifest.payload, payload) + damage
        return replace(missing, state="stale" if drift else "fresh", drift=drift, manifest=manifest)
    failure = read_failure(folder)
    if record:
        drift = field_changes(record.payload, payload)
        state: StageState = "stale" if drift else "failed" if failure else "partial"
        return replace(missing, state=state, drift=drift, in_progress=record, failure=failure)
    if not has_work:  # nothing to lose: the stage can begin again with any payload
        return replace(missing, state="failed" if failure else "missing", failure=failure)
    return _damaged_status(missing, f"files.{FILE_NAME}", "missing, with files beside it")


def _damaged_status(status: StageStatus, field: str, now: str, was: str = "whole") -> StageStatus:
    return replace(status, state="stale", drift=(FieldChange(field, was, now, damage=True),))


def _damaged_file(problem: str) -> FieldChange:
    file, _, what = problem.partition(" ")
    return FieldChange(f"files.{file}", "whole", what, damage=True)


def _read_unfinished_record(folder: Path, payload: dict[str, Any], *, has_work: bool) -> InProgress | None:
    """Read the record of an unfinished stage.

    If the stage has written no files, a record of another payload or a damaged one is ignored: None is
    returned.
    """
    if has_work:
        return read_in_progress(folder)
    with suppress(InputError):
        record = read_in_progress(folder)
        return record if record and record.payload == payload else None
    return None


def _has_unfinished_files(folder: Path) -> bool:
    """Return whether a stage's folder contains other files than the records of its attempts."""
    return folder.is_dir() and any(
        path.relative_to(folder).as_posix() not in RECORDS for path in list_files(folder)
    )


def _with_public_sources(
    spec: StageSpec, inputs: Mapping[str, InputReference]
) -> tuple[StageSpec, dict[str, InputReference]]:
    """Replace the sources in a stage's config and in its inputs' names by their public forms.

    The stage's work gets this config, so that nothing it writes can contain a secret or an absolute path. If
    two sources have the same public form, a number is added.
    """
    public_forms: dict[str, str] = {}
    for reference in inputs.values():
        if reference.source is not None and reference.text not in public_forms:
            form = public_source(reference.text)
            names = chain([form], (f"{form} ({number})" for number in count(2)))
            public_forms[reference.text] = next(name for name in names if name not in public_forms.values())
    # A benchmark is named with its folder: `mmlu-medical:/data/mmlu`.
    for name, reference in inputs.items():
        if reference.source is not None and name.endswith(f":{reference.text}"):
            public_forms[name] = name.removesuffix(reference.text) + public_forms[reference.text]
    config = spec.config.model_dump(mode="json", by_alias=True)
    if (replaced := replace_strings(config, public_forms)) != config:
        parsed = type(spec.config).model_validate_json(json.dumps(replaced), strict=True)
        spec = replace(spec, config=parsed)
    named = {
        public_forms.get(name, name): replace(
            reference, text=public_forms.get(reference.text, reference.text)
        )
        for name, reference in inputs.items()
    }
    return spec, named


def _reference_identity(
    reference: InputReference, earlier: Mapping[str, StageStatus], *, cached: bool
) -> str | None:
    if reference.source is not None:
        return input_identity(reference.source, cached=cached)
    # The digest covers the dependency's files, so its dependents stay fresh if a rebuild gives the same
    # bytes.
    manifest = earlier[str(reference.stage)].manifest
    return manifest.digest if manifest else None


def _inherit_drift(status: StageStatus, earlier: Mapping[str, StageStatus]) -> StageStatus:
    """Mark a stage as stale if a dependency is stale, because rebuilding the dependency changes the input."""
    if status.state == "missing":
        return status
    drift = tuple(
        FieldChange(
            f"inputs.{name}", status.digests[name], f"{reference.stage} is out of date", inherited=True
        )
        for name, reference in status.inputs.items()
        if reference.stage and earlier[reference.stage].state == "stale"
    )
    return replace(status, state="stale", drift=status.drift + drift) if drift else status
