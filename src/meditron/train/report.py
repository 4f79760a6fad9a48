"""`report.html` of a training run: its curves, and what it came to."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from meditron.core.units import duration
from meditron.report.charts import lines
from meditron.report.pages import Page

__all__ = ["write_report"]


def write_report(
    path: Path,
    title: str,
    rows: Sequence[Mapping[str, Any]],
    result: Mapping[str, Any],
    show: Callable[[Page], None],
) -> None:
    """Write the page for the lines of `metrics.jsonl` and the stage's metrics; `show` adds its own."""
    page = Page(title, f"{result['tokens']:,} tokens in {result['steps']:,} steps")
    page.section("Loss")
    page.figure(
        lines(_losses(rows), "tokens", "nats per token"), "Training batches, and held-out text by source."
    )
    if result["heldout"]:
        page.table(
            ["Held-out source", "before", "after", "change"],
            [_change(source, before, after) for source, (before, after) in result["heldout"].items()],
            "Nats per predicted token on what is never trained on.",
        )
    page.section("Course")
    page.figure(
        lines({"gradient norm": _curve(rows, "gradient_norm")}, "tokens", "2-norm"), "Before clipping."
    )
    page.figure(lines({"learning rate": _curve(rows, "learning_rate")}, "tokens", ""), "As scheduled.")
    show(page)
    page.section("Work")
    page.table(["", ""], _facts(result))
    page.write(path)


def _losses(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[tuple[float, float]]]:
    curves = {"training": _curve(rows, "loss")}
    for row in rows:
        for source, loss in row.get("heldout", {}).items():
            curves.setdefault(f"held out: {source}", []).append((row["tokens"], loss))
    return curves


def _curve(rows: Sequence[Mapping[str, Any]], key: str) -> list[tuple[float, float]]:
    return [(row["tokens"], row[key]) for row in rows if key in row]


def _change(source: str, before: float, after: float) -> list[str]:
    return [source, f"{before:.4f}", f"{after:.4f}", f"{after - before:+.4f}"]


def _facts(result: Mapping[str, Any]) -> list[list[str]]:
    epochs = ", ".join(f"{source} {share:.3g}" for source, share in result["epochs"].items())
    return [
        ["training loss of the last step", f"{result['loss']:.4f} nats per token"],
        ["times each source was read", epochs],
        ["time in steps", duration(result["step_seconds"])],
        ["tokens a second, median step", f"{result['tokens_per_second']:,.0f}"],
        ["share of the measured matrix-multiplication peak", f"{100 * result['matmul_utilization']:.1f} %"],
        ["that peak", f"{result['peak_flops'] / 1e9:,.0f} GFLOP/s"],
        ["weights and activations", result["dtype"]],
        ["CPU threads", str(result["threads"])],
        ["spikes of the loss", str(result["spikes"])],
    ]
