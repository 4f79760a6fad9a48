"""Running a recipe: each missing or unfinished stage is built, in order. A killed run can be continued."""

import fcntl
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from meditron.core.console import info
from meditron.core.errors import MeditronError, RecipeError, SourceError
from meditron.core.units import format_duration
from meditron.parallel.config import ParallelConfig
from meditron.parallel.constraints import require_possible_layout
from meditron.parallel.shapes import LayoutShape
from meditron.parallel.task import ONE_PROCESS, Ranks, StageTask
from meditron.recipe.build import StageBuild
from meditron.recipe.decide import BUILDING, RunOptions, decide_actions, decide_stage, raise_on_drift
from meditron.recipe.estimate import estimate_stages, model_config
from meditron.recipe.preflight import (
    Problem,
    check_dependents,
    check_inputs,
    check_references,
    preview_fetches,
)
from meditron.recipe.result import RUNS, RunResult
from meditron.recipe.schema import Recipe, StageSpec
from meditron.recipe.stage_status import StageStatus, recipe_status, stage_status
from meditron.report.run_report import HTML, write_run_report
from meditron.store.file_lock import open_lock_file
from meditron.store.files import remove_folders, remove_temporaries
from meditron.store.manifest import FILE_NAME as MANIFEST
from meditron.train.config import TrainingConfig

__all__ = ["exclusive_run", "run_recipe"]


def run_recipe(
    recipe: Recipe,
    *,
    out: Path = RUNS,
    only: str | None = None,
    until: str | None = None,
    rebuild: Sequence[str] = (),
    accept_drift: bool = False,
    dry_run: bool = False,
    ranks: Ranks = ONE_PROCESS,
) -> RunResult:
    """Build the stages of a recipe that are not up to date, under `out/<recipe>`.

    A finished stage that is up to date is kept; an unfinished stage is continued. With `dry_run` the actions
    are decided, the inputs are checked and the cost is estimated, but nothing is built. Stages that train
    or evaluate work on all `ranks`; nothing is started for a run that has none of them to build. The other
    options are those of `RunOptions`.

    Raises:
        DriftError: a stage is out of date, and neither `rebuild` nor `accept_drift` applies to it. The stage
            is left as it is.
        RecipeError: the layout of a training does not fit the number of ranks; nothing was built.
        SourceError: an input is missing; nothing was built.
        InputError: an input cannot be read; nothing was built.
    """
    options = RunOptions(only, until, tuple(rebuild), accept_drift)
    if dry_run:
        return _dry_run(recipe, out, options, ranks)
    # A wrong reference is reported before the run's folder is created.
    _raise_first_problem(recipe, check_references(recipe))
    folder = out / recipe.name
    with exclusive_run(folder):
        plan = _plan(recipe, out, options)
        raise_on_drift(recipe, list(plan.decisions.values()))
        specs = _specs_to_build(recipe, plan)
        _check_layouts(recipe, specs, ranks.size)
        _raise_first_problem(recipe, check_inputs(recipe, specs))
        # The stages to rebuild are removed before any work. If the run is interrupted, the same command
        # without --rebuild then continues it.
        remove_temporaries(folder, recursive=False)
        remove_folders(d.status.folder for d in plan.decisions.values() if d.action == "rebuild")
        statuses = dict(plan.stages)
        for number, (name, planned) in enumerate(plan.decisions.items(), start=1):
            if planned.action == "leave":
                continue
            spec, stage_folder = recipe.stages[name], planned.status.folder
            # The action is decided again, because now the digests of the inputs that this run built are
            # known.
            status = statuses[name] = stage_status(recipe, spec, stage_folder, statuses)
            decision = decide_stage(status, options)
            raise_on_drift(recipe, [decision])
            if decision.action == "keep":
                _raise_first_problem(recipe, check_dependents(recipe, specs, name, status.metrics))
                continue
            _build_stage(status, statuses, f"stage {number} of {len(recipe.stages)}: {name}", ranks)
            statuses[name] = replace(stage_status(recipe, spec, stage_folder, statuses), state="built")
            _raise_first_problem(recipe, check_dependents(recipe, specs, name, statuses[name].metrics))
        _write_report(recipe, folder, statuses)
    return replace(plan, stages=statuses)


def _build_stage(status: StageStatus, statuses: Mapping[str, StageStatus], title: str, ranks: Ranks) -> None:
    """Build one stage, or continue it."""
    info(f"{title} (continued)" if status.in_progress else title)
    stage = status.spec.stage
    with StageBuild(status, statuses) as build:
        task = StageTask(stage.work, status.spec.config, build.inputs, status.folder)
        seconds = build.finish(ranks.run(task) if stage.distributed else task.run())
    info(f"{title} finished in {format_duration(seconds)}")


def _dry_run(recipe: Recipe, out: Path, options: RunOptions, ranks: Ranks) -> RunResult:
    """Decide each stage's action; list the problems and the cost of the stages that would be built."""
    problems = check_references(recipe)
    # Missing files leave a plan to print; a reference that names nothing leaves no graph of stages.
    if not all(isinstance(problem.error, SourceError) for problem in problems):
        return RunResult(recipe.name, out / recipe.name, {}, dry_run=True, problems=problems)
    plan = _plan(recipe, out, options, allow_missing_inputs=True)
    specs = _specs_to_build(recipe, plan)
    # One process may plan for a cluster, so only a given number of ranks is compared with the layout.
    _check_layouts(recipe, specs, ranks.size if ranks.size > 1 else None)
    costs = estimate_stages(recipe, {spec.name for spec in specs})
    reported = {problem.error.message for problem in problems}
    problems += [each for each in check_inputs(recipe, specs) if each.error.message not in reported]
    fetches, unreachable = preview_fetches(recipe, specs)
    problems += [each for each in unreachable if each.error.message not in reported]
    for name, decision in plan.decisions.items():
        if decision.action == "keep":
            problems += check_dependents(recipe, specs, name, decision.status.metrics)
    return replace(plan, dry_run=True, problems=problems, estimates=costs, fetches=fetches)


def _plan(recipe: Recipe, out: Path, options: RunOptions, *, allow_missing_inputs: bool = False) -> RunResult:
    statuses = recipe_status(recipe, out, allow_missing_inputs=allow_missing_inputs)
    return RunResult(recipe.name, out / recipe.name, statuses, decide_actions(recipe, statuses, options))


def _specs_to_build(recipe: Recipe, plan: RunResult) -> list[StageSpec]:
    """Return the stages to be built, with sources as written in the recipe, including their secrets."""
    return [recipe.stages[name] for name, each in plan.decisions.items() if each.action in BUILDING]


def _check_layouts(recipe: Recipe, specs: Sequence[StageSpec], ranks: int | None) -> None:
    """Raise RecipeError if the layout of a distributed stage fits neither the ranks nor the model.

    With `ranks` None a layout may have any number of ranks. A model that is not on this machine yet is
    checked by the training itself.
    """
    for spec in specs:
        parallel = getattr(spec.config, "parallel", None)
        if not spec.stage.distributed or not isinstance(parallel, ParallelConfig):
            continue
        try:
            layout = parallel.shape_on(1) if ranks is None else parallel.resolve(ranks)
            _check_model_layout(recipe, spec, layout)
        except RecipeError as error:
            for each in (error, *error.further_errors):
                each.message = f"{spec.name}: {each.message}"
            error.stage = spec.name
            raise


def _check_model_layout(recipe: Recipe, spec: StageSpec, layout: LayoutShape) -> None:
    config = spec.config
    if isinstance(config, TrainingConfig) and (model := model_config(recipe, spec)) is not None:
        require_possible_layout(
            model,
            layout,
            sequence_length=config.sequence_length,
            batch_size=config.batch_size,
            micro_batch_size=config.micro_batch_size,
            adapter=config.adapter,
            quantized=config.quantized,
        )


def _raise_first_problem(recipe: Recipe, problems: Sequence[Problem]) -> None:
    """Raise the first problem's error; its hint names the place in the recipe and counts further problems."""
    if not problems:
        return
    problem, others = problems[0], len(problems) - 1
    error = problem.error
    error.stage = problem.stage
    hints = [error.hint] if error.hint else []
    if not error.message.startswith(problem.recipe_location):
        hints.append(f"{problem.stage} refers to it at {problem.recipe_location}")
    if others:
        hints.append(f"`meditron run {recipe.path} --dry-run` lists {others} more")
    error.hint = "; ".join(hints) or None
    raise error


def _write_report(recipe: Recipe, folder: Path, statuses: Mapping[str, StageStatus]) -> None:
    """Write the run's report if it is missing or older than a stage's manifest."""
    # A run that was killed after its last stage left an old report, so times are compared.
    manifests = [stage.folder / MANIFEST for stage in statuses.values() if stage.manifest]
    written = (folder / HTML).stat().st_mtime_ns if (folder / HTML).is_file() else 0
    if any(manifest.stat().st_mtime_ns > written for manifest in manifests):
        stages = [(stage.name, stage.spec.stage.kind, stage.folder) for stage in statuses.values()]
        write_run_report(recipe.name, folder, stages)


@contextmanager
def exclusive_run(folder: Path) -> Iterator[None]:
    """Lock a run's folder for this process; MeditronError if another process has locked it."""
    with open_lock_file(folder / ".lock") as descriptor:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 32, 0).decode(errors="replace").strip()
            raise MeditronError(
                f"{folder}: another run is writing here" + (f", process {holder}" if holder else ""),
                hint="wait until it ends, or write elsewhere with --out",
            ) from None
        # The process id in the file is only for the error message of other processes; the kernel's lock is
        # what keeps them out.
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
        yield
