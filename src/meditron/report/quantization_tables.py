"""Tables and the chart of quantized files: size, memory, and the loss of each, measured or published."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from meditron.core.units import format_bytes
from meditron.report import number_format
from meditron.report.charts import SizedLoss, size_loss_chart
from meditron.report.evaluation_tables import ResultTable
from meditron.report.figures import ReportFigure, figure_name
from meditron.report.quantization import (
    FileLoss,
    QuantizationCost,
    TextLoss,
    measured_file_costs,
    published_cost,
    recommended_file,
    recommended_type,
)
from meditron.report.verdicts import source_label, verdict
from meditron.store.results import Comparison

__all__ = ["file_tables", "files_table", "loss_figure", "memory_table"]


def file_tables(
    files: Sequence[Mapping[str, Any]], losses: Mapping[str, FileLoss], title: str
) -> list[ResultTable]:
    """Return the tables of the files: size and loss, memory, fallback types; without those that are empty."""
    costs = measured_file_costs(losses)
    first = _loss_table(files, losses, title) if costs else files_table(files, {}, title)
    fallbacks = [
        (file["type"], ", ".join(f"{n} × {kind}" for kind, n in Counter(kinds.values()).items()))
        for file in files
        if (kinds := file["fallbacks"])
    ]
    caption = "Fallback types, for rows whose length is not a multiple of the block size"
    others = (memory_table(files), ResultTable(caption, ("type", "matrices of another type"), fallbacks))
    return [first, *(table for table in others if table.rows)]


def files_table(
    files: Sequence[Mapping[str, Any]], costs: Mapping[str, QuantizationCost], title: str
) -> ResultTable:
    """Return a row per file: type, size, memory, and the rise in perplexity.

    Measured and published rises have a column each; without a measurement there is only the published one.
    """
    measured = {kind: str(cost) for kind, cost in costs.items() if cost.is_measured}
    best = recommended_type(files, costs)
    rows = [
        (
            *_file_cells(file, best),
            *((measured.get(file["type"], "not measured"),) if measured else ()),
            cost.percent_text if (cost := published_cost(file["type"])) else "–",
        )
        for file in files
    ]
    rises = (*(("measured rise in perplexity",) if measured else ()), "published rise, Llama-3-8B")
    return ResultTable(title, (*_file_headers(files), *rises), rows)


def _loss_table(
    files: Sequence[Mapping[str, Any]], losses: Mapping[str, FileLoss], title: str
) -> ResultTable:
    """Return a row per file and text: size, memory, perplexity ratio, KL, same top token, accuracy."""
    best = recommended_file(files, losses)
    tasks = list(dict.fromkeys(task for loss in losses.values() for task in loss.tasks))
    rows = []
    for file in files:
        loss = losses.get(file["type"], FileLoss((), {}))
        accuracies = [_accuracy_cell(loss.tasks.get(task)) for task in tasks]
        for text in loss.texts or (None,):
            rows.append((*_file_cells(file, best), *_text_cells(text), *accuracies))
    measures = ("perplexity ratio", "mean KL, nats", "99th percentile of KL", "same top token")
    headers = ("text", "documents", *measures, *(f"{task}: accuracy, points" for task in tasks))
    caption = f"{title}: loss against the model that they were made from, with 95 % intervals"
    return ResultTable(caption, (*_file_headers(files), *headers), rows)


def _file_headers(files: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    memory = (f"RAM, {number_format.count(files[0]['context'])} tokens",) if "ram" in files[0] else ()
    return (*(("file",) if "path" in files[0] else ()), "type", "size", "bits per weight", *memory)


def _file_cells(file: Mapping[str, Any], best: str | None) -> tuple[str, ...]:
    return (
        *((file["path"],) if "path" in file else ()),
        f"{file['type']}{' (recommended)' if file['type'] == best else ''}",
        format_bytes(file["bytes"]),
        number_format.decimal(float(file["bpw"])),
        *((format_bytes(file["ram"]),) if "ram" in file else ()),
    )


def _text_cells(text: TextLoss | None) -> tuple[str, ...]:
    if text is None:
        return ("not measured", *("",) * 5)
    pair = text.fidelity
    documents = number_format.count(text.documents)
    if pair and pair.documents != text.documents:  # measured apart from the perplexities
        documents += f" ({number_format.count(pair.documents)} for KL and top token)"
    return (
        source_label({text.source: text.domain}, text.source),
        documents,
        number_format.estimate(text.ratio, text.interval, number_format.ratio),
        *(
            (
                number_format.estimate(pair.kl_mean, pair.intervals.get("kl_mean"), number_format.decimal),
                number_format.decimal(pair.kl_99),
                number_format.estimate(
                    pair.top_agreement, pair.intervals.get("top_agreement"), number_format.percent
                ),
            )
            if pair
            else ("not measured",) * 3
        ),
    )


def _accuracy_cell(comparison: Comparison | None) -> str:
    if comparison is None:
        return "not measured"
    value = number_format.estimate(comparison.difference, comparison.interval, number_format.points)
    return f"{value}, n = {number_format.count(comparison.n)}, {verdict(comparison)}"


def memory_table(files: Sequence[Mapping[str, Any]]) -> ResultTable:
    """Return the memory of each file without and with offloaded layers; no rows if it was not recorded."""
    known = [file for file in files if "offload" in file]
    levels = known[0]["offload"] if known else ()
    every = levels[-1]["layers"] if levels else 0
    headers = ["type", "context of 1,000 tokens"]
    for level in levels:
        name = f"{level['layers']} of {every} layers" if level["layers"] else "no layer"
        headers += [f"{name}: RAM", *([f"{name}: VRAM"] if level["layers"] else [])]
    rows = [
        (
            file["type"],
            format_bytes(file["context_bytes"]),
            *(
                format_bytes(size)
                for level in file["offload"]
                for size in (level["ram"], *([level["vram"]] if level["layers"] else []))
            ),
        )
        for file in known
    ]
    context = number_format.count(known[0]["context"]) if known else ""
    caption = f"Predicted memory with a context of {context} tokens, by layers on a GPU (llama.cpp's -ngl)"
    return ResultTable(caption, tuple(headers), rows)


def loss_figure(
    files: Sequence[Mapping[str, Any]], losses: Mapping[str, FileLoss], *name: str
) -> ReportFigure | None:
    """Return a chart of size against mean KL divergence for each text; None if fewer than two were measured.

    Args:
        files: The files.
        losses: Type → loss.
        name: Parts of the figure's name.
    """
    points = [
        (source_label({text.source: text.domain}, text.source), file, text.fidelity)
        for file in files
        for text in (losses[file["type"]].texts if file["type"] in losses else ())
        if text.fidelity
    ]
    if len({file["type"] for _, file, _ in points}) < 2:
        return None
    series: dict[str, list[SizedLoss]] = {}
    for label, file, pair in points:
        ends = pair.intervals.get("kl_mean")
        series.setdefault(label, []).append(SizedLoss(file["type"], file["bytes"] / 1e9, pair.kl_mean, ends))
    best = recommended_file(files, losses)
    return ReportFigure(
        figure_name(*name, "size-loss"),
        size_loss_chart(series, "size of the file, GB", "mean KL divergence, nats per token", marked=best),
        f"Size against loss, with 95 % intervals; a ring marks the recommended type, {best}.",
        ("text", "type", "GB", "kl_mean", "low", "high"),
        [
            (label, point.label, point.size, point.loss, *(point.interval or ("", "")))
            for label, group in series.items()
            for point in group
        ],
    )
