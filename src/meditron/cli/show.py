"""Tables for people: how stages stand, what differs, what came out.

They are a verb's answer, on stdout, unless it answers in JSON: then they go to stderr, beside the progress.
"""

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from meditron.core.console import info, table, warn
from meditron.core.machine import describe, free_disk
from meditron.core.units import amount, duration, size
from meditron.recipe.drift import leaves, short
from meditron.recipe.report import HTML
from meditron.recipe.result import RunResult
from meditron.report import evaluation_tables, number_format
from meditron.store.results import Comparison, EvaluationResult

__all__ = ["decisions", "differences", "drift", "evaluation", "outcome", "stages"]


_TOLD = ("seconds", "attempts", "perplexity", "tasks", "baselines", "fidelity", "differences", "ancestry")
"""Metrics that have a column or a table of their own."""
_ASIDE = ("peak_rss", "seed", "resamples", "overlap", "training_documents_compared")
"""Metrics of how a stage worked, which are in the report: a line has room for what came out."""


def stages(result: RunResult, *, answer: bool) -> None:
    """Name, state, seconds and the plain figures among the metrics of each stage."""
    rows = [
        (name, stage.state, _seconds(stage.metrics), stage.failure or _figures(stage.metrics))
        for name, stage in result.stages.items()
    ]
    table(("stage", "state", "time", "metrics"), rows, title=str(result.folder), answer=answer)


def drift(result: RunResult, *, answer: bool) -> None:
    """Field by field, what stale stages were made from and what is asked for now."""
    rows = [
        (name, difference.field, short(difference.was), short(difference.now))
        for name, stage in result.stages.items()
        for difference in stage.drift
    ]
    if rows:
        title = "made from something else than is asked for now"
        table(("stage", "field", "was", "now"), rows, title=title, answer=answer)


def decisions(result: RunResult, *, answer: bool) -> None:
    """What a run would do with each stage, from what, and why."""
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
        table(("stage", "action", "inputs", "why"), rows, title=str(result.folder), answer=answer)
    _estimates(result, answer=answer)
    for problem in result.problems:
        hint = f" ({problem.error.hint})" if problem.error.hint else ""
        warn(f"{problem.stage}.{problem.input}: {problem.error.message}{hint}")
    if result.problems:
        info(f"{len(result.problems)} of the inputs cannot be used; nothing was built")


def _estimates(result: RunResult, *, answer: bool) -> None:
    """Rough tokens, time, disk and memory of the stages to build, beside what the machine has."""
    if not result.estimates:
        return
    rows = [
        (
            name,
            "" if estimate.tokens is None else amount(estimate.tokens),
            "" if estimate.seconds is None else duration(estimate.seconds),
            "" if estimate.disk is None else size(estimate.disk),
            "" if estimate.memory is None else size(estimate.memory),
        )
        for name, estimate in result.estimates.items()
    ]
    every = result.estimates.values()
    seconds, disk = sum(e.seconds or 0 for e in every), sum(e.disk or 0 for e in every)
    memory = max(e.memory or 0 for e in every)
    rows.append(("all", "", duration(seconds), size(disk), size(memory)))
    free, installed = free_disk(result.folder), describe()["memory_bytes"]
    title = "Estimates (rough; empty: known once the inputs are downloaded)"
    table(("stage", "tokens", "time", "disk", "memory"), rows, title=title, answer=answer)
    if disk > free:
        warn(f"about {size(disk)} will be written, and {size(free)} are free; write elsewhere with --out")
    if installed is not None and memory > installed:
        warn(
            f"about {size(memory)} of memory are needed, and the machine has {size(installed)}; "
            "lower batch_size (or set micro_batch_size) and sequence_length"
        )


def outcome(result: RunResult, *, answer: bool, full: bool = False) -> None:
    """Print a run's stages, its scores, and the next command; with `full` every table of the results."""
    stages(result, answer=answer)
    if not result.built:
        info("Nothing to do: all stages are up to date.")
    for found in result.evaluations.values():
        _table(evaluation_tables.overview(found, result.domains), answer=answer)
        if full:
            _details(found, result, answer=answer)
        if truncated := evaluation_tables.truncated(found):
            info(truncated)
    report = result.folder / HTML
    if report.is_file():
        more = "" if full or not result.evaluations else " (differences, fidelity, methods; or --full)"
        info(f"report: {report}{more}")
    if result.quantized is not None:
        info(f"next:   {shlex.join(['meditron', 'chat', result.quantized])}")
    elif result.model is not None:
        command = ["meditron", "generate", str(result.model), "Hypertension is treated with"]
        info(f"next:   {shlex.join(command)}")


def _details(found: EvaluationResult, result: RunResult, *, answer: bool) -> None:
    """Print the change from each step to the next, the paired differences, and fidelity."""
    steps = evaluation_tables.steps(found, evaluation_tables.origins(found, result.origins))
    if steps.rows:
        _table(steps, answer=answer)
    differences(found.differences, answer=answer)
    if found.fidelity:
        _table(evaluation_tables.fidelity(found), answer=answer)


def evaluation(found: EvaluationResult, *, answer: bool) -> None:
    """What one model was measured at without a recipe: tasks, or fidelity."""
    if found.tasks:
        _table(_answers(found), answer=answer)
        _table(evaluation_tables.rules(found), answer=answer)
    if found.fidelity:
        _table(evaluation_tables.fidelity(found), answer=answer)
    differences(found.differences, answer=answer)


def differences(found: Sequence[Comparison], *, answer: bool) -> None:
    """Paired differences with their intervals."""
    if found:
        _table(evaluation_tables.differences(found), answer=answer)


def _answers(found: EvaluationResult) -> evaluation_tables.Table:
    """How the model answered: what it was asked, and how much of its belief that was."""
    rows = [
        (
            score.task,
            score.model,
            found.engines[score.model],
            score.method,
            score.template,
            score.prompt_form,
            str(score.shots),
            f"{score.truncated} of {score.n}",
            number_format.percent(score.accuracy),
            number_format.interval(score.interval, number_format.percent),
            number_format.percent(score.parse_rate),
            number_format.percent(score.option_probability_mass),
        )
        for scores in found.tasks.values()
        for score in scores.values()
    ]
    how = ("task", "model", "run by", "method", "template", "prompt form", "shots", "truncated")
    headers = (*how, "accuracy", "95 % interval")
    return evaluation_tables.Table("Answers", (*headers, "parse rate", "answer mass"), rows)


def _table(drawn: evaluation_tables.Table, *, answer: bool) -> None:
    table(drawn.headers, drawn.rows, title=drawn.caption, answer=answer)


def _seconds(metrics: Mapping[str, Any]) -> str:
    return duration(metrics["seconds"]) if "seconds" in metrics else ""


def _figures(metrics: Mapping[str, Any]) -> str:
    """The first plain figures, the nested ones under dotted names; all of them are in the report."""
    told = [(name, value) for name, value in leaves(metrics) if name.partition(".")[0] not in _TOLD + _ASIDE]
    plain = [(name, value) for name, value in told if isinstance(value, int | float)]
    files = [f"{file['type']} {size(file['bytes'])}" for file in metrics.get("files", ())]
    return ", ".join([*files, *(f"{name} {_figure(value)}" for name, value in plain[:4])])


def _figure(value: float) -> str:
    if isinstance(value, bool):
        return json.dumps(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _source(text: str) -> str:
    """A source in a few words: without its promised hash, which is long."""
    return short(text.partition("@sha256:")[0])
