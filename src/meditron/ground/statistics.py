"""How sure a number is: intervals and paired differences over documents or questions.

Documents are the unit of resampling, for the tokens of one document are not independent. Intervals are
expanded bootstrap percentile intervals (Efron & Tibshirani, An Introduction to the Bootstrap, 1993, ch. 13;
Hesterberg, What Teachers Should Know About the Bootstrap, The American Statistician 69, 2015): of few
documents a plain percentile interval is too narrow, so its ends move out by as much as Student's t makes an
interval of a mean wider than the normal distribution does. What two models did with the same documents is
compared document by document (Miller, Adding Error Bars to Evals, 2024, arXiv:2411.00640, §4). Everything is
seeded: the same numbers give the same interval on every machine.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from meditron.ground.errors import MeditronError, UsageError

__all__ = ["Difference", "Interval", "bootstrap_ratio", "macro_f1", "mcnemar", "paired_bootstrap", "wilson"]

Values = Sequence[float] | NDArray[np.floating] | NDArray[np.integer]

_CONFIDENCE = 0.95
_POWER = 0.80
_CELLS = 1 << 18  # documents drawn at a time: a few megabytes, whatever n and the number of resamples


class Interval(NamedTuple):
    """A 95 % interval."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Difference:
    """What a differs from b by, over the `n` documents that both have seen.

    `p` is two-sided; `detectable` is the smallest true difference that a test at 5 % with these documents
    finds four times in five (80 % power): a smaller one may hide behind a high p.
    """

    n: int
    difference: float
    interval: Interval
    p: float
    detectable: float


def bootstrap_ratio(
    numerators: Values, denominators: Values, *, seed: int, resamples: int = 10_000
) -> tuple[float, Interval]:
    """Σ numerators / Σ denominators over documents, with its 95 % interval.

    With a document's summed log-loss over its tokens it is the log-loss a token; with denominators of one it
    is the plain mean. Raises UsageError for fewer than two documents or unequal lengths, MeditronError for
    values that are not finite or denominators that are not above zero.
    """
    above, below = _column("numerators", numerators), _positive("denominators", denominators)
    _same_length(above, below)
    sums = _resampled_sums((above, below), seed, resamples)
    return float(above.sum() / below.sum()), _percentiles(sums[0] / sums[1], len(above))


def paired_bootstrap(
    a: Values, b: Values, *, weights: Values | None = None, seed: int, resamples: int = 10_000
) -> Difference:
    """How far `a` lies from `b` (a − b) on the same documents, in the same order.

    Without weights it is the mean over documents of a_i − b_i, each document counting the same. With weights
    (token counts, where a_i is a mean over tokens) it is Σ w_i (a_i − b_i) / Σ w_i, a ratio of sums: each
    token counts the same. The documents are resampled either way.

    p is the level at which the interval would touch zero: twice the smaller share of resampled differences on
    either side of it (Efron & Tibshirani 1993, §15.4), with (r + 1) / (resamples + 1) in place of r /
    resamples so that it is never zero (Davison & Hinkley, Bootstrap Methods, 1997, §4.2), and expanded as the
    interval is.
    Raises as `bootstrap_ratio` does.
    """
    first, second = _column("a", a), _column("b", b)
    _same_length(first, second)
    weight = np.ones_like(first) if weights is None else _positive("weights", weights)
    _same_length(first, weight)
    apart = first - second
    difference = float((weight * apart).sum() / weight.sum())
    sums = _resampled_sums((weight * apart, weight), seed, resamples)
    ratios = sums[0] / sums[1]
    below, above = int((ratios <= 0).sum()), int((ratios >= 0).sum())
    return Difference(
        n=len(apart),
        difference=difference,
        interval=_percentiles(ratios, len(apart)),
        p=_expanded(min(1.0, 2 * (min(below, above) + 1) / (resamples + 1)), len(apart)),
        detectable=_detectable(apart, weight, difference),
    )


def wilson(successes: int, n: int) -> Interval:
    """The 95 % score interval of a proportion (Wilson 1927, J. Am. Stat. Assoc. 22: 209–212).

    Unlike the textbook's ± 1.96 SE it stays within [0, 1] and is honest for few trials or rare successes.
    Raises UsageError unless 0 ≤ successes ≤ n and n ≥ 1.
    """
    if n < 1 or not 0 <= successes <= n:
        raise UsageError(f"{successes} of {n} is no proportion")
    z = NormalDist().inv_cdf((1 + _CONFIDENCE) / 2)
    share = successes / n
    centre = share + z * z / (2 * n)
    spread = z * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # At the ends the two terms are equal up to rounding.
    low = 0.0 if successes == 0 else float((centre - spread) / scale)
    high = 1.0 if successes == n else float((centre + spread) / scale)
    return Interval(low, high)


def mcnemar(only_a: int, only_b: int) -> float:
    """The exact two-sided p-value of two models being right equally often (McNemar 1947, Psychometrika 12).

    `only_a` questions were answered rightly by a alone, `only_b` by b alone: without a difference each of
    them falls to either side like a fair coin. Raises UsageError for counts below zero.
    """
    if only_a < 0 or only_b < 0:
        raise UsageError(f"{only_a} and {only_b} are no counts")
    n, fewer = only_a + only_b, min(only_a, only_b)
    one_sided = sum(math.comb(n, k) for k in range(fewer + 1)) / (1 << n)
    return min(1.0, 2 * one_sided)


def macro_f1(gold: Sequence[int], predicted: Sequence[int | None]) -> float:
    """Mean over the classes, gold or predicted, of the harmonic mean of precision and recall.

    None is no class: the question counts against its gold class's recall and against nothing else. Raises
    UsageError for unequal lengths and for nothing.
    """
    if not gold or len(gold) != len(predicted):
        raise UsageError(f"{len(gold)} gold answers against {len(predicted)} predictions")
    classes = {*gold, *(p for p in predicted if p is not None)}
    right = Counter(g for g, p in zip(gold, predicted, strict=True) if g == p)
    of_gold, of_predicted = Counter(gold), Counter(predicted)
    return sum(2 * right[c] / (of_gold[c] + of_predicted[c]) for c in classes) / len(classes)


def _detectable(apart: NDArray[np.float64], weight: NDArray[np.float64], difference: float) -> float:
    """(t of 5 % two-sided + t of 80 % power) paired standard errors: 2.80 of many (Miller 2024, §5).

    The standard error is the linearised one of a ratio of sums; with equal weights it is s / √n.
    """
    from scipy.special import stdtrit

    n = len(apart)
    error = np.sqrt(n / (n - 1) * ((weight * (apart - difference)) ** 2).sum()) / weight.sum()
    return float((stdtrit(n - 1, (1 + _CONFIDENCE) / 2) + stdtrit(n - 1, _POWER)) * error)


def _resampled_sums(columns: Sequence[NDArray[np.float64]], seed: int, resamples: int) -> NDArray[np.float64]:
    """Sums over n documents drawn with replacement: [column, resample]. All columns share the draws."""
    if resamples < 1:
        raise UsageError(f"{resamples} resamples: at least one is needed")
    generator = np.random.Generator(np.random.PCG64(seed))
    n = len(columns[0])
    rows = max(1, _CELLS // n)
    sums = np.empty((len(columns), resamples))
    for start in range(0, resamples, rows):
        stop = min(start + rows, resamples)
        drawn = generator.integers(n, size=(stop - start, n), dtype=np.int32)
        for total, column in zip(sums, columns, strict=True):
            total[start:stop] = column[drawn].sum(axis=1)
    return sums


def _percentiles(values: NDArray[np.float64], n: int) -> Interval:
    """The ends of what was resampled from n documents."""
    from scipy.special import stdtrit

    tail = NormalDist().cdf(float(stdtrit(n - 1, (1 - _CONFIDENCE) / 2)) * math.sqrt(n / (n - 1)))
    low, high = np.quantile(values, [tail, 1 - tail])
    return Interval(float(low), float(high))


def _expanded(p: float, n: int) -> float:
    """A percentile interval's two-sided level, as that of the expanded interval with the same ends."""
    from scipy.special import stdtr

    return float(2 * stdtr(n - 1, NormalDist().inv_cdf(p / 2) * math.sqrt((n - 1) / n)))


def _column(name: str, values: Values) -> NDArray[np.float64]:
    column = np.asarray(values, dtype=np.float64)
    if column.ndim != 1:
        raise UsageError(f"{name}: one value a document is needed, not an array of shape {column.shape}")
    if len(column) < 2:
        raise UsageError(f"{name}: an interval needs at least two documents, there are {len(column)}")
    if not np.isfinite(column).all():
        place = int(np.flatnonzero(~np.isfinite(column))[0])
        raise MeditronError(f"{name}[{place}] is {column[place]}: no interval can be given")
    return column


def _positive(name: str, values: Values) -> NDArray[np.float64]:
    column = _column(name, values)
    if not (column > 0).all():
        place = int(np.flatnonzero(column <= 0)[0])
        raise MeditronError(f"{name}[{place}] is {column[place]:g}: it must be above zero")
    return column


def _same_length(one: NDArray[np.float64], other: NDArray[np.float64]) -> None:
    if len(one) != len(other):
        raise UsageError(f"{len(one)} documents against {len(other)}: a pairing needs the same ones")
