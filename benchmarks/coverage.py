"""Coverage of the intervals and size of the tests, by simulation.

Writes the table of docs/explanation/statistics.md.

Run with `python -m benchmarks.coverage` (about four minutes on one core). Seeded: the table is repeatable.
"""

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from meditron.core.statistics import Interval, bootstrap_ratio, paired_bootstrap, paired_proportions

__all__ = ["DISTRIBUTIONS", "SIZES", "accuracies", "means", "ratios"]

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
    """Write the table between the marks of the document."""
    table = f"<!-- coverage -->\n{_table()}\n<!-- end -->"
    print(table)
    text = _DOCS.read_text(encoding="utf-8")
    _DOCS.write_text(
        re.sub(r"<!-- coverage -->.*<!-- end -->", lambda _: table, text, flags=re.DOTALL), encoding="utf-8"
    )


if __name__ == "__main__":
    main()
