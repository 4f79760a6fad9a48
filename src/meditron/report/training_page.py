"""The report page of a training stage."""

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from meditron.core.units import format_duration
from meditron.report import number_format
from meditron.report.charts import line_chart
from meditron.report.pages import Page

__all__ = ["format_training_metrics", "write_training_page"]


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
    page.section("Loss")
    page.figure(
        line_chart(_loss_curves(rows), "tokens", "nats per token"),
        "Training batches, and held-out text by source.",
    )
    if result["heldout"]:
        page.table(
            ["held-out source", "before", "after", "change"],
            [
                _loss_change_row(source, before, after)
                for source, (before, after) in result["heldout"].items()
            ],
            "Loss on held-out text, nats per predicted token",
        )
    page.section("Optimization")
    page.figure(
        # The norm before clipping is drawn, because the clipped norm would be flat at max_grad_norm.
        line_chart({"gradient norm": _curve(rows, "gradient_norm")}, "tokens", "2-norm"),
        "Gradient norm before clipping.",
    )
    page.figure(line_chart({"learning rate": _curve(rows, "learning_rate")}, "tokens", ""), "Learning rate.")
    # The stage's own sections come before the settings, which fewer readers need.
    show(page)
    page.section("Throughput and settings")
    page.key_values(format_training_metrics(result, _SETTINGS))
    page.text(_MATMUL_SPEED)
    page.write(path)


def _loss_curves(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    curves = {"training": _curve(rows, "loss")}
    # Held-out losses are drawn on the same axes: a growing gap to the training loss shows overfitting.
    for row in rows:
        for source, loss in row.get("heldout", {}).items():
            curves.setdefault(f"held out: {source}", []).append((row["tokens"], loss))
    return curves


def _curve(rows: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    return [(row["tokens"], row[key]) for row in rows if key in row]


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
        label: form(metrics[key])
        for key, (label, form) in _FORMATS.items()
        # Not every training stage records every metric, and some are null.
        if metrics.get(key) is not None and (keys is None or key in keys)
    }


def _format_epochs(epochs: Mapping[str, float]) -> str:
    return ", ".join(f"{source} {count:.3g}" for source, count in epochs.items())


def _format_flops(flops: float) -> str:
    return f"{number_format.decimal(flops / 1e9)} GFLOP/s"


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
    "loss": ("training loss of the last step, nats per token", "{:.4f}".format),
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
"""Metric → its label and its format."""
