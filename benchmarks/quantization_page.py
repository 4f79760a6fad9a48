"""The tables and the chart of docs/explanation/quantization.md.

The measured loss is that of a run of recipes/fidelity.toml, and the measured memory that of
`benchmarks.memory`; both are kept in `quantization_page.json`. The memory of the 70B files is computed from
the model's shape.

python -m benchmarks.quantization_page                             print the blocks
python -m benchmarks.quantization_page --write                     also write them and the chart into docs/
python -m benchmarks.quantization_page --run runs/fidelity --write   first take the results of a run
python -m benchmarks.quantization_page --memory --write            first take those of benchmarks.memory
"""

import argparse
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import RESULTS, fill_blocks, markdown_table
from meditron import __version__
from meditron.core.machine import describe
from meditron.core.units import format_bytes
from meditron.release.preview import preview
from meditron.release.quantize import QuantizeOptions
from meditron.release.summary import gguf_sizes
from meditron.release.types import GGUFType
from meditron.report import number_format
from meditron.report.figures import ReportFigure
from meditron.report.quantization import (
    FileLoss,
    TextLoss,
    losses_from_evaluations,
    measured_file_costs,
    recommendation,
    recommended_file,
)
from meditron.report.quantization_tables import loss_figure
from meditron.report.svg import standalone_svg
from meditron.report.verdicts import source_domains, source_label, verdict
from meditron.store.files import write_json
from meditron.store.manifest import read_manifest
from meditron.store.results import EvaluationResult, read_results

__all__ = [
    "CARD",
    "CARD_RULE",
    "CHART",
    "PAGE",
    "blocks",
    "chart",
    "measured",
    "measured_memory",
    "published_files",
    "render",
]

DOCS = Path(__file__).parents[1] / "docs"
PAGE, CHART = DOCS / "explanation/quantization.md", DOCS / "images/size-loss.svg"
_DATA = Path(__file__).with_suffix(".json")
CARD: Mapping[GGUFType, float] = {
    "Q2_K": 29.28, "Q3_K_S": 29.92, "Q3_K_M": 33.19, "Q3_K_L": 36.15, "Q4_0": 38.87, "Q4_K_S": 39.07,
    "Q4_K_M": 41.42, "Q5_0": 47.46, "Q5_K_S": 47.46, "Q5_K_M": 48.75, "Q6_K": 56.59, "Q8_0": 73.29,
}  # fmt: skip
"""Type → size in GB, by the card of the published 70B files."""
CARD_RULE = 2.5
"""GB that the card adds to the size for the memory without offloading."""
_SHAPE_70B = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 32_000, "hidden_size": 8_192,
    "intermediate_size": 28_672, "num_hidden_layers": 80, "num_attention_heads": 64, "num_key_value_heads": 8,
    "max_position_embeddings": 4_096,
}  # fmt: skip
_STAGE, _PARENT = "quantize", "base"


def take_results(run: Path) -> dict[str, Any]:
    """Return what the page needs of a run's results."""
    result = read_results(run / "evaluate")
    quantize, corpus = read_manifest(run / "quantize"), read_manifest(run / "corpus")
    assert quantize is not None
    assert corpus is not None
    kept = result.model_copy(
        update={"perplexity": {}, "tasks": {}, "baselines": {}, "ancestry": {}, "engines": {}}
    )
    machine = describe()
    return {
        "version": __version__,
        "cpu": f"{machine['cpu']} ({machine['cpu_class']})",
        "domains": dict(source_domains(corpus)),
        "files": [
            {
                "type": file["type"],
                "fallbacks": file["fallbacks"],
                **gguf_sizes(run / "quantize" / file["path"]),
            }
            for file in quantize.metrics["files"]
        ],
        "result": kept.model_dump(mode="json"),
    }


def take_memory() -> dict[str, Any]:
    """Return the last row of each type and context that `benchmarks.memory` recorded."""
    rows = map(json.loads, (RESULTS / "memory.jsonl").read_text(encoding="utf-8").splitlines())
    last = {(row["type"], row["context"]): row for row in rows}
    kept = ("type", "context", "ours", "peer", "error", "cpu")
    return {"memory": [{key: row[key] for key in kept} for row in last.values()]}


def _data() -> dict[str, Any]:
    data: dict[str, Any] = json.loads(_DATA.read_text(encoding="utf-8"))
    return data


def measured() -> tuple[list[dict[str, Any]], dict[str, FileLoss]]:
    """Return the measured files, and type → loss."""
    data = _data()
    result = EvaluationResult.model_validate(data["result"])
    return data["files"], losses_from_evaluations([result], _STAGE, _PARENT, data["domains"])


def published_files() -> list[dict[str, Any]]:
    """Return the files of the published 70B release with their memory, by calculation from its shape."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(_SHAPE_70B), encoding="utf-8")
        files: list[dict[str, Any]] = preview(folder, tuple(CARD), QuantizeOptions(mix="2023"))["files"]
    return files


def blocks() -> dict[str, str]:
    """Return name → Markdown of every block of the page."""
    files, losses = measured()
    advice = recommendation(files, measured_file_costs(losses))
    return {
        "advice": f"{advice[0].upper()}{advice[1:]}.",
        "loss": _loss_table(files, losses),
        "accuracy": _accuracy(losses),
        "memory": _memory_table(),
        "70b": _published_table(published_files()),
    }


def _loss_table(files: Sequence[Mapping[str, Any]], losses: Mapping[str, FileLoss]) -> str:
    """Return a row per type, with the measures of each text."""
    best = recommended_file(files, losses)
    labels = [
        source_label({each.source: each.domain}, each.source) for each in losses[files[0]["type"]].texts
    ]
    measures = ("perplexity ratio", "mean KL", "same top token")
    rows = [
        (
            f"**{file['type']}**" if file["type"] == best else file["type"],
            format_bytes(file["bytes"]),
            f"{file['bpw']:.2f}",
            *(cell for text in losses[file["type"]].texts for cell in _measures(text)),
        )
        for file in files
    ]
    headers = (
        "type",
        "size",
        "bits per weight",
        *(f"{text}: {each}" for text in labels for each in measures),
    )
    return markdown_table(headers, rows, "l" + "r" * (len(headers) - 1))


def _measures(text: TextLoss) -> tuple[str, str, str]:
    pair = text.fidelity
    assert pair is not None
    return (
        number_format.estimate(text.ratio, text.interval, lambda value: f"{value:.3f}"),
        number_format.estimate(pair.kl_mean, pair.intervals["kl_mean"], lambda value: f"{value:.3f}"),
        number_format.estimate(pair.top_agreement, pair.intervals["top_agreement"], number_format.percent),
    )


def _accuracy(losses: Mapping[str, FileLoss]) -> str:
    """Return the sentence about the accuracies."""
    compared = {kind: each for kind, loss in losses.items() for each in loss.tasks.values()}
    first = next(iter(compared.values()))
    worse = [kind for kind, each in compared.items() if verdict(each) == "worse"]
    ends = [100 * end for each in compared.values() for end in each.interval or ()]
    changed = "no type is" if not worse else f"{', '.join(worse)} are"
    return (
        f"On {first.n} questions of {first.task}, {changed} significantly less accurate than the model. The "
        f"intervals of the differences reach from {_signed(min(ends))} to {_signed(max(ends))} points."
    )


def _published_table(files: Sequence[Mapping[str, Any]]) -> str:
    rows = [
        (
            file["type"],
            f"{file['bpw']:.2f}",
            _gb(file["bytes"]),
            f"{CARD[file['type']] + CARD_RULE:.2f} GB",
            _gb(file["offload"][0]["ram"]),
            *(_gb(level[key]) for level in file["offload"][1:] for key in ("ram", "vram")),
        )
        for file in files
    ]
    layers = [level["layers"] for level in files[0]["offload"]]
    headers = (
        *("type", "bits per weight", "size", "card's RAM", "predicted RAM"),
        *(f"{n} of {layers[-1]} layers: {kind}" for n in layers[1:] for kind in ("RAM", "VRAM")),
    )
    return markdown_table(headers, rows, "l" + "r" * (len(headers) - 1))


def measured_memory() -> list[dict[str, Any]]:
    """Return the measured and the predicted memory of each type and context."""
    rows: list[dict[str, Any]] = _data()["memory"]
    return rows


def _memory_table() -> str:
    rows = [
        (
            row["type"],
            f"{row['context']:,}",
            f"{row['ours'] / 1e6:.0f} MB",
            f"{row['peer'] / 1e6:.0f} MB",
            f"{_signed(100 * row['error'])} %",
        )
        for row in measured_memory()
    ]
    return markdown_table(("type", "context", "predicted", "measured", "error"), rows, "lrrrr")


def _signed(value: float) -> str:
    return f"{value:+.1f}".replace("-", "−")


def _gb(count: float) -> str:
    return f"{count / 1e9:.2f} GB"


def render(page: str) -> str:
    """Return the text of the page with its blocks recomputed."""
    return fill_blocks(page, blocks())


def chart() -> ReportFigure:
    """Return the chart of size against loss."""
    figure = loss_figure(*measured())
    assert figure is not None
    return figure


def main() -> None:
    """Print the blocks, or write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, help="take the results of a run of recipes/fidelity.toml")
    parser.add_argument("--memory", action="store_true", help="take the results of benchmarks.memory")
    parser.add_argument("--write", action="store_true")
    arguments = parser.parse_args()
    new = take_memory() if arguments.memory else {}
    if arguments.run:
        new |= take_results(arguments.run)
    if new:
        write_json(_DATA, _data() | new)
    for name, text in blocks().items():
        print(f"{name}\n{text}\n")
    if arguments.write:
        PAGE.write_text(render(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
        CHART.write_text(standalone_svg(chart().svg), encoding="utf-8")


if __name__ == "__main__":
    main()
