"""Recomputation of the published Meditron scores from their own cells.

`published_scores.toml` has the scores as printed. This script recomputes averages, tests the differences
between the two 70B models, and lists the cells that cannot be right. It writes the blocks of
docs/explanation/published-scores.md.

python -m benchmarks.published_scores            print the blocks
python -m benchmarks.published_scores --write    also write them into the page
"""

import argparse
import math
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any

from benchmarks.common import fill_blocks, markdown_table
from meditron.core.statistics import Interval, holm, wilson_interval

__all__ = ["PAGE", "Gap", "blocks", "gaps", "is_share_of", "largest_deviation", "published", "render"]

PAGE = Path(__file__).parents[1] / "docs/explanation/published-scores.md"
_TABLES = Path(__file__).with_suffix(".toml")
_HALF = 0.05 + 1e-9  # a printed cell has one decimal
_MODELS = ("Llama-2-70B", "Meditron-70B")


def published() -> dict[str, Any]:
    """Return the printed tables."""
    return tomllib.loads(_TABLES.read_text(encoding="utf-8"))


@dataclass(frozen=True, slots=True)
class Gap:
    """The difference of two published accuracies on the same questions."""

    table: str
    benchmark: str
    n: int
    difference: float
    """Accuracy of Meditron-70B minus that of Llama-2-70B, in percentage points."""
    z: float
    """The difference divided by its standard error √(p₁(1 − p₁)/n + p₂(1 − p₂)/n), with the models' answers
    taken as independent. A paired test needs the answers to single questions, which are not published."""
    p: float
    detectable: float
    """True difference that this comparison detects with 80 % power, in percentage points."""


def gaps() -> list[Gap]:
    """Compute Meditron-70B − Llama-2-70B in every table and on every benchmark."""
    data, normal = published(), NormalDist()
    found = []
    for table in data["tables"]:
        base, model = (_scores_of(table, name) for name in _MODELS)
        for (benchmark, n), a, b in zip(data["questions"].items(), base, model, strict=True):
            error = 100 * math.sqrt(sum(s / 100 * (1 - s / 100) for s in (a, b)) / n)
            z = (b - a) / error
            power = (normal.inv_cdf(0.975) + normal.inv_cdf(0.8)) * error
            found.append(Gap(table["name"], benchmark, n, b - a, z, 2 * normal.cdf(-abs(z)), power))
    return found


def _scores_of(table: dict[str, Any], model: str) -> list[float]:
    return next(row["scores"] for row in table["rows"] if row["model"] == model)


def is_share_of(score: float, n: int) -> bool:
    """Return True if a percentage printed with one decimal is k / n for a whole number k."""
    nearest = round(score * n / 100)
    return any(abs(100 * k / n - score) <= _HALF for k in (nearest - 1, nearest, nearest + 1))


def largest_deviation(mean: float, runs: int = 3) -> float:
    """Return the largest standard deviation that percentages of `runs` runs with this mean can have.

    The sum of squares is largest if all values but one are 0 or 100.
    """
    total = runs * mean
    full = int(total // 100)
    values = [100.0] * full + [total - 100 * full] + [0.0] * (runs - full - 1)
    return math.sqrt(sum((value - mean) ** 2 for value in values[:runs]) / (runs - 1))


def blocks() -> dict[str, str]:
    """Return name → Markdown of every block of the page."""
    parts: dict[str, Callable[[dict[str, Any]], str]] = {
        "z": _gap_table,
        "averages": _average_table,
        "mmlu": _mmlu_table,
        "truthfulqa": _truthfulqa_table,
        "defects": _defect_list,
    }
    data = published()
    return {name: make(data) for name, make in parts.items()}


def render(page: str) -> str:
    """Return the text of the page with its blocks recomputed."""
    return fill_blocks(page, blocks())


def _gap_table(data: dict[str, Any]) -> str:
    rows = []
    for table in data["tables"]:
        group = [gap for gap in gaps() if gap.table == table["name"]]
        for gap, adjusted in zip(group, holm([gap.p for gap in group]), strict=True):
            cells = (f"{_signed(gap.difference, 1)} | {_signed(gap.z, 2)} | {gap.p:.3f} | {adjusted:.3f}",)
            rows.append((gap.table, gap.benchmark, f"{gap.n:,}", *cells, f"{gap.detectable:.1f}"))
    headers = ("table", "benchmark", "n", "difference", "z", "p", "p, Holm", "detectable")
    return markdown_table(headers, rows, "llrrrrrr")


def _average_table(data: dict[str, Any]) -> str:
    counts = list(data["questions"].values())
    rows = []
    for table in data["tables"]:
        for row in table["rows"]:
            macro = sum(row["scores"]) / len(counts)
            micro = sum(s * n for s, n in zip(row["scores"], counts, strict=True)) / sum(counts)
            printed = f"{row['average']:.1f}"
            if abs(macro - row["average"]) > _HALF:
                printed = f"**{printed}**"
            tuned = "yes" if row["tuned"] else "no"
            rows.append((table["name"], row["model"], tuned, printed, f"{macro:.2f}", f"{micro:.1f}"))
    headers = ("table", "model", "finetuned per task", "printed average", "macro", "micro")
    return markdown_table(headers, rows, "lllrrr")


def _mmlu_table(data: dict[str, Any]) -> str:
    sizes = list(data["subjects"].values())
    rows = []
    for row in data["mmlu"]:
        macro, micro = sum(row["scores"]) / len(sizes), _mmlu_micro(row["scores"], sizes)
        fits = [
            sum(is_share_of(s, n - less) for s, n in zip(row["scores"], sizes, strict=True))
            for less in (1, 0)
        ]
        printed = f"{row['reported']:.1f}"
        # The micro-average of rounded cells is itself off by at most half a unit of the last digit.
        if abs(micro - row["reported"]) > 2 * _HALF:
            printed = f"**{printed}**"
        rows.append(
            (row["model"], printed, f"{micro:.2f}", f"{macro:.2f}", *(f"{count} of 9" for count in fits))
        )
    headers = ("model", "printed", "micro", "macro", "cells that are k/(n − 1)", "cells that are k/n")
    return markdown_table(headers, rows, "lrrrrr")


def _mmlu_micro(scores: Sequence[float], sizes: Sequence[int]) -> float:
    """Return the average over questions, with one question of each subject missing."""
    return sum(s * (n - 1) for s, n in zip(scores, sizes, strict=True)) / sum(n - 1 for n in sizes)


def _truthfulqa_table(data: dict[str, Any]) -> str:
    counts = data["truthfulqa"]["questions"]
    rows = []
    for model, row in data["truthfulqa"]["models"].items():
        cells = []
        for score, n in zip(row["scores"], counts.values(), strict=True):
            interval = wilson_interval(round(score * n / 100), n)
            cells.append(f"{score:.1f} {_ends(interval)}" if is_share_of(score, n) else f"**{score:.1f}**")
        rows.append((model, *cells, f"{row['average']:.1f}", f"{_micro(row['scores'], counts):.1f}"))
    headers = ("model", *(f"{name}, n = {n}" for name, n in counts.items()), "macro", "micro")
    return markdown_table(headers, rows, "lrrrrrr")


def _micro(scores: Sequence[float], counts: dict[str, int]) -> float:
    return sum(s * n for s, n in zip(scores, counts.values(), strict=True)) / sum(counts.values())


def _defect_list(data: dict[str, Any]) -> str:
    return "\n".join(f"- {text}" for text in _defects(data))


def _defects(data: dict[str, Any]) -> Iterator[str]:
    sizes = data["subjects"]
    yield (
        f"**MMLU lacks a question of every subject.** The nine test sets have {sum(sizes.values()):,} "
        "questions, "
        f"{data['questions']['MMLU']:,} were scored, and the subjects' scores are whole numbers of n − 1 "
        "questions, not "
        "of n: the first line of each file was read as a header."
    )
    answers = data["pubmedqa"]
    possible, n = answers["yes"] + answers["no"], sum(answers.values())
    yield (
        f"**`maybe` cannot be right.** It was no valid answer of the parser, so at most {possible} of {n} "
        "questions of "
        f"PubMedQA ({100 * possible / n:.0f} %) can be answered correctly. Always `yes` scores "
        f"{100 * answers['yes'] / n:.1f} %."
    )
    for table in data["tables"]:
        for row in table["rows"]:
            mean = sum(row["scores"]) / len(row["scores"])
            if abs(mean - row["average"]) > _HALF:
                yield (
                    f"**An average is not that of its row.** {row['model']}, {table['name']}: printed "
                    f"{row['average']:.1f}, the five cells have {mean:.1f}."
                )
            limit = largest_deviation(row["scores"][1])
            if row.get("spread", 0) > limit:
                yield (
                    f"**A spread is larger than possible.** {row['model']} on PubMedQA, {table['name']}: "
                    f"{row['scores'][1]:.1f} ± {row['spread']:.1f}; three accuracies with this mean have a "
                    "standard "
                    f"deviation of at most {limit:.1f}."
                )
    yield from _subset_defects(data)
    yield from _claim_defects(data)


def _subset_defects(data: dict[str, Any]) -> Iterator[str]:
    for row in data["mmlu"]:
        micro = _mmlu_micro(row["scores"], list(data["subjects"].values()))
        if abs(micro - row["reported"]) > 2 * _HALF:
            yield (
                f"**Two tables disagree on MMLU.** {row['model']}: {row['reported']:.1f} in table 5, "
                f"{micro:.1f} from the subjects of table 12."
            )
    counts = data["truthfulqa"]["questions"]
    for model, row in data["truthfulqa"]["models"].items():
        for score, (name, n) in zip(row["scores"], counts.items(), strict=True):
            if not is_share_of(score, n):
                below = math.floor(score * n / 100)
                near = [f"{100 * k / n:g} %" for k in (below, below + 1)]
                yield (
                    f"**A score is no share of its questions.** {model}, TruthfulQA {name}: {score:.1f} %, "
                    f"but of {n} "
                    "questions the nearest shares are "
                    f"{' and '.join(near)}."
                )
    guessing = [m for m, row in data["truthfulqa"]["models"].items() if _micro(row["scores"], counts) < 20]
    yield (
        f"**Scores below chance.** {' and '.join(guessing)} answer fewer than a fifth of TruthfulQA's "
        "questions; a model that "
        "guesses among four or five options does as well or better, so these are mostly answers that the "
        "parser rejected."
    )
    (table,) = (t for t in data["tables"] if t["name"].startswith("Top token"))
    final = data["final_learning_rate"]["1.6e-4"]["scores"][0]
    yield (
        f"**One model has two scores.** Meditron-7B on MMLU: {_scores_of(table, 'Meditron-7B')[0]:.1f} in "
        "table 5, "
        f"{final:.1f} in tables 8 and 11."
    )


def _claim_defects(data: dict[str, Any]) -> Iterator[str]:
    best = dict(zip(data["questions"], _scores_of(data["tables"][-1], "Meditron-70B"), strict=True))
    distances = {name: best[name] - score for name, score in data["commercial"]["GPT-4"].items()}
    shown = ", ".join(f"{name} {_signed(distance, 1)}" for name, distance in distances.items())
    yield (
        "**“Within 5 % of GPT-4” holds for one benchmark of four.** Self-consistency minus GPT-4, in "
        f"points: {shown}; "
        f"mean {_signed(sum(distances.values()) / len(distances), 1)}."
    )
    figure_3 = {name: scores["MedQA-4"] for name, scores in data["commercial"].items()}
    pairs = ", ".join(f"{name} {score} and {figure_3[name]}" for name, score in data["figure_1"].items())
    yield f"**Two figures disagree on MedQA.** Figure 1 and figure 3 (four options): {pairs}."
    (top,) = (t for t in data["tables"] if t["name"].startswith("Top token"))
    tuned, other = (
        {row["model"]: row["average"] for row in top["rows"] if row["tuned"] is t} for t in (True, False)
    )
    ours, base = tuned["Meditron-70B"], tuned["Llama-2-70B"]
    yield (
        "**A table mixes models tuned per task with models that were only prompted.** The "
        f"{ours - other['Clinical-Camel-70B']:.1f} points over Clinical-Camel-70B compare a finetuned model "
        "with one that "
        f"was not; over Llama-2-70B, finetuned in the same way, the average gains {ours - base:.1f} points."
    )
    yield (
        "**The average counts one test twice.** MedQA and MedQA-4 are the same 1,273 questions with five and "
        "with four "
        "options."
    )


def _signed(value: float, decimals: int) -> str:
    return f"{value:+.{decimals}f}".replace("-", "−")


def _ends(interval: Interval | None) -> str:
    return "" if interval is None else f"[{100 * interval.low:.0f}, {100 * interval.high:.0f}]"


def main() -> None:
    """Print the blocks, or write them into the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="write the page")
    if parser.parse_args().write:
        PAGE.write_text(render(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    for name, text in blocks().items():
        print(f"## {name}\n{text}\n")


if __name__ == "__main__":
    main()
