"""Results of a review: means, paired differences, preferences and agreement.

The question is the unit: ratings of one question by several raters are averaged, and whole questions are
resampled. Means and shares have the bootstrap-t intervals of `core.statistics`, paired differences its exact
or bootstrap p, adjusted by Holm over all differences of the review; alpha has a percentile bootstrap over
questions. No interval and no verdict is given for fewer than `MIN_SAMPLE_SIZE` questions.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Literal

import numpy as np

from meditron.core.agreement import cluster_intervals, cluster_sums, coincidence_alpha, coincidence_sums
from meditron.core.statistics import (
    MIN_SAMPLE_SIZE,
    Interval,
    PairedDifference,
    bootstrap_ratio,
    holm,
    paired_bootstrap,
)
from meditron.report.methods import LEVEL
from meditron.serve.review.ratings import ANSWER_SIDES, BIAS_KIND, HARM_KIND, HARMFUL, PAIR, PREFERENCE
from meditron.serve.review.records import RatedItem
from meditron.serve.review.rubric import HIGHEST, LOWEST, Rubric

__all__ = [
    "Agreement",
    "Difference",
    "Disagreement",
    "Estimate",
    "ModelScores",
    "Preferences",
    "RaterSummary",
    "ReviewResult",
    "analyse",
]

RESAMPLES = 10_000
SEED = 0
"""Number and seed of the resamples of all intervals."""
_SPREAD = 3  # difference of two ratings on a scale from which it is a disagreement
Verdict = Literal["better", "worse", "undecided", "identical", "too few to compare"]


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean or share over questions, with its 95 % interval."""

    value: float
    interval: Interval | None
    questions: int
    ratings: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelScores:
    """The ratings of one model."""

    scales: Mapping[str, Estimate]
    """Scale → mean; a scale without ratings is absent."""
    harmful: Estimate | None
    """Share of answers called harmful."""
    harm_kinds: Mapping[str, int]
    """Kind → number of ratings."""
    bias_kinds: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Difference:
    """A paired difference b − a of two models on a scale, in the harmful share, or in the share of wins."""

    measure: str
    a: str
    b: str
    n: int
    """Number of questions."""
    difference: float
    interval: Interval | None
    p: float
    p_adjusted: float
    method: str
    verdict: Verdict
    """On b."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preferences:
    """The preferences between two models."""

    a: str
    b: str
    wins: Mapping[str, int]
    """Model → number of times it was preferred."""
    ties: int
    both_bad: int
    share: Mapping[str, Estimate]
    """Model → share of its wins, `tie` and `both bad` counted half."""


@dataclass(frozen=True, slots=True)
class Agreement:
    """Krippendorff's alpha of the raters on a scale, the yes/no on harm, or the preference."""

    measure: str
    level: Literal["ordinal", "nominal"]
    alpha: float | None
    """None if no answer has two ratings, or all ratings are the same."""
    interval: Interval | None
    units: int
    """Number of answers, or pairs of answers, with at least two ratings."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RaterSummary:
    """The ratings of one rater."""

    rater: str
    rated: int
    """Number of comparisons with a preference."""
    assigned: int
    means: Mapping[str, Mapping[str, float]]
    """Scale → model → mean."""
    preferred: Mapping[str, int]
    """Model, `tie` or `both-bad` → number."""
    left: int
    """Number of times that the answer on the left was preferred."""


@dataclass(frozen=True, slots=True)
class Disagreement:
    """A question on which raters differ much: `_SPREAD` points on a scale, or opposite preferences."""

    question: str
    measure: str
    model: str | None
    """None for a preference."""
    ratings: Mapping[str, int | str]
    """Rater → rating, or the preferred model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReviewResult:
    """Everything that is computed from the ratings."""

    models: Mapping[str, ModelScores]
    preferences: Sequence[Preferences]
    differences: Sequence[Difference]
    agreement: Sequence[Agreement]
    categories: Mapping[str, Mapping[str, ModelScores]]
    """Category, or `CATEGORY/SUBKIND`, → model → scores."""
    category_preferences: Mapping[str, Sequence[Preferences]]
    raters: Sequence[RaterSummary]
    disagreements: Sequence[Disagreement]


@dataclass(frozen=True, slots=True)
class _Rating:
    """A rating of one answer, or the preference in one comparison."""

    question: str
    unit: Hashable
    """What is rated."""
    rater: str
    value: float


def analyse(items: Sequence[RatedItem], models: Sequence[str], rubric: Rubric) -> ReviewResult:
    """Compute the results of a review.

    Args:
        items: All comparisons.
        models: The models, in the order of the results.
        rubric: The rubric that they were rated by.
    """
    groups = _by_category(items)
    return ReviewResult(
        models={model: _scores(items, model, rubric) for model in models},
        preferences=_all_preferences(items, models),
        differences=_all_differences(items, models, rubric),
        agreement=_all_agreement(items, models, rubric),
        categories={
            name: {model: _scores(group, model, rubric) for model in models} for name, group in groups.items()
        },
        category_preferences={name: _all_preferences(group, models) for name, group in groups.items()},
        raters=_rater_summaries(items, models, rubric),
        disagreements=[*_disagreements(items, rubric)],
    )


def _by_category(items: Sequence[RatedItem]) -> dict[str, list[RatedItem]]:
    groups: dict[str, list[RatedItem]] = defaultdict(list)
    for item in items:
        question = item.question
        if question.category is not None:
            groups[question.category].append(item)
            if question.subkind is not None:
                groups[f"{question.category}/{question.subkind}"].append(item)
    return dict(sorted(groups.items()))


def _ratings(items: Sequence[RatedItem], field: str, models: Sequence[str]) -> Iterator[_Rating]:
    """Yield the ratings of the answers of models in one field."""
    for item in items:
        pair = tuple(sorted((item.left, item.right)))
        for side, model in zip(ANSWER_SIDES, (item.left, item.right), strict=True):
            value = item.values.get(side, {}).get(field)
            if model in models and value is not None:
                # An answer that is shown in two pairs is rated in each of them.
                yield _Rating(item.question.key, (item.question.key, pair, model), item.rater, float(value))


def _wins(items: Sequence[RatedItem], model: str, other: str) -> Iterator[_Rating]:
    """Yield 1 for a win of `model` against `other`, 0 for a loss, one half for a tie."""
    for item in items:
        if {item.left, item.right} == {model, other} and (choice := item.preferred) is not None:
            value = 1.0 if choice == model else 0.0 if choice == other else 0.5
            yield _Rating(item.question.key, item.question.key, item.rater, value)


def _question_means(ratings: Sequence[_Rating]) -> dict[str, float]:
    values: dict[str, list[float]] = defaultdict(list)
    for rating in ratings:
        values[rating.question].append(rating.value)
    return {question: math.fsum(each) / len(each) for question, each in values.items()}


def _estimate(ratings: Sequence[_Rating], bounds: tuple[float, float]) -> Estimate | None:
    means = list(_question_means(ratings).values())
    if not means:
        return None
    value, interval = bootstrap_ratio(
        means, np.ones(len(means)), seed=SEED, resamples=RESAMPLES, bounds=bounds
    )
    return Estimate(value, interval, len(means), len(ratings))


def _scores(items: Sequence[RatedItem], model: str, rubric: Rubric) -> ModelScores:
    scales = {
        scale.key: _estimate([*_ratings(items, scale.key, [model])], (LOWEST, HIGHEST))
        for scale in rubric.scales
    }
    return ModelScores(
        scales={name: each for name, each in scales.items() if each is not None},
        harmful=_estimate([*_ratings(items, HARMFUL, [model])], (0, 1)),
        harm_kinds=_kinds(items, model, HARM_KIND),
        bias_kinds=_kinds(items, model, BIAS_KIND),
    )


def _kinds(items: Sequence[RatedItem], model: str, field: str) -> dict[str, int]:
    shown = [item for item in items if model in (item.left, item.right)]
    kinds = Counter(str(values[field]) for item in shown if field in (values := item.answer_values(model)))
    return dict(kinds.most_common())


def _all_preferences(items: Sequence[RatedItem], models: Sequence[str]) -> list[Preferences]:
    found = []
    for a, b in combinations(models, 2):
        choices = Counter(item.preferred for item in items if {item.left, item.right} == {a, b})
        shares = {
            model: _estimate([*_wins(items, model, other)], (0, 1)) for model, other in ((a, b), (b, a))
        }
        found.append(
            Preferences(
                a=a,
                b=b,
                wins={a: choices[a], b: choices[b]},
                ties=choices["tie"],
                both_bad=choices["both-bad"],
                share={model: each for model, each in shares.items() if each is not None},
            )
        )
    return found


def _all_differences(items: Sequence[RatedItem], models: Sequence[str], rubric: Rubric) -> list[Difference]:
    """Compare every pair of models in every measure; p is adjusted over all of them."""
    found: list[tuple[str, str, str, bool, PairedDifference]] = []
    for a, b in combinations(models, 2):
        shared = [item for item in items if {item.left, item.right} == {a, b}]
        measures = [(scale.key, scale.better == "high") for scale in rubric.scales] + [(HARMFUL, False)]
        for field, high in measures:
            means = [_question_means([*_ratings(shared, field, [model])]) for model in (a, b)]
            if (difference := _paired(*means)) is not None:
                found.append((field, a, b, high, difference))
        wins = [_question_means([*_wins(shared, *pair)]) for pair in ((a, b), (b, a))]
        if (difference := _paired(*wins)) is not None:
            found.append((PREFERENCE, a, b, True, difference))
    adjusted = holm([difference.p for *_, difference in found])
    return [
        Difference(
            field,
            a,
            b,
            each.n,
            each.difference,
            each.interval,
            each.p,
            p,
            each.method,
            _verdict(each, p, high),
        )
        for (field, a, b, high, each), p in zip(found, adjusted, strict=True)
    ]


def _paired(a: Mapping[str, float], b: Mapping[str, float]) -> PairedDifference | None:
    """Return the difference b − a over the questions that both have ratings of; None if there is none."""
    shared = sorted(a.keys() & b.keys())
    if not shared:
        return None
    return paired_bootstrap(
        [b[key] for key in shared], [a[key] for key in shared], seed=SEED, resamples=RESAMPLES
    )


def _verdict(difference: PairedDifference, p: float, high_is_better: bool) -> Verdict:
    """Return the verdict on b: better or worse if the adjusted p is below 5 % and the interval excludes 0."""
    if difference.n < MIN_SAMPLE_SIZE:
        return "too few to compare"
    if difference.interval is None and difference.difference == 0:
        return "identical"
    low, high = difference.interval or (difference.difference, difference.difference)
    if low <= 0 <= high or p >= LEVEL:
        return "undecided"
    return "better" if (difference.difference > 0) == high_is_better else "worse"


def _all_agreement(items: Sequence[RatedItem], models: Sequence[str], rubric: Rubric) -> list[Agreement]:
    scale_values = range(LOWEST, HIGHEST + 1)
    found = [
        _agreement(scale.key, [*_ratings(items, scale.key, models)], scale_values, ordinal=True)
        for scale in rubric.scales
    ]
    found.append(_agreement(HARMFUL, [*_ratings(items, HARMFUL, models)], (0, 1), ordinal=False))
    choices = [*models, "tie", "both-bad"]
    # The side says nothing: raters see the same pair on different sides. So the values are the models.
    preferences = [
        _Rating(
            item.question.key,
            (item.question.key, tuple(sorted((item.left, item.right)))),
            item.rater,
            float(choices.index(choice)),
        )
        for item in items
        if (choice := item.preferred) is not None
    ]
    return [*found, _agreement(PREFERENCE, preferences, range(len(choices)), ordinal=False)]


def _agreement(
    measure: str, ratings: Sequence[_Rating], values: Sequence[float], *, ordinal: bool
) -> Agreement:
    level: Literal["ordinal", "nominal"] = "ordinal" if ordinal else "nominal"
    table = _unit_table(ratings)
    if not len(table):
        return Agreement(measure, level, None, None, 0)
    questions = list({rating.unit: rating.question for rating in ratings}.values())
    sums = cluster_sums(coincidence_sums(table, values), questions)
    statistic: Callable[[np.ndarray], np.ndarray] = partial(coincidence_alpha, ordinal=ordinal)
    alpha = float(statistic(sums.sum(0)))
    [interval] = cluster_intervals(sums, [statistic], seed=SEED, resamples=RESAMPLES)
    units = int((np.isfinite(table).sum(1) > 1).sum())
    return Agreement(measure, level, alpha if math.isfinite(alpha) else None, interval, units)


def _unit_table(ratings: Sequence[_Rating]) -> np.ndarray:
    """Return the ratings as an array (units, raters), with NaN for those that are missing."""
    units = {unit: place for place, unit in enumerate(dict.fromkeys(each.unit for each in ratings))}
    raters = {rater: place for place, rater in enumerate(dict.fromkeys(each.rater for each in ratings))}
    table = np.full((len(units), len(raters)), np.nan)
    for rating in ratings:
        table[units[rating.unit], raters[rating.rater]] = rating.value
    return table


def _rater_summaries(items: Sequence[RatedItem], models: Sequence[str], rubric: Rubric) -> list[RaterSummary]:
    by_rater: dict[str, list[RatedItem]] = defaultdict(list)
    for item in items:
        by_rater[item.rater].append(item)
    summaries = []
    for rater, own in by_rater.items():
        choices = Counter(choice for item in own if (choice := item.preferred) is not None)
        means = {
            scale.key: {
                model: math.fsum(values) / len(values)
                for model in models
                if (values := [each.value for each in _ratings(own, scale.key, [model])])
            }
            for scale in rubric.scales
        }
        summaries.append(
            RaterSummary(
                rater=rater,
                rated=choices.total(),
                assigned=len(own),
                means=means,
                preferred=dict(choices),
                left=sum(item.values.get(PAIR, {}).get(PREFERENCE) == "left" for item in own),
            )
        )
    return summaries


def _disagreements(items: Sequence[RatedItem], rubric: Rubric) -> Iterator[Disagreement]:
    """Yield the comparisons that raters differ on, by question."""
    by_pair: dict[tuple[str, tuple[str, ...]], list[RatedItem]] = defaultdict(list)
    for item in items:
        by_pair[item.question.key, tuple(sorted((item.left, item.right)))].append(item)
    for (question, pair), group in by_pair.items():
        choices = {item.rater: choice for item in group if (choice := item.preferred) is not None}
        if set(pair) <= set(choices.values()):
            yield Disagreement(question, PREFERENCE, None, choices)
        for scale in rubric.scales:
            for model in pair:
                ratings = {each.rater: int(each.value) for each in _ratings(group, scale.key, [model])}
                if ratings and max(ratings.values()) - min(ratings.values()) >= _SPREAD:
                    yield Disagreement(question, scale.key, model, ratings)
