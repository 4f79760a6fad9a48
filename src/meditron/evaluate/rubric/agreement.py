"""Agreement of judges with each other and with human labels, and corrections of the judged rates."""

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

from meditron.core.agreement import (
    cluster_intervals,
    cluster_sums,
    cohen_kappa,
    krippendorff_alpha,
    krippendorff_sums,
    prediction_powered_rate,
    rogan_gladen,
    share,
)
from meditron.core.statistics import Interval
from meditron.evaluate.rubric.labels import HumanLabels, LabelKey
from meditron.evaluate.rubric.scores import Credits, JudgedAnswer, answer_score
from meditron.store.rubric_results import HumanAgreement, HumanComparison, JudgeAgreement, JudgePair

__all__ = ["compare_with_humans", "judge_agreement"]

Verdicts = Sequence[bool | None]
_Array = NDArray[np.float64]
Statistic = Callable[[_Array], _Array]
Estimate = tuple[float | None, Interval | None]


class _Estimator:
    """Computes statistics of sums over items, with intervals by conversation."""

    def __init__(self, clusters: Sequence[str], seed: int, resamples: int) -> None:
        self._clusters, self._seed, self._resamples = clusters, seed, resamples

    def __call__(self, items: _Array, statistic: Statistic) -> Estimate:
        """Return the statistic of the items' sums (items, K), and its interval; None if it has no value."""
        return self.several(items, {"": statistic})[""]

    def several(self, items: _Array, statistics: Mapping[str, Statistic]) -> dict[str, Estimate]:
        """Return several statistics of the same sums, by name."""
        sums = cluster_sums(items, self._clusters)
        settings = {"seed": self._seed, "resamples": self._resamples}
        intervals = cluster_intervals(sums, [*statistics.values()], **settings)
        estimates: dict[str, Estimate] = {}
        for (name, statistic), interval in zip(statistics.items(), intervals, strict=True):
            value = float(statistic(items.sum(0)))
            estimates[name] = (value, interval) if math.isfinite(value) else (None, None)
        return estimates


def judge_agreement(answers: Sequence[JudgedAnswer], *, seed: int, resamples: int) -> JudgeAgreement | None:
    """Compute the agreement of the judges; None for one judge."""
    judges = [rows[0].judge for rows in answers[0].judgements]
    if len(judges) < 2:
        return None
    verdicts = [
        [row.met for answer in answers for row in answer.judgements[place]] for place in range(len(judges))
    ]
    table = np.array([[np.nan if v is None else float(v) for v in judge] for judge in verdicts]).T
    columns = [krippendorff_sums(table)]
    statistics: dict[str, Statistic] = {"alpha": lambda sums: krippendorff_alpha(sums[..., :3])}
    places = list(combinations(range(len(judges)), 2))
    for number, (a, b) in enumerate(places):
        columns.append(_pair_counts(verdicts[a], verdicts[b]))
        statistics[f"{a} {b}"] = partial(_kappa_from, 3 + 4 * number)
    # One call, because drawing the resamples takes most of the time.
    estimate = _Estimator(_clusters(answers), seed, resamples)
    estimates = estimate.several(np.concatenate(columns, axis=1), statistics)
    pairs = [
        JudgePair(
            a=judges[a],
            b=judges[b],
            n=int(counts.sum()),
            agreement=_agreement(counts),
            kappa=estimates[f"{a} {b}"][0],
            interval=estimates[f"{a} {b}"][1],
        )
        for (a, b), counts in zip(places, columns[1:], strict=True)
    ]
    alpha, interval = estimates["alpha"]
    several = int((np.isfinite(table).sum(1) > 1).sum())
    return JudgeAgreement(alpha=alpha, interval=interval, n=several, pairs=tuple(pairs))


def _kappa_from(column: int, sums: _Array) -> _Array:
    """Return kappa of the four counts that begin at a column."""
    return cohen_kappa(sums[..., column : column + 4])


def compare_with_humans(
    answers: Sequence[JudgedAnswer], labels: HumanLabels, *, seed: int, resamples: int
) -> HumanAgreement:
    """Compare verdicts with human labels, and correct the judged rate and score for the judges' errors."""
    keys = [_label_keys(answer) for answer in answers]
    flat = [key for group in keys for key in group]
    human = [labels.verdict(key) for key in flat]
    known = dict.fromkeys(flat)  # ordered, unlike a set, so that sums have the same last bits in every run
    labelled = [key for key in known if key in labels.by_rater]
    estimate = _Estimator(_clusters(answers), seed, resamples)
    # A judge that finds a criterion met by half is a tie here, as labels are met or not met.
    combined = [
        None if credit is None or credit == 0.5 else credit > 0.5
        for answer in answers
        for credit in answer.credits
    ]
    comparisons = [_compare(estimate, "combined", combined, human)]
    judges = [rows[0].judge for rows in answers[0].judgements]
    if len(judges) > 1:
        for place, judge in enumerate(judges):
            verdicts = [row.met for answer in answers for row in answer.judgements[place]]
            comparisons.append(_compare(estimate, judge, verdicts, human))
    corrected, corrected_interval, full = _corrected_score(answers, keys, labels, seed, resamples)
    return HumanAgreement(
        labels=labels.file_name,
        labels_sha256=labels.file_sha256,
        criteria=sum(verdict is not None for verdict in human),
        tied=sum(labels.verdict(key) is None for key in labelled),
        unused=sum(len(raters) for key, raters in labels.by_rater.items() if key not in known),
        raters_alpha=_raters_alpha(labels, labelled),
        comparisons=tuple(comparisons),
        labelled_conversations=full,
        corrected_score=corrected,
        corrected_interval=corrected_interval,
    )


_HUMAN_STATISTICS: dict[str, Statistic] = {
    "kappa": lambda sums: cohen_kappa(sums[..., 2:]),
    "sensitivity": lambda sums: share(np.stack([sums[..., 5], sums[..., 3] + sums[..., 5]], axis=-1)),
    "specificity": lambda sums: share(np.stack([sums[..., 2], sums[..., 2] + sums[..., 4]], axis=-1)),
    "met_rate": lambda sums: share(sums[..., [1, 0]]),
    "rogan_gladen": rogan_gladen,
    "prediction_powered": lambda sums: prediction_powered_rate(
        np.stack([sums[..., 1], sums[..., 0], sums[..., 3] - sums[..., 4], sums[..., 2:].sum(-1)], axis=-1)
    ),
}
"""Field of `HumanComparison` → function of the sums of its columns."""


def _compare(estimate: _Estimator, judge: str, verdicts: Verdicts, human: Verdicts) -> HumanComparison:
    """Compare one judge's verdicts with the human ones, criterion by criterion."""
    counts = _pair_counts(human, verdicts)
    judged = np.array([[float(v is not None), float(v is True)] for v in verdicts])
    # Columns: judged; judged met; and of the labelled: both no, only the human yes, only the judge yes, both.
    items = np.concatenate([judged, counts[:, [0, 2, 1, 3]]], axis=1)
    values = estimate.several(items, _HUMAN_STATISTICS)
    estimates = {name: value for name, (value, _) in values.items()}
    intervals = {f"{name}_interval": interval for name, (_, interval) in values.items()}
    return HumanComparison(
        judge=judge, n=int(counts.sum()), agreement=_agreement(counts), **estimates, **intervals
    )


def _corrected_score(
    answers: Sequence[JudgedAnswer],
    keys: Sequence[Sequence[LabelKey]],
    labels: HumanLabels,
    seed: int,
    resamples: int,
) -> tuple[float | None, Interval | None, int]:
    """Return the corrected score, its interval, and the number of conversations with all human verdicts."""
    sums, clusters, full = [], [], 0
    for answer, answer_keys in zip(answers, keys, strict=True):
        if answer.score is None:
            continue
        human = [labels.verdict(key) for key in answer_keys]
        error, labelled = 0.0, 0.0
        if None not in human:
            credits: Credits = [float(verdict is True) for verdict in human]
            # A rubric has positive points, so with all verdicts there is a score.
            error = (answer_score(answer.row.criteria, credits) or 0.0) - answer.score
            labelled, full = 1.0, full + 1
        sums.append([answer.score, 1.0, error, labelled])
        clusters.append(answer.row.cluster)
    if not full:
        return None, None, 0
    value, interval = _Estimator(clusters, seed, resamples)(np.array(sums), prediction_powered_rate)
    return value, interval, full


def _raters_alpha(labels: HumanLabels, keys: Sequence[LabelKey]) -> float | None:
    raters = sorted({rater for key in keys for rater in labels.by_rater[key]})
    if len(raters) < 2:
        return None
    table = [[float(labels.by_rater[key].get(rater, np.nan)) for rater in raters] for key in keys]
    alpha = float(krippendorff_alpha(krippendorff_sums(table).sum(0)))
    return alpha if math.isfinite(alpha) else None


def _pair_counts(first: Verdicts, second: Verdicts) -> _Array:
    """Return a row (4) for each item: 1 in the column 2 · first + second, or zeros if one has no verdict."""
    counts = np.zeros((len(first), 4))
    for row, (a, b) in enumerate(zip(first, second, strict=True)):
        if a is not None and b is not None:
            counts[row, 2 * a + b] = 1
    return counts


def _agreement(counts: _Array) -> float | None:
    n = counts.sum()
    return float((counts[:, 0].sum() + counts[:, 3].sum()) / n) if n else None


def _label_keys(answer: JudgedAnswer) -> list[LabelKey]:
    return [(answer.row.id, answer.answer.answer_sha256, criterion.text) for criterion in answer.row.criteria]


def _clusters(answers: Sequence[JudgedAnswer]) -> list[str]:
    """Return the conversation of every criterion of every answer."""
    return [answer.row.cluster for answer in answers for _ in answer.row.criteria]
