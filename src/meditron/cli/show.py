"""Tables for people: how stages stand, what differs, what came out.

They are a verb's answer, on stdout, unless it answers in JSON: then they go to stderr, beside the progress.
"""

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from meditron.ground.console import say, table
from meditron.ground.units import duration
from meditron.recipe.drift import leaves, short
from meditron.recipe.report import HTML
from meditron.recipe.run import RunResult
from meditron.store.results import EvaluationResult

__all__ = ["decisions", "differences", "drift", "evaluation", "outcome", "stages"]


_TOLD = ("seconds", "attempts", "perplexity", "differences")
"""Metrics that have a column or a table of their own."""


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
            ", ".join(_source(reference.text) for reference in decision.standing.inputs.values()),
            decision.why,
        )
        for name, decision in result.decisions.items()
    ]
    table(("stage", "would", "from", "why"), rows, title=str(result.folder), answer=answer)


def outcome(result: RunResult, *, answer: bool) -> None:
    """What a run made, its results, and the command to type next."""
    stages(result, answer=answer)
    if not result.built:
        say("nothing is to be done: every stage asked for is there")
    for found in result.evaluations.values():
        evaluation(found, result.domains, answer=answer)
    report = result.folder / HTML
    if report.is_file():
        say(f"report: {report}")
    if result.model is not None:
        command = ["meditron", "generate", str(result.model), "Hypertension is treated with"]
        say(f"next:   {shlex.join(command)}")


def evaluation(found: EvaluationResult, domains: Mapping[str, str], *, answer: bool) -> None:
    """Perplexities and paired differences with their intervals; `domains` tells what a source is about."""
    rows = [
        (
            model,
            source,
            domains.get(source, ""),
            record.documents,
            f"{record.tokens:,}",
            f"{record.perplexity:.2f}",
            _interval(record.interval, ".2f"),
        )
        for model, sources in found.perplexity.items()
        for source, record in sources.items()
    ]
    if rows:
        headers = ("model", "source", "domain", "documents", "tokens", "perplexity", "95 % interval")
        table(headers, rows, title="held-out perplexity", answer=answer)
    differences([record.model_dump(mode="json") for record in found.differences], answer=answer)


def differences(found: Sequence[Mapping[str, Any]], *, answer: bool) -> None:
    """Paired differences with their intervals."""
    rows = [
        (
            f"{record['b']} - {record['a']}",
            record["what"],
            record["n"],
            f"{record['difference']:+.4f}",
            _interval(record["interval"], "+.4f"),
            f"{record['p']:.4f}",
            f"{record['detectable']:.4f}",
        )
        for record in found
    ]
    if rows:
        headers = ("difference", "of", "n", "mean", "95 % interval", "p", "detectable")
        title = "paired differences (below zero: the first is better)"
        table(headers, rows, title=title, answer=answer)


def _interval(ends: Sequence[float], form: str) -> str:
    low, high = ends
    return f"[{low:{form}}, {high:{form}}]"


def _seconds(metrics: Mapping[str, Any]) -> str:
    return duration(metrics["seconds"]) if "seconds" in metrics else ""


def _figures(metrics: Mapping[str, Any]) -> str:
    """The first plain figures, the nested ones under dotted names; all of them are in the report."""
    told = [(name, value) for name, value in leaves(metrics) if name.partition(".")[0] not in _TOLD]
    plain = [(name, value) for name, value in told if isinstance(value, int | float)]
    return ", ".join(f"{name} {_figure(value)}" for name, value in plain[:4])


def _figure(value: float) -> str:
    if isinstance(value, bool):
        return json.dumps(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _source(text: str) -> str:
    """A source in a few words: without its promised hash, which is long."""
    return short(text.partition("@sha256:")[0])
