"""Running a recipe: each stage that is not there yet, in order, so that a kill at any moment loses little."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from meditron.core.console import info
from meditron.core.errors import MeditronError, is_out_of_memory
from meditron.core.units import duration
from meditron.recipe.attempt import BESIDE, Attempt
from meditron.recipe.decide import MAKES, Decision, Switches, decide, judge, refuse
from meditron.recipe.estimate import Estimate, estimates
from meditron.recipe.lock import locked
from meditron.recipe.outside import fetched
from meditron.recipe.plan import Standing, payload, plan, stand
from meditron.recipe.preflight import Problem, check_inputs, check_references
from meditron.recipe.provenance import manifest_of
from meditron.recipe.schema import Recipe, Step
from meditron.release.quant_recipes import FLOATS
from meditron.report.run_report import HTML, render
from meditron.store.artifact import Artifact
from meditron.store.files import remove, remove_temporaries
from meditron.store.manifest import FILE_NAME as MANIFEST
from meditron.store.manifest import record_files, write_manifest
from meditron.store.results import FILE_NAME as RESULTS
from meditron.store.results import EvaluationResult, read_results

__all__ = ["RUNS", "RunResult", "run_recipe"]

RUNS = Path("runs")
"""The folder that holds runs, where none is named."""
_TRASH = ".removed-"
_MEMORY_KEYS = (
    *("micro_batch_size", "batch_size", "sequence_length", "batch_tokens", "max_tokens"),
    *("shard_documents", "workers", "threads"),
)
"""Keys of a stage that decide how much memory its work takes, the strongest first."""


@dataclass(frozen=True, slots=True)
class RunResult:
    """How a run's stages stand after (or, for a dry run, before) the work."""

    run: str
    folder: Path
    stages: Mapping[str, Standing]
    decisions: Mapping[str, Decision] = field(default_factory=dict)
    """What was decided for each stage before the work began."""
    dry: bool = False
    """Whether nothing but deciding was done."""
    problems: Sequence[Problem] = ()
    """Of a dry run: inputs that the run would fail on."""
    estimates: Mapping[str, Estimate] = field(default_factory=dict)
    """Of a dry run: stage to be built → what it will take."""

    @property
    def built(self) -> list[str]:
        """The stages that this run built."""
        return [name for name, standing in self.stages.items() if standing.state == "built"]

    @property
    def refused(self) -> list[str]:
        """The stages that a run would not touch, as they were made from something else."""
        return [name for name, decision in self.decisions.items() if decision.action == "refuse"]

    @property
    def sound(self) -> bool:
        """Whether no stage is stale, damaged or failed."""
        return not any(standing.state in ("stale", "failed") for standing in self.stages.values())

    @property
    def evaluations(self) -> dict[str, EvaluationResult]:
        """What the finished evaluate stages found."""
        finished = {name: stage for name, stage in self.stages.items() if stage.manifest}
        return {
            name: read_results(stage.folder)
            for name, stage in finished.items()
            if (stage.folder / RESULTS).is_file()
        }

    @property
    def domains(self) -> dict[str, str]:
        """Source → what its text is about, as the recipe says it."""
        sources = [getattr(stage.step.config, "sources", {}) for stage in self.stages.values()]
        return {name: source.domain for group in sources for name, source in group.items()}

    @property
    def model(self) -> Path | None:
        """The last finished stage that leaves a model's folder: what one would talk with."""
        folders = [stage.folder for stage in self.stages.values() if stage.manifest]
        return next((folder for folder in reversed(folders) if (folder / "config.json").is_file()), None)

    @property
    def quantized(self) -> str | None:
        """The MODEL that is the last quantized file: what one would talk with, where there is one."""
        stages = [stage for stage in self.stages.values() if stage.step.stage.kind == "quantize"]
        specs = [
            f"{stage.folder}:{file['type']}"
            for stage in stages
            for file in stage.metrics.get("files", ())
            if file["type"] not in FLOATS
        ]
        return specs[-1] if specs else None

    @property
    def origins(self) -> dict[str, dict[str, str]]:
        """Stage → input → what it refers to, as the recipe says it."""
        return {
            name: {key: reference.text for key, reference in stage.inputs.items()}
            for name, stage in self.stages.items()
        }

    def to_json(self) -> dict[str, Any]:
        """The stable form."""
        if not self.dry:
            return {"run": self.run, "stages": {name: each.to_json() for name, each in self.stages.items()}}
        stages = {name: decision.to_json() for name, decision in self.decisions.items()}
        for name, estimate in self.estimates.items():
            stages[name]["estimate"] = estimate.to_json()
        return {"run": self.run, "stages": stages, "problems": [each.to_json() for each in self.problems]}


def run_recipe(
    recipe: Recipe,
    *,
    out: Path = RUNS,
    only: str | None = None,
    until: str | None = None,
    rebuild: Sequence[str] = (),
    accept_drift: bool = False,
    dry_run: bool = False,
) -> RunResult:
    """Build what of a recipe is not there yet, under `out/<recipe>`.

    A stage that is whole and made from what is asked for is kept; one that is half-built goes on; one that
    was made from something else is a DriftError before anything is touched, unless `rebuild` names it (it and
    what stands on it are built again) or `accept_drift` is set (a finished one is used as it is). `dry_run`
    decides, opens the inputs and estimates, but builds nothing.

    Raises:
        SourceError: an input is missing; nothing was built.
        InputError: an input cannot be read; nothing was built.
    """
    switches = Switches(only, until, tuple(rebuild), accept_drift)
    folder = out / recipe.name
    if dry_run:
        return _dry_run(recipe, out, switches)
    _raise_first(recipe, check_references(recipe))
    with locked(folder):
        first = _decided(recipe, out, switches)
        refuse(recipe, list(first.decisions.values()))
        _raise_first(recipe, check_inputs(recipe, _to_build(recipe, first)))
        _remove(folder, [d.standing.folder for d in first.decisions.values() if d.action == "rebuild"])
        standings = dict(first.stages)
        for name, decision in first.decisions.items():
            if decision.action != "leave":
                standings[name] = _advance(recipe, decision, standings, switches)
        _report(recipe, folder, standings)
    return replace(first, stages=standings)


def _dry_run(recipe: Recipe, out: Path, switches: Switches) -> RunResult:
    """Decide, and list what is wrong with the inputs of the stages that would be built."""
    if problems := check_references(recipe):  # without its inputs no stage has a state
        return RunResult(recipe.name, out / recipe.name, {}, dry=True, problems=problems)
    decided = _decided(recipe, out, switches)
    steps = _to_build(recipe, decided)
    found = estimates(recipe, {step.name for step in steps})
    return replace(decided, dry=True, problems=check_inputs(recipe, steps), estimates=found)


def _to_build(recipe: Recipe, decided: RunResult) -> list[Step]:
    """Return the stages to be built with the recipe's own sources; `Standing.step` has them as recorded."""
    return [recipe.steps[name] for name, each in decided.decisions.items() if each.action in MAKES]


def _raise_first(recipe: Recipe, problems: Sequence[Problem]) -> None:
    """Raise the first problem; its hint says how many more there are."""
    if problems:
        error, others = problems[0].error, len(problems) - 1
        if others:
            listed = f"`meditron run {recipe.path} --dry-run` lists {others} more"
            error.hint = f"{error.hint}; {listed}" if error.hint else listed
        raise error


def _decided(recipe: Recipe, out: Path, switches: Switches) -> RunResult:
    standings = plan(recipe, out)
    decisions = {decision.standing.name: decision for decision in decide(recipe, standings, switches)}
    return RunResult(recipe.name, out / recipe.name, standings, decisions)


def _remove(folder: Path, doomed: Sequence[Path]) -> None:
    """Remove stages that are to be rebuilt, by renaming first: a kill leaves them whole or gone."""
    for stage in doomed:
        stage.rename(folder / f"{_TRASH}{stage.name}-{time.time_ns()}")
    for trash in folder.glob(f"{_TRASH}*"):
        remove(trash)


def _advance(
    recipe: Recipe, decision: Decision, standings: Mapping[str, Standing], switches: Switches
) -> Standing:
    """Bring one stage to where it is whole; what it stands on is, by now."""
    step = recipe.steps[decision.standing.name]
    standing = stand(recipe, step, decision.standing.folder, standings)
    now = judge(standing, switches)
    refuse(recipe, [now])
    return standing if now.action == "keep" else _build(recipe, standing, standings)


def _build(recipe: Recipe, standing: Standing, standings: Mapping[str, Standing]) -> Standing:
    """Do the work of one stage; its manifest is the last thing written."""
    name, folder, step = standing.name, standing.folder, standing.step
    goes_on = standing.begun is not None
    info(f"{name}: {'goes on' if goes_on else 'begins'}")
    asked = payload(step, standing.digests)
    with Attempt(folder, asked) as attempt:
        remove_temporaries(folder)
        inputs = {key: _artifact(standing, key, standings) for key in standing.inputs}
        began = time.monotonic()
        metrics = _work(step, inputs, folder)
        seconds = round(time.monotonic() - began, 3)
        files = [record for record in record_files(folder) if record.path not in BESIDE]
        if not any(record.content for record in files):
            raise MeditronError(f"{name} ended without leaving a file in {folder}")
        began_at = datetime.fromisoformat(attempt.begun.started)
        metrics = {**metrics, "seconds": seconds, "attempts": attempt.begun.attempts}
        write_manifest(folder, manifest_of(standing, asked, metrics, files, began_at, standings))
    attempt.done()
    info(f"{name}: done in {duration(seconds)}")
    return replace(stand(recipe, recipe.steps[name], folder, standings), state="built")


def _work(step: Step, inputs: Mapping[str, Artifact], folder: Path) -> dict[str, Any]:
    """Do a stage's work; MeditronError that names the keys to lower where it runs out of memory."""
    try:
        return step.stage.load()(step.config, inputs, folder)
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        lower = [f"{step.name}.{key}" for key in _MEMORY_KEYS if getattr(step.config, key, None) is not None]
        hint = f"lower {', '.join(lower)}" if lower else "a machine with more memory is needed"
        raise MeditronError(
            f"{step.name}: out of memory: {str(error) or 'an allocation failed'}", hint=hint
        ) from error


def _artifact(standing: Standing, key: str, standings: Mapping[str, Standing]) -> Artifact:
    """One input of a stage; what comes from outside is fetched now, as it is needed now."""
    reference, digest = standing.inputs[key], str(standing.digests[key])
    if reference.source is not None:
        name = reference.text if reference.text == "base" else key
        path, selector = fetched(reference.source)
        return Artifact(name, path, digest, selector=selector)
    below = standings[str(reference.step)]
    return Artifact(below.name, below.folder, digest, below.manifest, reference.selector)


def _report(recipe: Recipe, folder: Path, standings: Mapping[str, Standing]) -> None:
    """Write the run's report where a stage is newer than it, which a kill may have left so."""
    manifests = [stage.folder / MANIFEST for stage in standings.values() if stage.manifest]
    written = (folder / HTML).stat().st_mtime_ns if (folder / HTML).is_file() else 0
    if any(manifest.stat().st_mtime_ns > written for manifest in manifests):
        stages = [(stage.name, stage.step.stage.kind, stage.folder) for stage in standings.values()]
        render(recipe.name, folder, stages)
