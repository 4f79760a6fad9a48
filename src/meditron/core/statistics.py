"""Confidence intervals and paired tests over documents or questions.

Documents are the unit of resampling, because the tokens of one document are not independent. Formulas,
sources, and coverage by simulation are in `docs/explanation/statistics.md`:

- Means and weighted ratios: bootstrap-t (studentised bootstrap; Efron & Tibshirani, An Introduction to the
  Bootstrap, 1993, §12.5) with a jackknife standard error, never narrower than Student's t.
- Paired differences: documents are compared one by one (Miller, Adding Error Bars to Evals, 2024,
  arXiv:2411.00640, §4). For up to `MAX_EXACT_SIZE` documents p comes from the exact sign-flip test, for more
  from the same bootstrap as the interval.
- Questions in clusters, such as several on one passage: the same bootstrap over clusters.
- Proportions: Wilson's interval; differences of paired proportions: Bonett and Price's, McNemar's exact test.
- Several comparisons in one report: Holm's adjustment.

No interval is computed for fewer than `MIN_SAMPLE_SIZE` documents or questions. All resampling is seeded.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from meditron.core.errors import MeditronError, UsageError

__all__ = [
    "MAX_EXACT_SIZE",
    "MAX_EXPONENT",
    "MIN_SAMPLE_SIZE",
    "Interval",
    "PairedDifference",
    "bootstrap_ratio",
    "clustered_mean",
    "finite_exp",
    "holm",
    "macro_f1",
    "mcnemar",
    "paired_bootstrap",
    "paired_proportions",
    "sign_flip",
    "wilson_interval",
]

Values = Sequence[float] | NDArray[np.floating] | NDArray[np.integer]
_Column = NDArray[np.float64]

MIN_SAMPLE_SIZE = 6
"""Smallest sample for which a 95 % interval or a verdict is given. Five differences of the same sign, the
clearest result that five documents can give, have p = 2 / 2^5 = 0.0625, so no two-sided test at 5 % can
reject."""
MAX_EXACT_SIZE = 20
"""Largest sample for which the sign-flip test enumerates all 2^n sign patterns (2^20 sums take 8 MB and a few
milliseconds)."""
MAX_EXPONENT = 700.0
"""Losses in nats are clipped to this before exp, which overflows above 709."""
_CONFIDENCE = 0.95
_POWER = 0.80
_MAX_WIDTH = 4.0
"""Limit of an interval's half-width, as a multiple of the Student's t interval's. If most values are equal,
many resamples have almost no spread, and the bootstrap-t interval alone would be infinite."""
_ROUNDING = 1e-12
"""Differences smaller than this fraction of the values are rounding noise and are treated as zero."""
_CHUNK = 1 << 18  # documents drawn at a time: some 10 MB, whatever n and the number of resamples are


class Interval(NamedTuple):
    """A 95 % interval."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class PairedDifference:
    """A paired difference a − b over `n` documents or questions.

    `interval` is None for fewer than `MIN_SAMPLE_SIZE` pairs, and if all differences are equal.
    """

    n: int
    difference: float
    interval: Interval | None
    p: float
    """Two-sided p-value, not adjusted for multiple comparisons."""
    detectable: float | None
    """Minimum detectable effect: the smallest true difference that a two-sided test at 5 % detects with 80 %
    power, (t₀.₉₇₅ + t₀.₈₀) · SE; None if `interval` is None."""
    method: str
    """Names of the methods that gave the interval and the p-value."""


def finite_exp(nats: float) -> float:
    """Return exp(nats), finite and above zero: a damaged model can lose thousands of nats per token."""
    return math.exp(min(max(nats, -MAX_EXPONENT), MAX_EXPONENT))


def bootstrap_ratio(
    numerators: Values,
    denominators: Values,
    *,
    seed: int,
    resamples: int = 10_000,
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> tuple[float, Interval | None]:
    """Estimate Σ numerators / Σ denominators over documents, with its 95 % bootstrap-t interval.

    With summed losses as numerators and token counts as denominators, the result is the loss per token; with
    all denominators 1 it is the mean. The interval is None for fewer than `MIN_SAMPLE_SIZE` documents, and if
    every document has the same ratio, because such a sample contains no information about the spread.

    Args:
        numerators: One value per document.
        denominators: One value above zero per document.
        seed: Seed of the resampling.
        resamples: Number of bootstrap resamples.
        bounds: Range of the quantity; the interval is clipped to it.

    Raises:
        UsageError: no documents, unequal lengths, or no resamples.
        MeditronError: a value is not finite, or a denominator is not above zero.
    """
    above, below = _finite_column("numerators", numerators), _positive_column("denominators", denominators)
    _require_same_length(above, below)
    bootstrap = _bootstrap_t(above, below, float(np.abs(above).max()), seed, resamples)
    value = float(above.sum() / below.sum())
    if bootstrap is None:
        return value, None
    low, high = (float(min(max(end, bounds[0]), bounds[1])) for end in bootstrap.interval)
    return value, Interval(low, high)


def clustered_mean(
    values: Values,
    clusters: Sequence[str],
    *,
    seed: int,
    resamples: int = 10_000,
    bounds: tuple[float, float] = (-1.0, 1.0),
) -> Interval | None:
    """Compute the 95 % interval of a mean over questions that come in clusters.

    Questions on one passage are not independent (Miller 2024, §2.2), so whole clusters are resampled: the
    mean is the ratio of the clusters' sums to their sizes (`bootstrap_ratio`). With 1 and 0 as values it is
    an accuracy, with the differences of two models' answers a paired difference.

    Args:
        values: One value per question.
        clusters: Name of each question's cluster.
        seed: Seed of the resampling.
        resamples: Number of bootstrap resamples.
        bounds: Range of the mean; the interval is clipped to it.

    Returns:
        The interval; None for fewer than `MIN_SAMPLE_SIZE` clusters, and if all clusters have the same mean.

    Raises:
        UsageError: no values, or unequal lengths.
    """
    if len(values) != len(clusters):
        raise UsageError(f"{len(values)} values against {len(clusters)} clusters")
    _, places = np.unique(np.asarray(clusters), return_inverse=True)
    sizes = np.bincount(places).astype(float)
    sums = np.bincount(places, weights=_finite_column("values", values))
    return bootstrap_ratio(sums, sizes, seed=seed, resamples=resamples, bounds=bounds)[1]


def paired_bootstrap(a: Values, b: Values, *, seed: int, resamples: int = 10_000) -> PairedDifference:
    """Estimate the mean of a_i − b_i over documents; `a` and `b` list the same documents in the same order.

    For up to `MAX_EXACT_SIZE` documents p is exact (see `sign_flip`). For more, p is the larger of two
    values: that of Student's t-test, and 2 (r + 1) / (resamples + 1), where r is the number of resampled
    t-values beyond the observed one; the added 1 keeps p above zero (Davison & Hinkley, Bootstrap Methods,
    1997, §4.2). p is below 5 % if the interval excludes zero. Raises the errors of `bootstrap_ratio`.
    """
    first, second = _finite_column("a", a), _finite_column("b", b)
    _require_same_length(first, second)
    differences, n = first - second, len(first)
    scale = float(max(np.abs(first).max(), np.abs(second).max()))
    differences[np.abs(differences) <= _ROUNDING * scale] = 0.0
    bootstrap = _bootstrap_t(differences, np.ones(n), scale, seed, resamples)
    if n <= MAX_EXACT_SIZE:
        p, test = sign_flip(differences), "exact sign-flip test"
    elif bootstrap:
        p, test = bootstrap.p, "bootstrap-t test"
    else:  # all differences are equal, so that only their common sign can be tested
        p, test = mcnemar(int((differences > 0).sum()), int((differences < 0).sum())), "exact sign test"
    return PairedDifference(
        n=n,
        difference=float(differences.mean()),
        interval=bootstrap.interval if bootstrap else None,
        p=p,
        detectable=bootstrap.detectable if bootstrap else None,
        method=f"bootstrap-t interval, {test}" if bootstrap else test,
    )


def paired_proportions(only_a: int, only_b: int, n: int) -> PairedDifference:
    """Estimate the difference of two accuracies, a − b, on the same n questions.

    `only_a` questions were answered correctly by a alone, `only_b` by b alone. The interval is Bonett and
    Price's adjusted Wald interval (J. Educ. Behav. Stat. 37, 2012; recommended for few discordant pairs by
    Fagerland, Lydersen & Laake, Statistics in Medicine 33, 2014). The interval adds one question to each
    discordant count, so that it has a width even without discordant questions. p is McNemar's exact p, which
    equals that of the sign-flip test.

    Raises:
        UsageError: the counts are negative, or more than n.
    """
    p = mcnemar(only_a, only_b)
    if n < max(1, only_a + only_b):
        raise UsageError(f"{only_a} + {only_b} discordant questions, but n is {n}")
    difference = (only_a - only_b) / n
    method = "Bonett-Price interval, McNemar's exact test"
    if n < MIN_SAMPLE_SIZE:
        return PairedDifference(n, difference, None, p, None, "McNemar's exact test")
    share_a, share_b = (only_a + 1) / (n + 2), (only_b + 1) / (n + 2)
    center = share_a - share_b
    error = math.sqrt((share_a + share_b - center**2) / (n + 2))
    z, power = (NormalDist().inv_cdf(level) for level in ((1 + _CONFIDENCE) / 2, _POWER))
    interval = Interval(max(-1.0, center - z * error), min(1.0, center + z * error))
    return PairedDifference(n, difference, interval, p, (z + power) * error, method)


def sign_flip(differences: Values) -> float:
    """Compute the two-sided p of paired differences by the exact sign-flip test.

    If neither model is better, both signs of a difference are equally likely (Fisher, The Design of
    Experiments, 1935, §21; Edgington & Onghena, Randomization Tests, 2007). p is the fraction of all 2^n sign
    patterns of the nonzero differences whose sum is at least as far from zero as the observed sum.

    Raises:
        UsageError: more than `MAX_EXACT_SIZE` differences are not zero.
    """
    values = _finite_column("differences", differences)
    nonzero = values[values != 0]
    if len(nonzero) > MAX_EXACT_SIZE:
        raise UsageError(f"sign_flip takes at most {MAX_EXACT_SIZE} differences, got {len(nonzero)}")
    if not len(nonzero):
        return 1.0
    sizes = np.abs(nonzero)
    observed = abs(float(nonzero.sum()))
    # The first sign is fixed: flipping all signs only flips the sum's sign, and the test is two-sided.
    sums = sizes[:1]
    for size in sizes[1:]:
        sums = np.concatenate((sums + size, sums - size))
    # Sums that are equal in exact arithmetic can differ in the last bits, hence the tolerance.
    return float((np.abs(sums) >= observed - 1e-9 * sizes.sum()).mean())


def holm(p: Sequence[float]) -> list[float]:
    """Adjust p-values for multiple comparisons; keeps their order (Holm 1979, Scand. J. Statist. 6: 65-70).

    The k-th smallest of m values becomes max over j ≤ k of (m − j + 1) · p_(j). Rejecting adjusted values
    below 5 % keeps the probability of any false rejection below 5 %, whatever the tests' dependence.
    """
    order = sorted(range(len(p)), key=lambda index: p[index])
    adjusted, largest = [1.0] * len(p), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p) - rank) * p[index]))
        adjusted[index] = largest
    return adjusted


def wilson_interval(successes: int, n: int) -> Interval | None:
    """Compute the 95 % score interval of a proportion (Wilson 1927, J. Am. Stat. Assoc. 22: 209-212).

    (p̂ + z²/2n ± z √(p̂(1 − p̂)/n + z²/4n²)) / (1 + z²/n). Unlike p̂ ± 1.96 SE it stays within [0, 1] and has
    the right coverage for rare successes. Returns None for n below `MIN_SAMPLE_SIZE`.

    Raises:
        UsageError: n is below 1, or successes is not between 0 and n.
    """
    if n < 1 or not 0 <= successes <= n:
        raise UsageError(f"successes must be between 0 and n ≥ 1, got {successes} of {n}")
    if n < MIN_SAMPLE_SIZE:
        return None
    z = NormalDist().inv_cdf((1 + _CONFIDENCE) / 2)
    share = successes / n
    center = share + z * z / (2 * n)
    spread = z * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    # For 0 successes the lower end is exactly 0, and for n successes the upper end is exactly 1; rounding
    # errors would move them.
    low = 0.0 if successes == 0 else float((center - spread) / scale)
    high = 1.0 if successes == n else float((center + spread) / scale)
    return Interval(low, high)


def mcnemar(only_a: int, only_b: int) -> float:
    """Compute McNemar's exact two-sided p of equal accuracies (McNemar 1947, Psychometrika 12: 153-157).

    `only_a` questions were answered correctly by a alone, `only_b` by b alone. If the accuracies are equal,
    only_a is binomial(only_a + only_b, 1/2); p = 2 P(X ≤ min(only_a, only_b)), at most 1.

    Raises:
        UsageError: a count is negative.
    """
    if only_a < 0 or only_b < 0:
        raise UsageError(f"counts must be ≥ 0, got {only_a} and {only_b}")
    n, fewer = only_a + only_b, min(only_a, only_b)
    one_sided = sum(math.comb(n, k) for k in range(fewer + 1)) / (1 << n)
    return min(1.0, 2 * one_sided)


def macro_f1(gold: Sequence[int], predicted: Sequence[int | None]) -> float:
    """Compute the macro-averaged F1: the mean of 2 · TP / (gold + predicted) over all classes that occur.

    A prediction of None means that no class was predicted; it lowers the recall of the gold class only.

    Raises:
        UsageError: the lengths differ, or there are no questions.
    """
    if not gold or len(gold) != len(predicted):
        raise UsageError(f"{len(gold)} gold answers against {len(predicted)} predictions")
    classes = {*gold, *(p for p in predicted if p is not None)}
    correct = Counter(g for g, p in zip(gold, predicted, strict=True) if g == p)
    gold_counts, predicted_counts = Counter(gold), Counter(predicted)
    return sum(2 * correct[c] / (gold_counts[c] + predicted_counts[c]) for c in classes) / len(classes)


@dataclass(frozen=True, slots=True)
class _BootstrapT:
    """Interval of a ratio, two-sided p of the hypothesis that it is zero, and minimum detectable effect."""

    interval: Interval
    p: float
    detectable: float


def _bootstrap_t(
    above: _Column, below: _Column, scale: float, seed: int, resamples: int
) -> _BootstrapT | None:
    """Resample t = (R* − R) / SE* of the ratio R = Σ above / Σ below; None if there is no interval.

    The standard error is the jackknife's, √((n − 1) / n Σ (R₋ᵢ − R)²), with R − R₋ᵢ = eᵢ / (Σ below − belowᵢ)
    and eᵢ = aboveᵢ − R belowᵢ; with equal denominators it is s / √n. Residuals below `_ROUNDING` times
    `scale`, the magnitude of the values from which `above` was computed, count as zero.
    """
    from scipy.special import stdtr, stdtrit

    if resamples < 1:
        raise UsageError(f"resamples must be at least 1, got {resamples}")
    n = len(above)
    weight = below / below.mean()
    scaled = above / below.mean()
    ratio = float(scaled.sum() / n)
    residuals = scaled - ratio * weight
    if n < MIN_SAMPLE_SIZE or np.abs(residuals).max() <= _ROUNDING * scale / below.mean():
        return None
    factor = math.sqrt((n - 1) / n)
    error = factor * float(np.sqrt(((residuals / (n - weight)) ** 2).sum()))
    # A few long documents can carry most of the weight, so the degrees of freedom are Kish's effective sample
    # size, (Σ w)² / Σ w² (Survey Sampling, 1965), minus one.
    freedom = max(1.0, n * n / float((weight**2).sum()) - 1)
    student = float(stdtrit(freedom, (1 + _CONFIDENCE) / 2))
    resampled = _resample_t(residuals, weight, error, seed, resamples)
    resampled = resampled.clip(-_MAX_WIDTH * student, _MAX_WIDTH * student)
    low, high = np.quantile(resampled, [(1 - _CONFIDENCE) / 2, (1 + _CONFIDENCE) / 2])
    t = ratio / error
    # Two-sided: twice the smaller tail, because the resampled distribution need not be symmetric.
    beyond = min(int((resampled >= t).sum()), int((resampled <= t).sum()))
    p = max(2 * (beyond + 1) / (resamples + 1), 2 * float(stdtr(freedom, -abs(t))))
    # In a bootstrap-t interval the upper quantile of t gives the lower end, and the lower quantile the upper
    # end. The interval is widened where it is narrower than Student's t interval.
    margin_low, margin_high = max(float(high), student) * error, max(-float(low), student) * error
    return _BootstrapT(
        interval=Interval(ratio - margin_low, ratio + margin_high),
        p=min(1.0, p),
        detectable=(student + float(stdtrit(freedom, _POWER))) * error,
    )


def _resample_t(residuals: _Column, weight: _Column, error: float, seed: int, resamples: int) -> _Column:
    """Return the t-value of each resample of the n documents; infinite for a resample without spread."""
    # PCG64 is named explicitly: numpy may change its default generator, and with it every interval.
    generator = np.random.Generator(np.random.PCG64(seed))
    n = len(residuals)
    equal = bool((weight == weight[0]).all())
    rows = max(1, _CHUNK // n)
    t = np.empty(resamples)
    for start in range(0, resamples, rows):
        stop = min(start + rows, resamples)
        drawn = generator.integers(n, size=(stop - start, n), dtype=np.int32)
        shift, spread = (_mean_shifts if equal else _ratio_shifts)(residuals, weight, drawn)
        # A resample of equal documents has no spread; its t is infinite unless its shift is zero too.
        flat = spread <= 1e-9 * error
        t[start:stop] = shift / np.where(flat, 1.0, spread)
        t[start:stop][flat & (shift != 0)] = np.copysign(math.inf, shift[flat & (shift != 0)])
    return t


def _mean_shifts(residuals: _Column, weight: _Column, drawn: NDArray[np.int32]) -> tuple[_Column, _Column]:
    """Return (R* − R, SE*) of each resample, for documents of equal weight: all weights are 1."""
    n = len(residuals)
    values = residuals[drawn]
    shift = values.mean(axis=1)
    values -= shift[:, None]
    return shift, np.sqrt(np.einsum("ij,ij->i", values, values) / (n * (n - 1)))


def _ratio_shifts(residuals: _Column, weight: _Column, drawn: NDArray[np.int32]) -> tuple[_Column, _Column]:
    """Return (R* − R, SE*) of each resample, for documents of different weights."""
    n = len(residuals)
    values, weights = residuals[drawn], weight[drawn]
    total = weights.sum(axis=1)
    shift = values.sum(axis=1) / total
    values -= shift[:, None] * weights
    np.subtract(total[:, None], weights, out=weights)
    values /= weights
    return shift, np.sqrt((n - 1) / n * np.einsum("ij,ij->i", values, values))


def _finite_column(name: str, values: Values) -> _Column:
    column = np.array(values, dtype=np.float64)
    if column.ndim != 1:
        raise UsageError(f"{name} must have one value per document, got an array of shape {column.shape}")
    if len(column) < 1:
        raise UsageError(f"{name} must not be empty")
    if not np.isfinite(column).all():
        index = int(np.flatnonzero(~np.isfinite(column))[0])
        raise MeditronError(f"{name}[{index}] must be finite, got {column[index]}")
    return column


def _positive_column(name: str, values: Values) -> _Column:
    column = _finite_column(name, values)
    if not (column > 0).all():
        index = int(np.flatnonzero(column <= 0)[0])
        raise MeditronError(f"{name}[{index}] must be above zero, got {column[index]:g}")
    return column


def _require_same_length(first: _Column, second: _Column) -> None:
    if len(first) != len(second):
        raise UsageError(f"pairs need equal numbers of documents, got {len(first)} and {len(second)}")
