"""Agreement of judges, and rates corrected for a judge's errors, with intervals by cluster.

Every statistic is a function of sums over items, given as the last axis of an array, so that it can be
computed for thousands of resamples at once. The items are yes/no verdicts or ratings; those of one
conversation are not independent, so whole conversations are resampled.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from meditron.core.statistics import MIN_SAMPLE_SIZE, Interval

__all__ = [
    "cluster_interval",
    "cluster_intervals",
    "cluster_sums",
    "cohen_kappa",
    "coincidence_alpha",
    "coincidence_sums",
    "krippendorff_alpha",
    "krippendorff_sums",
    "prediction_powered_rate",
    "rogan_gladen",
    "share",
]

Sums = NDArray[np.float64]
Statistic = Callable[[Sums], Sums]
_LEVELS = (0.025, 0.975)
_LARGEST_CHUNK = 1 << 22  # counts drawn at a time: 32 MB
_MOST_UNDEFINED = 0.05  # share of resamples without a value above which there is no interval


def share(sums: Sums) -> Sums:
    """Return the ratio of two sums (…, 2): numerator and denominator; NaN for a denominator of zero."""
    return _divide(sums[..., 0], sums[..., 1])


def cohen_kappa(counts: Sums) -> Sums:
    """Compute Cohen's kappa of two judges (Cohen 1960, Educ. Psychol. Meas. 20: 37-46).

    κ = (p_o − p_e) / (1 − p_e), with the observed share of equal verdicts p_o, and p_e that of two
    independent judges who say yes as often.

    Args:
        counts: Numbers of items (…, 4) to which both say no, only the second yes, only the first yes, both
            yes.

    Returns:
        Kappa (…); NaN if both judges give the same verdict to all items, so that p_e is 1.
    """
    n = counts.sum(-1)
    first = _divide(counts[..., 2] + counts[..., 3], n)
    second = _divide(counts[..., 1] + counts[..., 3], n)
    observed = _divide(counts[..., 0] + counts[..., 3], n)
    expected = first * second + (1 - first) * (1 - second)
    return _divide(observed - expected, 1 - expected)


def krippendorff_sums(verdicts: ArrayLike) -> Sums:
    """Return each item's sums (items, 3) for `krippendorff_alpha`.

    Args:
        verdicts: 1, 0 or NaN (no verdict), of shape (items, judges).
    """
    table = np.asarray(verdicts, dtype=float)
    yes, no = (table == 1).sum(1).astype(float), (table == 0).sum(1).astype(float)
    judges = yes + no
    # An item with a single verdict shows no agreement, so it has no part in the sums.
    paired = judges > 1
    disagreement = np.where(paired, yes * no / np.maximum(judges - 1, 1), 0.0)
    return np.stack([disagreement, yes * paired, no * paired], axis=1)


def krippendorff_alpha(sums: Sums) -> Sums:
    """Compute Krippendorff's alpha of yes/no verdicts of any number of judges, with gaps.

    α = 1 − D_o / D_e (Krippendorff, Computing Krippendorff's Alpha-Reliability, 2011, nominal data). With N₁
    yes and N₀ no verdicts, and n₁ and n₀ of them of one item, this is

        1 − (N₁ + N₀ − 1) Σ (n₁ n₀ / (n₁ + n₀ − 1)) / (N₁ N₀)

    Items with fewer than two verdicts are left out.

    Args:
        sums: Sums (…, 3) of `krippendorff_sums` over items.

    Returns:
        Alpha (…); NaN if all verdicts are the same.
    """
    disagreement, yes, no = sums[..., 0], sums[..., 1], sums[..., 2]
    return 1 - _divide((yes + no - 1) * disagreement, yes * no)


def coincidence_sums(ratings: ArrayLike, values: Sequence[float]) -> Sums:
    """Return each item's coincidences (items, V²) for `coincidence_alpha`.

    An item with m ratings, n_c of them with the value c, adds n_c n_k / (m − 1) to the pair of values (c, k),
    and n_c (n_c − 1) / (m − 1) to (c, c). Items with fewer than two ratings add nothing.

    Args:
        ratings: One of `values`, or NaN (no rating), of shape (items, raters).
        values: The V possible values, in order.
    """
    table = np.asarray(ratings, dtype=float)
    counts = (table[:, :, None] == np.asarray(values, dtype=float)).sum(1).astype(float)
    given = counts.sum(1)
    pairs = counts[:, :, None] * counts[:, None, :] - counts[:, :, None] * np.eye(len(values))
    weights = np.where(given > 1, 1 / np.maximum(given - 1, 1), 0.0)
    sums: Sums = (pairs * weights[:, None, None]).reshape(len(table), -1)
    return sums


def coincidence_alpha(sums: Sums, *, ordinal: bool) -> Sums:
    """Compute Krippendorff's alpha of ratings with any number of values and raters, with gaps.

    α = 1 − (n − 1) Σ o_ck δ²_ck / Σ n_c n_k δ²_ck over all pairs of values (Krippendorff, Computing
    Krippendorff's Alpha-Reliability, 2011), with the coincidences o, their margins n_c and their sum n. For
    nominal data δ² is 1 for different values. For ordinal data δ is the difference of the values' mean ranks
    among all ratings: the number of ratings between them, and half of those with either value.

    Args:
        sums: Sums (…, V²) of `coincidence_sums` over items.
        ordinal: The values are ordered.

    Returns:
        Alpha (…); NaN if all ratings are the same.
    """
    size = math.isqrt(sums.shape[-1])
    coincidences = sums.reshape(*sums.shape[:-1], size, size)
    margins = coincidences.sum(-1)
    if ordinal:
        ranks = np.cumsum(margins, axis=-1) - margins / 2
        distances = (ranks[..., :, None] - ranks[..., None, :]) ** 2
    else:
        distances = np.broadcast_to(1 - np.eye(size), coincidences.shape)
    observed = (coincidences * distances).sum((-2, -1))
    expected = (margins[..., :, None] * margins[..., None, :] * distances).sum((-2, -1))
    return 1 - _divide((margins.sum(-1) - 1) * observed, expected)


def rogan_gladen(sums: Sums) -> Sums:
    """Correct a judged rate by the judge's sensitivity and specificity.

    (p + Sp − 1) / (Se + Sp − 1), limited to the range 0 to 1, for the judged rate p of all items, and Se and
    Sp from the labelled ones (Rogan & Gladen 1978, Am. J. Epidemiol. 107: 71-76). Assumes that both are the
    same in the items without a label.

    Args:
        sums: Numbers of items (…, 6): judged, judged yes; and of the labelled ones: both no, only the label
            yes, only the judge yes, both yes.

    Returns:
        The corrected rate (…); NaN if Se + Sp ≤ 1: verdicts that are no better than chance cannot be
        corrected.
    """
    rate = _divide(sums[..., 1], sums[..., 0])
    both_no, missed, false, both_yes = np.moveaxis(sums[..., 2:], -1, 0)
    youden = _divide(both_yes, both_yes + missed) + _divide(both_no, both_no + false) - 1
    specificity = _divide(both_no, both_no + false)
    corrected = _divide(rate + specificity - 1, np.where(youden > 0, youden, np.nan))
    return np.clip(corrected, 0, 1)


def prediction_powered_rate(sums: Sums) -> Sums:
    """Correct a judged mean by its mean error on the labelled items.

    mean(f) + mean(y − f), the first mean over all N items and the second over the n labelled ones: the
    estimator of prediction-powered inference (Angelopoulos et al. 2023, Science 382: 669-674, arXiv
    2301.09633). It is unbiased however wrong the judge is, if the labelled items are a random sample.

    Args:
        sums: Sums (…, 4): Σf, N, Σ(y − f), n.

    Returns:
        The corrected mean (…), limited to the range 0 to 1; NaN without labelled items.
    """
    return np.clip(share(sums[..., :2]) + share(sums[..., 2:]), 0, 1)


def cluster_sums(items: ArrayLike, clusters: Sequence[str]) -> Sums:
    """Sum the rows of `items` (items, K) by cluster; returns (clusters, K)."""
    table = np.asarray(items, dtype=float)
    names, places = np.unique(np.asarray(clusters), return_inverse=True)
    sums: Sums = np.zeros((len(names), table.shape[1]))
    np.add.at(sums, places, table)
    return sums


def cluster_interval(sums: Sums, statistic: Statistic, *, seed: int, resamples: int) -> Interval | None:
    """Compute the 95 % percentile bootstrap interval of one statistic; see `cluster_intervals`."""
    [interval] = cluster_intervals(sums, [statistic], seed=seed, resamples=resamples)
    return interval


def cluster_intervals(
    sums: Sums, statistics: Sequence[Statistic], *, seed: int, resamples: int
) -> list[Interval | None]:
    """Compute the 95 % percentile bootstrap intervals of statistics over clusters, from the same resamples.

    Clusters are drawn with replacement; the ends are the 2.5th and 97.5th percentiles of the statistic over
    the resamples that have one (Efron & Tibshirani, An Introduction to the Bootstrap, 1993, §13.3).

    Args:
        sums: Sums of each cluster (clusters, K).
        statistics: Functions of summed sums (…, K).
        seed: Seed of the resampling.
        resamples: Number of resamples.

    Returns:
        The interval of each statistic. None for fewer than `MIN_SAMPLE_SIZE` clusters, if more than 5 % of
        the resamples have no value, or if all have the same one: such a sample contains no information about
        the spread.
    """
    n = len(sums)
    if n < MIN_SAMPLE_SIZE:
        return [None] * len(statistics)
    generator = np.random.default_rng(seed)
    drawn = []
    size = max(1, _LARGEST_CHUNK // n)
    for start in range(0, resamples, size):
        draws = generator.multinomial(n, np.full(n, 1 / n), size=min(size, resamples - start))
        drawn.append(draws @ sums)
    resampled = np.concatenate(drawn)
    return [_percentile_interval(statistic(resampled)) for statistic in statistics]


def _percentile_interval(values: Sums) -> Interval | None:
    defined = values[np.isfinite(values)]
    if len(defined) < (1 - _MOST_UNDEFINED) * len(values):
        return None
    low, high = np.quantile(defined, _LEVELS)
    return Interval(float(low), float(high)) if low < high else None


def _divide(numerator: Sums, denominator: Sums) -> Sums:
    """Divide; NaN, without a warning, for a denominator of zero."""
    numerator, denominator = np.broadcast_arrays(np.asarray(numerator, float), np.asarray(denominator, float))
    quotient: Sums = np.divide(
        numerator, denominator, out=np.full(denominator.shape, np.nan), where=denominator != 0
    )
    return quotient
