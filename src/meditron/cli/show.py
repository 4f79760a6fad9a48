"""Printing of the tables of runs and evaluations on the terminal.

The tables are a command's answer and go to stdout. With `--json` they go to stderr, like the progress.
"""

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from meditron.core.console import error, info, warn
from meditron.core.machine import describe, free_disk_bytes
from meditron.core.redaction import without_digest
from meditron.core.units import format_bytes, format_count, format_duration
from meditron.recipe.drift import abbreviate, flat_items
from meditron.recipe.result import RunResult
from meditron.report import evaluation_tables, methods
from meditron.report.contamination import contamination_table
from meditron.report.evaluation_tables import ResultTable
from meditron.report.explanation import effect_table, explanation_sentence, flip_table
from meditron.report.quantization import FileLoss, measured_file_costs, recommendation
from meditron.report.quantization_tables import file_tables
from meditron.report.robustness import robustness_tables
from meditron.report.rubrics import rubric_difference_table, rubric_tables_by_set
from meditron.report.run_report import HTML
from meditron.report.terminal import print_table
from meditron.store.explanations import Explanation
from meditron.store.results import Comparison, EvaluationResult

__all__ = [
    "print_differences",
    "print_drift",
    "print_evaluation",
    "print_explanation",
    "print_file_losses",
    "print_outcome",
    "print_plan",
    "print_stages",
]


_IN_OTHER_TABLES = (
    "seconds",
    "attempts",
    "perplexity",
    "tasks",
    "baselines",
    "fidelity",
    "differences",
    "rubrics",
    "rubric_differences",
    "ancestry",
)
"""Metrics that other columns or tables show, so that the column of metrics leaves them out."""
_IN_REPORT = ("peak_rss", "seed", "resamples", "overlap", "training_documents_compared")
"""Metrics that only the report shows, so that each stage fits on one line."""


def print_stages(result: RunResult, *, answer: bool) -> None:
    """Print a table with the name, state, time and first metrics of each stage."""
    rows = [
        (
            name,
            stage.state_text,
            _format_seconds(stage.metrics),
            stage.failure or _format_metrics(stage.metrics),
        )
        for name, stage in result.stages.items()
    ]
    print_table(("stage", "state", "time", "metrics"), rows, title=str(result.folder), answer=answer)


def print_drift(result: RunResult, *, answer: bool) -> None:
    """Print the fields of config and inputs that changed since a stage was built."""
    rows = [
        (name, difference.field, abbreviate(difference.old_value), abbreviate(difference.new_value))
        for name, stage in result.stages.items()
        for difference in stage.drift
    ]
    if rows:
        title = "Out of date: these fields changed after the stage was built"
        print_table(("stage", "field", "was", "now"), rows, title=title, answer=answer)


def print_plan(result: RunResult, *, answer: bool) -> None:
    """Print a dry run's plan: each stage's action, inputs and reason, estimates, and inputs with problems."""
    rows = [
        (
            name,
            decision.action,
            ", ".join(_shorten_source(reference.text) for reference in decision.status.inputs.values()),
            decision.why,
        )
        for name, decision in result.decisions.items()
    ]
    if rows:
        print_table(("stage", "action", "inputs", "why"), rows, title=str(result.folder), answer=answer)
    _print_fetches(result, answer=answer)
    _print_estimates(result, answer=answer)
    for problem in result.problems:
        error(f"{problem.stage}.{problem.input}: {problem.error.message}", problem.error.hint)
    if result.problems:
        info(f"Nothing was built: {len(result.problems)} of the inputs cannot be used.")


def _print_fetches(result: RunResult, *, answer: bool) -> None:
    """Print what would be downloaded for each collection; warn if it does not fit on the disk."""
    if not result.fetches:
        return
    rows = [
        (
            preview.source,
            format_count(preview.missing_files) if preview.files else "",
            "" if preview.missing_bytes is None else format_bytes(preview.missing_bytes),
            format_bytes(preview.free_bytes),
        )
        for preview in result.fetches.values()
    ]
    print_table(("collection", "files", "download", "free disk"), rows, title="To fetch", answer=answer)
    for preview in result.fetches.values():
        if preview.note:
            info(f"{preview.source}: {preview.note}")
    needed = sum(preview.missing_bytes or 0 for preview in result.fetches.values())
    free = min(preview.free_bytes for preview in result.fetches.values())
    if needed > free:
        warn(
            f"{format_bytes(needed)} are to be downloaded, but only {format_bytes(free)} are free; "
            "set MEDITRON_CACHE to a folder on a larger disk"
        )


def _print_estimates(result: RunResult, *, answer: bool) -> None:
    """Print the estimated cost of the stages to build; warn if the machine has too little disk or memory."""
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
    title = "Estimates for this machine (rough; empty: known after the inputs are downloaded)"
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
        info("on a cluster: `meditron plan RECIPE --cluster FILE` gives memory per GPU, time and cost")


def print_outcome(result: RunResult, *, answer: bool, full: bool = False) -> None:
    """Print a run's stages, its scores, and the next command; with `full` every table of the results."""
    print_stages(result, answer=answer)
    if not result.built_stages:
        info("Nothing to do: all stages are up to date.")
    for scores in result.evaluations.values():
        _print_result_table(evaluation_tables.overview_table(scores, result.source_domains), answer=answer)
        _print_contamination(scores, answer=answer)
        for tables in rubric_tables_by_set(scores).values():
            _print_result_table(tables[0], answer=answer)
        if full:
            _print_details(scores, result, answer=answer)
        if truncated := methods.truncation_sentence(scores):
            info(truncated)
    report = result.folder / HTML
    if report.is_file():
        more = "" if full or not result.evaluations else " (more tables: --full)"
        info(f"report: {report}{more}")
    if result.last_quantized_model is not None:
        info(f"next:   {shlex.join(['meditron', 'chat', result.last_quantized_model])}")
    elif result.last_model is not None:
        command = ["meditron", "generate", str(result.last_model), "Hypertension is treated with"]
        info(f"next:   {shlex.join(command)}")


def _print_details(scores: EvaluationResult, result: RunResult, *, answer: bool) -> None:
    """Print the change that each stage made, the paired differences, and the fidelity."""
    parents = evaluation_tables.parent_models(scores, result.input_references)
    steps = evaluation_tables.stage_change_table(scores, parents)
    if steps.rows:
        _print_result_table(steps, answer=answer)
    print_differences(scores.differences, answer=answer)
    for table in robustness_tables(scores):
        _print_result_table(table, answer=answer)
    _print_rubrics(scores, answer=answer)
    if scores.fidelity:
        _print_result_table(evaluation_tables.fidelity_table(scores), answer=answer)


def print_evaluation(result: EvaluationResult, *, answer: bool) -> None:
    """Print the scores of `meditron evaluate`: tasks, or fidelity."""
    if result.tasks:
        _print_result_table(evaluation_tables.score_table(result), answer=answer)
        _print_result_table(evaluation_tables.rule_table(result), answer=answer)
        for table in robustness_tables(result):
            _print_result_table(table, answer=answer)
        _print_contamination(result, answer=answer)
    _print_rubrics(result, answer=answer)
    if result.fidelity:
        _print_result_table(evaluation_tables.fidelity_table(result), answer=answer)
    print_differences(result.differences, answer=answer)


def print_file_losses(
    folder: str, files: Sequence[Mapping[str, Any]], losses: Mapping[str, FileLoss], *, answer: bool
) -> None:
    """Print size, memory and loss of the files of a folder, and the recommended one."""
    for table in file_tables(files, losses, f"Files of {folder}"):
        _print_result_table(table, answer=answer)
    info(recommendation(files, measured_file_costs(losses)))


def _print_rubrics(result: EvaluationResult, *, answer: bool) -> None:
    """Print the scores of each set of rubrics, and their paired differences."""
    for tables in rubric_tables_by_set(result).values():
        for table in tables:
            _print_result_table(table, answer=answer)
    if result.rubric_differences:
        _print_result_table(rubric_difference_table(result.rubric_differences), answer=answer)


def _print_contamination(result: EvaluationResult, *, answer: bool) -> None:
    """Print the accuracy on questions that the training corpus contained, if it was searched for them."""
    table = contamination_table(result)
    if table.rows:
        _print_result_table(table, answer=answer)


def print_differences(comparisons: Sequence[Comparison], *, answer: bool) -> None:
    """Print paired differences with their intervals."""
    if comparisons:
        _print_result_table(evaluation_tables.difference_table(comparisons), answer=answer)


def print_explanation(explanation: Explanation) -> None:
    """Print why two results differ: a sentence, the effect of each factor, and the questions that flip."""
    info(explanation_sentence(explanation))
    if explanation.effects:
        _print_result_table(effect_table(explanation), answer=True)
    flips = flip_table(explanation)
    if flips.rows:
        _print_result_table(flips, answer=True)


def _print_result_table(table: ResultTable, *, answer: bool) -> None:
    print_table(table.headers, table.rows, title=table.caption, answer=answer)


def _format_seconds(metrics: Mapping[str, Any]) -> str:
    return format_duration(metrics["seconds"]) if "seconds" in metrics else ""


def _format_metrics(metrics: Mapping[str, Any]) -> str:
    """Format the first numbers among a stage's metrics; nested metrics have dotted names."""
    skipped = (*_IN_OTHER_TABLES, *_IN_REPORT)
    plain = [
        (name, value)
        for name, value in flat_items(metrics)
        if name.partition(".")[0] not in skipped and isinstance(value, int | float)
    ]
    files = [f"{file['type']} {format_bytes(file['bytes'])}" for file in metrics.get("files", ())]
    return ", ".join([*files, *(f"{name} {_format_metric(value)}" for name, value in plain[:4])])


def _format_metric(value: float) -> str:
    if isinstance(value, bool):
        return json.dumps(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _shorten_source(text: str) -> str:
    """Shorten a source for a table, and leave out its expected SHA-256."""
    return abbreviate(without_digest(text))
