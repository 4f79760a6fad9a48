"""Tables of a run and of evaluations for the terminal.

They are a command's answer, on stdout. With `--json` they go to stderr, beside the progress.
"""

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from meditron.core.console import info, warn
from meditron.core.machine import describe, free_disk_bytes
from meditron.core.redaction import without_digest
from meditron.core.units import format_bytes, format_count, format_duration
from meditron.recipe.drift import abbreviate, flat_items
from meditron.recipe.result import RunResult
from meditron.report import evaluation_tables, methods
from meditron.report.evaluation_tables import ResultTable
from meditron.report.run_report import HTML
from meditron.report.terminal import print_table
from meditron.store.results import Comparison, EvaluationResult

__all__ = ["decisions", "differences", "drift", "evaluation", "outcome", "stages"]


_IN_OTHER_TABLES = (
    "seconds",
    "attempts",
    "perplexity",
    "tasks",
    "baselines",
    "fidelity",
    "differences",
    "ancestry",
)
"""Metrics that have a column or a table of their own."""
_IN_REPORT = ("peak_rss", "seed", "resamples", "overlap", "training_documents_compared")
"""Metrics of how a stage worked; they are left to the report, to keep a stage on one line."""


def stages(result: RunResult, *, answer: bool) -> None:
    """Print name, state, time and the first metrics of each stage."""
    rows = [
        (name, stage.state, _seconds(stage.metrics), stage.failure or _figures(stage.metrics))
        for name, stage in result.stages.items()
    ]
    print_table(("stage", "state", "time", "metrics"), rows, title=str(result.folder), answer=answer)


def drift(result: RunResult, *, answer: bool) -> None:
    """Print the fields of config and inputs that changed since a stage was built."""
    rows = [
        (name, difference.field, abbreviate(difference.was), abbreviate(difference.now))
        for name, stage in result.stages.items()
        for difference in stage.drift
    ]
    if rows:
        title = "Out of date: these fields changed after the stage was built"
        print_table(("stage", "field", "was", "now"), rows, title=title, answer=answer)


def decisions(result: RunResult, *, answer: bool) -> None:
    """Print the plan of a run: each stage's action, inputs and reason, estimates, and unusable inputs."""
    rows = [
        (
            name,
            decision.action,
            ", ".join(_source(reference.text) for reference in decision.status.inputs.values()),
            decision.why,
        )
        for name, decision in result.decisions.items()
    ]
    if rows:
        print_table(("stage", "action", "inputs", "why"), rows, title=str(result.folder), answer=answer)
    _estimates(result, answer=answer)
    for problem in result.problems:
        hint = f" ({problem.error.hint})" if problem.error.hint else ""
        warn(f"{problem.stage}.{problem.input}: {problem.error.message}{hint}")
    if result.problems:
        info(f"Nothing was built: {len(result.problems)} of the inputs cannot be used.")


def _estimates(result: RunResult, *, answer: bool) -> None:
    """Print rough tokens, time, disk and memory of the stages to build, and warn if the machine has less."""
    if not result.estimates:
        return
    rows = [
        (
            name,
            "" if estimate.tokens is None else format_count(estimate.tokens),
            "" if estimate.seconds is None else format_duration(estimate.seconds),
            "" if estimate.disk is None else format_bytes(estimate.disk),
            "" if estimate.memory is None else format_bytes(estimate.memory),
        )
        for name, estimate in result.estimates.items()
    ]
    estimates = result.estimates.values()
    seconds = sum(estimate.seconds or 0 for estimate in estimates)
    disk = sum(estimate.disk or 0 for estimate in estimates)
    memory = max(estimate.memory or 0 for estimate in estimates)  # stages run one after another
    rows.append(("all", "", format_duration(seconds), format_bytes(disk), format_bytes(memory)))
    title = "Estimates (rough; empty: known after the inputs are downloaded)"
    print_table(("stage", "tokens", "time", "disk", "memory"), rows, title=title, answer=answer)
    free, installed = free_disk_bytes(result.folder), describe()["memory_bytes"]
    if disk > free:
        warn(
            f"the run writes about {format_bytes(disk)}, but only {format_bytes(free)} are free; "
            "choose another --out"
        )
    if installed is not None and memory > installed:
        warn(
            f"the run needs about {format_bytes(memory)} of memory, but the machine "
            f"has {format_bytes(installed)}; "
            "lower batch_size (or set micro_batch_size) and sequence_length"
        )


def outcome(result: RunResult, *, answer: bool, full: bool = False) -> None:
    """Print a run's stages, its scores, and the next command; with `full` every table of the results."""
    stages(result, answer=answer)
    if not result.built:
        info("Nothing to do: all stages are up to date.")
    for scores in result.evaluations.values():
        _print(evaluation_tables.overview_table(scores, result.domains), answer=answer)
        if full:
            _details(scores, result, answer=answer)
        if truncated := methods.truncation_sentence(scores):
            info(truncated)
    report = result.folder / HTML
    if report.is_file():
        more = "" if full or not result.evaluations else " (more tables: --full)"
        info(f"report: {report}{more}")
    if result.quantized is not None:
        info(f"next:   {shlex.join(['meditron', 'chat', result.quantized])}")
    elif result.model is not None:
        command = ["meditron", "generate", str(result.model), "Hypertension is treated with"]
        info(f"next:   {shlex.join(command)}")


def _details(scores: EvaluationResult, result: RunResult, *, answer: bool) -> None:
    """Print the change by each step, the paired differences, and fidelity."""
    steps = evaluation_tables.step_table(scores, evaluation_tables.parent_models(scores, result.origins))
    if steps.rows:
        _print(steps, answer=answer)
    differences(scores.differences, answer=answer)
    if scores.fidelity:
        _print(evaluation_tables.fidelity_table(scores), answer=answer)


def evaluation(result: EvaluationResult, *, answer: bool) -> None:
    """Print the scores of `meditron evaluate`: tasks, or fidelity."""
    if result.tasks:
        _print(evaluation_tables.score_table(result), answer=answer)
        _print(evaluation_tables.rule_table(result), answer=answer)
    if result.fidelity:
        _print(evaluation_tables.fidelity_table(result), answer=answer)
    differences(result.differences, answer=answer)


def differences(comparisons: Sequence[Comparison], *, answer: bool) -> None:
    """Print paired differences with their intervals."""
    if comparisons:
        _print(evaluation_tables.difference_table(comparisons), answer=answer)


def _print(table: ResultTable, *, answer: bool) -> None:
    print_table(table.headers, table.rows, title=table.caption, answer=answer)


def _seconds(metrics: Mapping[str, Any]) -> str:
    return format_duration(metrics["seconds"]) if "seconds" in metrics else ""


def _figures(metrics: Mapping[str, Any]) -> str:
    """Return the first numbers of a stage's metrics, nested ones under dotted names."""
    skipped = (*_IN_OTHER_TABLES, *_IN_REPORT)
    plain = [
        (name, value)
        for name, value in flat_items(metrics)
        if name.partition(".")[0] not in skipped and isinstance(value, int | float)
    ]
    files = [f"{file['type']} {format_bytes(file['bytes'])}" for file in metrics.get("files", ())]
    return ", ".join([*files, *(f"{name} {_figure(value)}" for name, value in plain[:4])])


def _figure(value: float) -> str:
    if isinstance(value, bool):
        return json.dumps(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _source(text: str) -> str:
    """Shorten a source, without its expected hash."""
    return abbreviate(without_digest(text))
