"""The report page of a training stage."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from meditron.core.units import format_duration
from meditron.report import number_format
from meditron.report.charts import line_chart
from meditron.report.pages import Page

__all__ = ["write_training_page"]


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
    page.key_values(_format_settings(result))
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


def _format_settings(result: Mapping[str, Any]) -> dict[str, str]:
    # Not every training stage records every metric.
    return {label: form(result[key]) for key, (label, form) in _SETTING_FORMATS.items() if key in result}


def _format_epochs(epochs: Mapping[str, float]) -> str:
    return ", ".join(f"{source} {count:.3g}" for source, count in epochs.items())


_SETTING_FORMATS: dict[str, tuple[str, Callable[[Any], str]]] = {
    "loss": ("training loss of the last step, nats per token", "{:.4f}".format),
    "epochs": ("epochs by source", _format_epochs),
    "step_seconds": ("time in steps", format_duration),
    "tokens_per_second": ("tokens per second, median step", "{:,.0f}".format),
    "matmul_utilization": ("matrix-multiplication utilization, of the measured peak", "{:.1%}".format),
    "peak_flops": ("measured peak, FLOP/s", "{:.3g}".format),
    "dtype": ("weights and activations", str),
    "threads": ("CPU threads", str),
    "spikes": ("loss spikes", str),
}
"""Metric → its label and its format."""
