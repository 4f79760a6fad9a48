"""The report page of a training stage."""

from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from meditron.core.units import format_duration
from meditron.report import number_format
from meditron.report.charts import line_chart
from meditron.report.pages import Page

__all__ = ["format_training_metrics", "loss_unit", "write_training_page"]


def write_training_page(
    path: Path,
    title: str,
    rows: Sequence[Mapping[str, Any]],
    result: Mapping[str, Any],
    show: Callable[[Page], None],
) -> None:
    """Write the report page of a training stage.

    Args:
        path: The page.
        title: Its heading.
        rows: The lines of `metrics.jsonl`.
        result: The stage's metrics.
        show: Adds the stage's own sections, before the last one.
    """
    page = Page(title, f"{result['tokens']:,} tokens in {result['steps']:,} steps")
    unit = loss_unit(result)
    events = _events(rows)
    marks = _event_marks(events)
    page.section("Loss")
    page.figure(
        line_chart(_loss_curves(rows), "tokens", unit, marks=marks),
        "Training batches, and held-out data by source." + (_MARKS if marks else ""),
    )
    if result["heldout"]:
        page.table(
            ["held-out source", "before", "after", "change"],
            [
                _loss_change_row(source, before, after)
                for source, (before, after) in result["heldout"].items()
            ],
            f"Loss on held-out data, {unit}",
        )
    page.section("Optimization")
    page.figure(
        # The norm before clipping is drawn, because the clipped norm would be flat at max_grad_norm.
        line_chart({"gradient norm": _curve(rows, "gradient_norm")}, "tokens", "2-norm", marks=marks),
        "Gradient norm before clipping.",
    )
    page.figure(line_chart({"learning rate": _curve(rows, "learning_rate")}, "tokens", ""), "Learning rate.")
    if events:
        _show_events(page, events)
    # The stage's own sections come before the settings, which fewer readers need.
    show(page)
    page.section("Throughput and settings")
    for key, (label, unit, scale) in _SPEEDS.items():
        if curve := [(tokens, value * scale) for tokens, value in _curve(rows, key)]:
            page.figure(line_chart({label: curve}, "tokens", unit), f"{label[0].upper()}{label[1:]}.")
    page.key_values(format_training_metrics(result, _SETTINGS))
    page.text(_MATMUL_SPEED)
    page.write(path)


def loss_unit(metrics: Mapping[str, Any]) -> str:
    """Return the unit of a training's losses, given the stage's metrics: preference tuning has pairs."""
    return "nats per pair" if "pairs" in metrics else "nats per token"


def _loss_curves(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    curves = {"training": _curve(rows, "loss")}
    # Held-out losses are drawn on the same axes: a growing gap to the training loss shows overfitting.
    for row in rows:
        for source, loss in row.get("heldout", {}).items():
            curves.setdefault(f"held out: {source}", []).append((row["tokens"], loss))
    return curves


def _curve(rows: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    # A row may lack a measurement, or have null for one that is not finite.
    points = ((row.get("tokens"), row.get(key)) for row in rows)
    return [(tokens, value) for tokens, value in points if tokens is not None and value is not None]


class _Event(NamedTuple):
    """An event of the training: a loss that is not finite, or a spike."""

    step: int
    tokens: int | None
    kind: str
    details: str


def _events(rows: Sequence[Mapping[str, Any]]) -> list[_Event]:
    """Return the events in the order of the lines."""
    events = []
    for row in rows:
        if (event := row.get("event")) is not None:
            details = ", ".join(
                f"{key.replace('_', ' ')} {_format_detail(value)}"
                for key, value in event.items()
                if key != "kind" and value is not None
            )
            kind = str(event.get("kind", "event"))
            events.append(_Event(row["step"], row.get("tokens"), kind, details))
    return events


def _format_detail(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _event_marks(events: Sequence[_Event]) -> list[float]:
    """Return the places of the first events; the lines of very many would hide the curve."""
    places = sorted({event.tokens for event in events if event.tokens is not None})
    return [float(tokens) for tokens in places[:_MAX_MARKS]]


def _show_events(page: Page, events: Sequence[_Event]) -> None:
    page.section("Events")
    counts = Counter(event.kind for event in events)
    page.text(", ".join(f"{kind}: {number_format.count(count)}" for kind, count in counts.items()) + ".")
    caption = "Losses that are not finite, spikes, and the reactions to them"
    if len(events) > _MAX_EVENTS:
        caption += f"; the first {_MAX_EVENTS} of {len(events):,}, the others are in metrics.jsonl"
    page.table(
        ["step", "tokens", "event", "details"],
        [
            [
                f"{event.step:,}",
                "" if event.tokens is None else f"{event.tokens:,}",
                event.kind,
                event.details,
            ]
            for event in events[:_MAX_EVENTS]
        ],
        caption,
    )


def _loss_change_row(source: str, before: float, after: float) -> list[str]:
    return [source, f"{before:.4f}", f"{after:.4f}", number_format.nats(after - before)]


def format_training_metrics(
    metrics: Mapping[str, Any], keys: Collection[str] | None = None
) -> dict[str, str]:
    """Return a training stage's metrics as label → value with its unit.

    Args:
        metrics: The stage's metrics. Those without a label are left out.
        keys: The metrics to return; default: all.
    """
    return {
        label.format(loss_unit=loss_unit(metrics)): form(metrics[key])
        for key, (label, form) in _FORMATS.items()
        # Not every training stage records every metric, and some are null.
        if metrics.get(key) is not None and (keys is None or key in keys)
    }


def _format_epochs(epochs: Mapping[str, float]) -> str:
    return ", ".join(f"{source} {count:.3g}" for source, count in epochs.items())


def _format_flops(flops: float) -> str:
    return f"{number_format.decimal(flops / 1e9)} GFLOP/s"


_MAX_MARKS, _MAX_EVENTS = 60, 200
_MARKS = " Dotted lines: events, listed below."
_SPEEDS: dict[str, tuple[str, str, float]] = {
    "tokens_per_second": ("tokens per second", "", 1.0),
    "matmul_utilization": ("share of the measured matmul speed", "%", 100.0),
    "memory_bytes": ("memory", "GB", 1e-9),
}
"""Key of a line of `metrics.jsonl` → label, unit and factor of its chart."""
_SETTINGS = frozenset(
    {
        "loss",
        "epochs",
        "step_seconds",
        "tokens_per_second",
        "matmul_utilization",
        "peak_flops",
        "dtype",
        "threads",
        "spikes",
    }
)
_MATMUL_SPEED = (
    "The share of the measured matmul speed is the model's floating-point operations per second, divided by "
    "the speed of matrix multiplications of the model's shapes. That speed is measured once, before the "
    "first step. The share exceeds 100 % if other programs or a lower clock slowed that measurement down."
)
_FORMATS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "tokens": ("tokens trained on", number_format.count),
    "steps": ("steps", number_format.count),
    "loss": ("training loss of the last step, {loss_unit}", "{:.4f}".format),
    "epochs": ("epochs by source", _format_epochs),
    "answer_tokens": ("target tokens per epoch", number_format.count),
    "longest": ("longest training row, tokens", number_format.count),
    "fill": ("packing efficiency: share of tokens that are not padding", number_format.percent),
    "step_seconds": ("time in steps", format_duration),
    "tokens_per_second": ("tokens per second, median step", "{:,.0f}".format),
    "matmul_utilization": ("share of the measured matmul speed", number_format.percent),
    "peak_flops": ("measured matmul speed", _format_flops),
    "dtype": ("weights and activations", str),
    "threads": ("CPU threads", str),
    "spikes": ("loss spikes", str),
    "resumed_from": ("resumed from step", str),
    "seconds": ("time of the stage", format_duration),
}
"""Metric → its label, in which `{loss_unit}` is replaced, and its format."""
