"""Coverage of the intervals and size of the tests, by simulation.

Writes the table of docs/explanation/statistics.md.

python -m benchmarks.coverage            all tables (some ten minutes on one core)
python -m benchmarks.coverage intervals  only the table of every interval type

Seeded: the tables are repeatable.
"""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from meditron.core.calibration import calibration_errors
from meditron.core.statistics import (
    Interval,
    bootstrap_ratio,
    clustered_mean,
    paired_bootstrap,
    paired_proportions,
    wilson_interval,
)

__all__ = ["DISTRIBUTIONS", "INTERVALS", "SIZES", "accuracies", "means", "ratios"]

SIZES = (6, 12, 24, 60, 600)
RESAMPLES = 1000
"""A tenth of what an evaluation takes: the ends are noisier, coverage is the same within the simulation's."""
_SHAPE = (2 / 2.5) ** 2  # of the gamma distribution with skewness 2.5
_SIGMA = 0.6409  # of the log-normal distribution with skewness 2.5
_DOCS = Path(__file__).parents[1] / "docs/explanation/statistics.md"

Draw = Callable[[np.random.Generator, int], np.ndarray]

DISTRIBUTIONS: dict[str, Draw] = {
    "normal": lambda random, n: random.normal(0, 1, n),
    "gamma, skew −2.5": lambda random, n: _SHAPE - random.gamma(_SHAPE, 1, n),
    "log-normal, skew −2.5": lambda random, n: np.exp(_SIGMA**2 / 2) - random.lognormal(0, _SIGMA, n),
}
"""Distributions with mean zero."""


def means(draw: Draw, n: int, runs: int, seed: int = 1) -> dict[str, float]:
    """Simulate paired differences with a true mean of zero.

    Returns:
        `coverage` of the interval, share of runs with p < 0.05, and of those the interval agrees with.
    """
    random = np.random.default_rng(seed)
    found = [
        paired_bootstrap(draw(random, n), np.zeros(n), seed=run, resamples=RESAMPLES) for run in range(runs)
    ]
    covered = [_holds(one.interval, 0.0) for one in found]
    rejected = [one.p < 0.05 for one in found]
    verdicts = [no and not yes for no, yes in zip(rejected, covered, strict=True)]
    return {"coverage": _share(covered), "p": _share(rejected), "verdict": _share(verdicts)}


def ratios(draw: Draw, n: int, runs: int, seed: int = 1) -> float:
    """Simulate log-losses per token (mean 3) of documents of log-normal lengths; return the coverage."""
    random = np.random.default_rng(seed)
    covered = []
    for run in range(runs):
        tokens = np.ceil(random.lognormal(5, 0.6, n))
        losses = (3 + 0.4 * draw(random, n)) * tokens
        covered.append(_holds(bootstrap_ratio(losses, tokens, seed=run, resamples=RESAMPLES)[1], 3.0))
    return _share(covered)


def accuracies(only_a: float, only_b: float, n: int, runs: int, seed: int = 1) -> dict[str, float]:
    """Simulate two models on n questions, right alone with these probabilities."""
    random = np.random.default_rng(seed)
    counts = random.multinomial(n, [only_a, only_b, 1 - only_a - only_b], size=runs)
    found = [paired_proportions(int(a), int(b), n) for a, b, _ in counts]
    covered = [_holds(one.interval, only_a - only_b) for one in found]
    return {"coverage": _share(covered), "p": _share([one.p < 0.05 for one in found])}


def wilson(p: float, n: int, runs: int, seed: int = 1) -> float:
    """Simulate accuracies on n independent questions; return the coverage."""
    counts = np.random.default_rng(seed).binomial(n, p, runs)
    known = {int(k): _holds(wilson_interval(int(k), n), p) for k in np.unique(counts)}
    return _share([known[int(k)] for k in counts])


def clustered(p: float, clusters: int, runs: int, seed: int = 1) -> float:
    """Simulate accuracies on clusters of 4 to 12 questions of equal difficulty; return the coverage.

    A cluster's difficulty is beta-distributed around p, with an intraclass correlation of 0.2.
    """
    random = np.random.default_rng(seed)
    covered = []
    for run in range(runs):
        sizes = random.integers(4, 13, clusters)
        chance = random.beta(4 * p, 4 * (1 - p), clusters)
        right = random.binomial(sizes, chance)
        interval = bootstrap_ratio(right, sizes, seed=run, resamples=_CLUSTER_RESAMPLES, bounds=(0, 1))[1]
        covered.append(_holds(interval, p))
    return _share(covered)


def clustered_differences(p: float, clusters: int, runs: int, seed: int = 1) -> float:
    """Simulate paired differences of two models, b better by 5 points, on clustered questions."""
    random = np.random.default_rng(seed)
    covered = []
    for run in range(runs):
        sizes = random.integers(4, 13, clusters)
        places = np.repeat(np.arange(clusters), sizes)
        a_chance, b_chance = (random.beta(4 * q, 4 * (1 - q), clusters)[places] for q in (p, p + 0.05))
        values = (random.random(len(places)) < b_chance) - (random.random(len(places)) < a_chance).astype(
            float
        )
        interval = clustered_mean(values, list(map(str, places)), seed=run, resamples=_CLUSTER_RESAMPLES)
        covered.append(_holds(interval, 0.05))
    return _share(covered)


def calibration(gap: float, n: int, runs: int, seed: int = 1) -> float:
    """Simulate the calibration error of answers that are right with probability confidence − gap."""
    random = np.random.default_rng(seed)
    covered = []
    for _ in range(0, runs, 1000):
        confidence = 0.25 + 0.75 * random.beta(2, 2, (1000, n))
        correct = (random.random((1000, n)) < confidence - gap).astype(float)
        _, low, high = calibration_errors(confidence, correct)
        covered += list((low <= gap + 1e-9) & (gap - 1e-9 <= high))
    return _share(covered)


def overconfidence(gap: float, n: int, runs: int, seed: int = 1) -> float:
    """Simulate mean confidence minus accuracy, a mean over questions; return the coverage."""
    random = np.random.default_rng(seed)
    covered = []
    for run in range(runs):
        confidence = 0.25 + 0.75 * random.beta(2, 2, n)
        values = confidence - (random.random(n) < confidence - gap)
        interval = bootstrap_ratio(values, np.ones(n), seed=run, resamples=_CLUSTER_RESAMPLES)[1]
        covered.append(_holds(interval, gap))
    return _share(covered)


def proportions(p: float, n: int, runs: int, seed: int = 1) -> float:
    """Simulate the paired difference of two independent models with accuracies p and p + 0.05."""
    q = p + 0.05
    return accuracies(p * (1 - q), q * (1 - p), n, runs, seed)["coverage"]


_CLUSTER_RESAMPLES = 400
INTERVALS: dict[str, tuple[Callable[[float, int, int], float], str, tuple[float, ...], tuple[int, ...]]] = {
    "accuracy, Wilson": (wilson, "p", (0.2, 0.5, 0.8), (10, 25, 50, 100, 400, 1000)),
    "accuracy, clustered bootstrap": (clustered, "p", (0.2, 0.5, 0.8), (6, 12, 25, 50)),
    "paired difference, Bonett-Price": (proportions, "p", (0.2, 0.5, 0.75), (10, 25, 50, 100, 400, 1000)),
    "paired difference, clustered bootstrap": (clustered_differences, "p", (0.2, 0.5, 0.75), (6, 25, 50)),
    "calibration error": (calibration, "gap", (0.0, 0.05, 0.1, 0.2), (50, 100, 400, 1000)),
    "overconfidence, bootstrap-t": (overconfidence, "gap", (0.1,), (25, 100, 400)),
}
"""Interval type → simulation, name of its parameter, values of the parameter, and sizes: questions, or
clusters of 8 questions on average."""
_EVALUATIONS, _FEW_EVALUATIONS = 20_000, 4_000


def _interval_table() -> str:
    lines = ["| interval | parameter | n | evaluations | coverage |", "|---|---|--:|--:|--:|"]
    for name, (simulate, parameter, values, sizes) in INTERVALS.items():
        is_clustered = "clustered" in name
        for size in sizes:
            large = size >= (50 if is_clustered else 400)
            runs = _EVALUATIONS if large else _FEW_EVALUATIONS
            shares = [simulate(value, size, runs) for value in values]
            print(name, size, shares, flush=True)
            shown = ", ".join(f"{100 * share:.1f} %" for share in shares)
            given = f"{parameter} {', '.join(f'{value:g}' for value in values)}"
            n = f"{size} clusters" if is_clustered else f"{size:,}"
            lines.append(f"| {name} | {given} | {n} | {runs:,} | {shown} |")
    return "\n".join(lines)


def _holds(interval: Interval | None, value: float) -> bool:
    return interval is None or interval.low <= value <= interval.high


def _share(values: list[bool]) -> float:
    return sum(values) / len(values)


def _rows() -> Iterator[dict[str, Any]]:
    for name, draw in DISTRIBUTIONS.items():
        for n in SIZES:
            runs = 2000 if n == 600 else 4000
            yield {
                "distribution": name,
                "n": n,
                "runs": runs,
                **means(draw, n, runs),
                "ratio": ratios(draw, n, runs),
            }


def _table() -> str:
    lines = [
        "| differences | n | coverage, mean | coverage, ratio of sums | p < 0.05 | verdict |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for row in _rows():
        shares = " | ".join(f"{100 * row[key]:.1f} %" for key in ("coverage", "ratio", "p", "verdict"))
        lines.append(f"| {row['distribution']} | {row['n']} | {shares} |")
        print(json.dumps(row, ensure_ascii=False), flush=True)
    lines += [
        "",
        "| accuracies: b alone right, a alone right | n | coverage | p < 0.05 |",
        "|---|--:|--:|--:|",
    ]
    for only_a, only_b in ((0.02, 0.02), (0.1, 0.1), (0.15, 0.05)):
        for n in SIZES:
            found = accuracies(only_b, only_a, n, 20_000)
            size = f"{100 * found['p']:.1f} %" if only_a == only_b else "(power)"
            lines.append(f"| {only_a:.0%}, {only_b:.0%} | {n} | {100 * found['coverage']:.1f} % | {size} |")
    return "\n".join(lines)


def main() -> None:
    """Write the tables between the marks of the document."""
    names = sys.argv[1:] or ["coverage", "intervals"]
    for name in names:
        table = {"coverage": _table, "intervals": _interval_table}[name]()
        text = _DOCS.read_text(encoding="utf-8")
        before, mark, rest = text.partition(f"<!-- {name} -->\n")
        text = f"{before}{mark}{table}\n<!-- end -->{rest.partition('<!-- end -->')[2]}"
        _DOCS.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
