"""The speed model of `meditron plan` against published runs: fit, leave-one-out errors, table for the docs.

python -m benchmarks.plan            print the table and the errors
python -m benchmarks.plan --write    also write the fitted constants and the table of the docs
"""

import argparse
import math
import re
import statistics
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import least_squares

from meditron.plan.cluster import load_constants
from meditron.plan.speed import Constants, Hardware, step_time
from meditron.plan.workload import ATTENTION_ONLY, FULL, NONE, ModelShape, Recomputation, Workload

ROOT = Path(__file__).parents[1]
RUNS = Path(__file__).parent / "published_runs.toml"
CONSTANTS = ROOT / "src/meditron/plan/constants.toml"
PAGE = ROOT / "docs/explanation/plan.md"
BARS = {"median": 0.15, "nine in ten": 0.30, "held out": 0.30}
# Fitted constant → its lower and upper bound. A fraction of a peak rate cannot exceed 1.
FITTED = {
    "matrix_fraction.a100": (0.4, 1.0),
    "matrix_fraction.h100": (0.4, 1.0),
    "overlap": (0.5, 1.0),
    "elementwise_passes": (1.0, 6.0),
    "block_overhead": (1e-5, 5e-3),
}
_NAMED = {"none": NONE, "full": FULL, "attention": ATTENTION_ONLY}
_PEAKS = {
    "a100": {"peak_flops": 312e12, "memory_bandwidth": 2_039e9, "intra_node_bandwidth": 300e9},
    "h100": {"peak_flops": 989.4e12, "memory_bandwidth": 3_350e9, "intra_node_bandwidth": 450e9},
}
_H100_WATTS = 700
Vector = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Run:
    """A published run, as the speed model sees it."""

    name: str
    source: str
    gpu: str
    work: Workload
    hardware: Hardware
    published: str
    rate: float
    """Published tokens per second of all GPUs."""
    held_out: bool
    explanation: str


@dataclass(frozen=True)
class Check:
    """Fit to all runs, and the prediction of each run without itself (and without its source) in the fit."""

    runs: tuple[Run, ...]
    fitted: Vector
    predicted: tuple[float, ...]
    without_source: tuple[float, ...]

    def errors(self, *, held_out: bool = False) -> list[float]:
        """Relative errors of the leave-one-out predictions."""
        pairs = zip(self.runs, self.predicted, strict=True)
        return [rate / run.rate - 1 for run, rate in pairs if run.held_out is held_out]

    def source_errors(self) -> list[float]:
        """Relative errors with the whole source left out of the fit."""
        pairs = zip(self.runs, self.without_source, strict=True)
        return [rate / run.rate - 1 for run, rate in pairs if not run.held_out]


def load_runs(path: Path = RUNS) -> tuple[Run, ...]:
    """Read the published runs."""
    table = tomllib.loads(path.read_text(encoding="utf-8"))
    return tuple(_run(row, table["models"]) for row in table["runs"])


def load_sources(path: Path = RUNS) -> dict[str, dict[str, str]]:
    """Read the sources: title, address, and how the figures were read."""
    sources: dict[str, dict[str, str]] = tomllib.loads(path.read_text(encoding="utf-8"))["sources"]
    return sources


def _run(row: dict[str, Any], models: dict[str, list[Any]]) -> Run:
    blocks, width, heads, kv_heads, mlp, matrices, vocabulary, tied = models[row["model"]]
    model = ModelShape(
        blocks=blocks,
        width=width,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=width // heads,
        mlp_width=mlp,
        mlp_matrices=matrices,
        vocabulary=vocabulary,
        tied=tied,
    )
    tp, pp, again = row.get("tp", 1), row.get("pp", 1), row["recompute"]
    data_ranks = row["gpus"] // (tp * pp)
    shards = min(8, data_ranks) if row["dp"] == "hsdp" else data_ranks
    work = Workload(
        model=model,
        sequence_length=row.get("sequence", 2048),
        batch_size=row["batch"],
        micro_batch_size=row["micro"],
        dp_replicate=data_ranks // shards,
        dp_shard=shards,
        tp=tp,
        pp=pp,
        chunks=row.get("chunks", 1),
        data_parallel=row["dp"],
        recomputation=_NAMED[again] if isinstance(again, str) else Recomputation(*again),
        attention="flash" if row.get("flash", True) else "unfused",
        sequence_parallel=row.get("sequence_parallel", False),
        frozen=row.get("frozen", False),
    )
    return Run(
        name=row["name"],
        source=row["source"],
        gpu=row["gpu"],
        work=work,
        hardware=_hardware(row),
        published=row["published"],
        rate=row["tokens_per_second"],
        held_out=row.get("held_out", False),
        explanation=row.get("explanation", ""),
    )


def _hardware(row: dict[str, Any]) -> Hardware:
    hardware = Hardware(**_PEAKS[row["gpu"]], inter_node_bandwidth=row["network"] * 1e9, gpus_per_node=8)
    if "watts" not in row:
        return hardware
    # Dynamic power grows with the third power of the clock, because the voltage follows the clock.
    clock = (row["watts"] / _H100_WATTS) ** (1 / 3)
    return replace(
        hardware,
        peak_flops=hardware.peak_flops * clock,
        memory_bandwidth=row["memory_bandwidth"] * 1e9,
    )


def constants_of(values: Vector, gpu: str) -> Constants:
    """Return the constants of a kind of GPU with fitted values in the order of `FITTED`."""
    named = dict(zip(FITTED, map(float, values), strict=True))
    matrix = {key.partition(".")[2]: named.pop(key) for key in list(named) if "." in key}
    return replace(load_constants(gpu), matrix_fraction=matrix[gpu], **named)


def predicted_rate(run: Run, values: Vector) -> float:
    """Predicted tokens per second of all GPUs."""
    return run.work.tokens / step_time(run.work, run.hardware, constants_of(values, run.gpu)).total


def fit(runs: Sequence[Run], start: Vector | None = None) -> Vector:
    """Fit the constants to the logarithms of the rates; outliers count linearly, not squared."""
    low, high = np.array(list(FITTED.values())).T
    first = np.sqrt(low * high) if start is None else np.clip(start, low * 1.001, high * 0.999)

    def residuals(values: Vector) -> Vector:
        return np.array([math.log(predicted_rate(run, values) / run.rate) for run in runs])

    result = least_squares(residuals, first, bounds=(low, high), loss="soft_l1", f_scale=0.15, x_scale=first)
    return np.asarray(result.x)


@cache
def check_runs() -> Check:
    """Fit to all runs, then predict each one from the others."""
    runs = load_runs()
    fitted_runs = [run for run in runs if not run.held_out]
    whole = fit(fitted_runs)
    sources = {run.source for run in runs}
    by_source = {
        source: fit([run for run in fitted_runs if run.source != source], whole) for source in sources
    }
    # A held-out run is in no fit, so its prediction is that of the constants that ship.
    singly = [
        whole if run.held_out else fit([other for other in fitted_runs if other is not run], whole)
        for run in runs
    ]
    return Check(
        runs,
        whole,
        tuple(predicted_rate(run, values) for run, values in zip(runs, singly, strict=True)),
        tuple(predicted_rate(run, by_source[run.source]) for run in runs),
    )


def summary(errors: Sequence[float]) -> dict[str, float]:
    """Median and ninth decile of the absolute errors."""
    sizes = sorted(abs(error) for error in errors)
    return {"median": statistics.median(sizes), "nine in ten": sizes[math.ceil(0.9 * len(sizes)) - 1]}


def table(check: Check) -> str:
    """Markdown of the docs: the errors, every run, the outliers and the sources."""
    one, source = summary(check.errors()), summary(check.source_errors())
    held_out = zip((run for run in check.runs if run.held_out), check.errors(held_out=True), strict=True)
    count = len(check.errors())
    lines = [
        f"| {count} runs | median error | nine in ten within |",
        "|---|--:|--:|",
        f"| each run left out of the fit | {one['median']:.1%} | {one['nine in ten']:.1%} |",
        f"| its whole source left out | {source['median']:.1%} | {source['nine in ten']:.1%} |",
        "",
        "In no fit: " + ", ".join(f"{run.name} {error:+.1%}" for run, error in held_out) + ".",
        "",
        "| run | source | layout | micro | published | predicted | error |",
        "|---|---|---|--:|--:|--:|--:|",
    ]
    for run, rate in zip(check.runs, check.predicted, strict=True):
        work = run.work
        layout = f"dp {work.dp_replicate * work.dp_shard} tp {work.tp} pp {work.pp}"
        lines.append(
            f"| {run.name} | {run.source} | {layout} | {work.micro_batch_size} | {run.rate / work.gpus:,.0f} "
            f"| {rate / work.gpus:,.0f} | {rate / run.rate - 1:+.1%} |"
        )
    lines += ["", "Rates are tokens per second and GPU.", "", "Errors above 30 %:", ""]
    lines += [
        f"- {run.name} ({rate / run.rate - 1:+.0%}): {run.explanation}."
        for run, rate in zip(check.runs, check.predicted, strict=True)
        if abs(rate / run.rate - 1) > BARS["nine in ten"]
    ]
    lines += ["", "Sources:", ""]
    lines += [
        f"- **{name}**: {entry['title']}, <{entry['address']}>. {entry['read']}"
        for name, entry in load_sources().items()
    ]
    return "\n".join(lines) + "\n"


def page_with_table(page: str, text: str) -> str:
    """Return the docs page with the part between its markers replaced."""
    start, end = "<!-- table: begin -->\n", "<!-- table: end -->"
    before, _, rest = page.partition(start)
    return f"{before}{start}{text}{end}{rest.partition(end)[2]}"


def constants_with(text: str, values: Vector) -> str:
    """Return constants.toml with the fitted values, rounded to two or three figures."""
    named = dict(zip(FITTED, map(float, values), strict=True))
    section = ""
    lines = []
    for line in text.splitlines():
        if match := re.fullmatch(r"\[(?:gpu\.)?(\w+)\]", line):
            section = match[1]
        key = line.partition(" = ")[0]
        if "# fitted" in line:
            gpu = "a100" if section == "a100" else "h100"
            value = named[f"matrix_fraction.{gpu}" if key == "matrix_fraction" else key]
            line = f"{key} = {value:.3g}".ljust(28) + line[line.index("# fitted") :]
        lines.append(line)
    return "\n".join(lines) + "\n"


def main() -> None:
    """Print the check; with --write update the constants and the docs."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--write", action="store_true")
    check = check_runs()
    if parser.parse_args().write:
        CONSTANTS.write_text(
            constants_with(CONSTANTS.read_text(encoding="utf-8"), check.fitted), encoding="utf-8"
        )
        PAGE.write_text(page_with_table(PAGE.read_text(encoding="utf-8"), table(check)), encoding="utf-8")
    print(table(check))
    for name, value in zip(FITTED, check.fitted, strict=True):
        print(f"{name} {value:.4g}")


if __name__ == "__main__":
    main()
