"""Confidence intervals and paired tests over documents or questions.

Documents are the unit of resampling, because the tokens of one document are not independent. Formulas,
sources, and coverage by simulation are in `docs/explanation/statistics.md`:

- Means and weighted ratios: bootstrap-t (studentised bootstrap; Efron & Tibshirani, An Introduction to the
  Bootstrap, 1993, §12.5) with a jackknife standard error, never narrower than Student's t.
- Paired differences: documents are compared one by one (Miller, Adding Error Bars to Evals, 2024,
  arXiv:2411.00640, §4). p is that of the exact sign-flip test up to `EXACT` documents, above that it is the
  level at which the interval touches zero.
- Proportions: Wilson's interval; differences of paired proportions: Bonett and Price's, McNemar's exact test.
- Several comparisons in one report: Holm's adjustment.

Below `FEWEST` documents or questions no interval is given. Everything is seeded.
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
    "EXACT",
    "FEWEST",
    "Difference",
    "Interval",
    "bootstrap_ratio",
    "holm",
    "macro_f1",
    "mcnemar",
    "paired_bootstrap",
    "paired_proportions",
    "sign_flip",
    "wilson",
]

Values = Sequence[float] | NDArray[np.floating] | NDArray[np.integer]
_Column = NDArray[np.float64]

FEWEST = 6
"""The smallest sample with a 95 % interval or a verdict. Of five documents even equal signs happen by chance
one time in sixteen (p = 0.0625), so that no two-sided test at 5 % can reject."""
EXACT = 20
"""The largest sample whose 2^n sign patterns are all enumerated (2^20 sums: 8 MB, milliseconds)."""
_CONFIDENCE = 0.95
_POWER = 0.80
_REACH = 4.0
"""Largest distance of an interval's end from the estimate, as a multiple of Student's. If most values are
equal, many resamples have next to no spread, and the bootstrap-t alone has no finite end."""
_ROUNDING = 1e-12
"""Differences smaller than this share of the values themselves are floating-point noise: no variation."""
_CELLS = 1 << 18  # documents drawn at a time: some 10 MB, independent of n and of the number of resamples


class Interval(NamedTuple):
    """A 95 % interval."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Difference:
    """A paired difference a − b over `n` documents or questions.

    `interval` is None below `FEWEST` and if nothing varies; `p` is two-sided and not adjusted; `detectable`
    is the smallest true difference that a two-sided test at 5 % finds with 80 % power (None if `interval`
    is); `method` names the interval's and the test's method.
    """

    n: int
    difference: float
    interval: Interval | None
    p: float
    detectable: float | None
    method: str


def bootstrap_ratio(
    numerators: Values,
    denominators: Values,
    *,
    seed: int,
    resamples: int = 10_000,
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> tuple[float, Interval | None]:
    """Estimate Σ numerators / Σ denominators over documents, with its 95 % bootstrap-t interval.

    With a document's summed log-loss over its tokens it is the log-loss per token; with denominators of one
    it is the plain mean. The interval is None below `FEWEST` documents, and where every document has the same
    ratio: such a sample says nothing about the spread.

    Args:
        numerators: a value per document.
        denominators: a value above zero per document.
        seed: of the resampling.
        resamples: number of bootstrap resamples.
        bounds: range of the quantity; the interval is cut to it.

    Raises:
        UsageError: no documents, unequal lengths, or no resamples.
        MeditronError: a value is not finite, or a denominator is not above zero.
    """
    above, below = _column("numerators", numerators), _positive("denominators", denominators)
    _same_length(above, below)
    found = _studentised(above, below, float(np.abs(above).max()), seed, resamples)
    value = float(above.sum() / below.sum())
    if found is None:
        return value, None
    low, high = (float(min(max(end, bounds[0]), bounds[1])) for end in found.interval)
    return value, Interval(low, high)


def paired_bootstrap(a: Values, b: Values, *, seed: int, resamples: int = 10_000) -> Difference:
    """Estimate the mean of a_i − b_i over the same documents, in the same order; each counts once.

    p is exact up to `EXACT` documents (see `sign_flip`). Above, it is the larger of twice the share of
    resampled t-values beyond the observed one, (r + 1) / (resamples + 1) so that it is never zero (Davison &
    Hinkley, Bootstrap Methods, 1997, §4.2), and Student's t: below 5 % where the interval excludes zero.
    Raises as `bootstrap_ratio` does.
    """
    first, second = _column("a", a), _column("b", b)
    _same_length(first, second)
    apart, n = first - second, len(first)
    scale = float(max(np.abs(first).max(), np.abs(second).max()))
    apart[np.abs(apart) <= _ROUNDING * scale] = 0.0
    found = _studentised(apart, np.ones(n), scale, seed, resamples)
    if n <= EXACT:
        p, test = sign_flip(apart), "exact sign-flip test"
    elif found:
        p, test = found.p, "bootstrap-t test"
    else:  # all are equal: of one size, so that their signs are all there is to count
        p, test = mcnemar(int((apart > 0).sum()), int((apart < 0).sum())), "exact sign test"
    return Difference(
        n=n,
        difference=float(apart.mean()),
        interval=found.interval if found else None,
        p=p,
        detectable=found.detectable if found else None,
        method=f"bootstrap-t interval, {test}" if found else test,
    )


def paired_proportions(only_a: int, only_b: int, n: int) -> Difference:
    """Estimate the difference of two accuracies, a − b, on the same n questions.

    `only_a` questions were answered correctly by a alone, `only_b` by b alone. The interval is Bonett and
    Price's adjusted Wald interval (J. Educ. Behav. Stat. 37, 2012; recommended for few discordant pairs by
    Fagerland, Lydersen & Laake, Statistics in Medicine 33, 2014): with no discordant pair at all it still has
    a width. p is McNemar's exact one, which equals the sign-flip test. Raises UsageError for counts that do
    not fit n.
    """
    p = mcnemar(only_a, only_b)
    if n < max(1, only_a + only_b):
        raise UsageError(f"{only_a} and {only_b} discordant questions of {n}")
    difference = (only_a - only_b) / n
    method = "Bonett-Price interval, McNemar's exact test"
    if n < FEWEST:
        return Difference(n, difference, None, p, None, "McNemar's exact test")
    share_a, share_b = (only_a + 1) / (n + 2), (only_b + 1) / (n + 2)
    centre = share_a - share_b
    error = math.sqrt((share_a + share_b - centre**2) / (n + 2))
    z, power = (NormalDist().inv_cdf(level) for level in ((1 + _CONFIDENCE) / 2, _POWER))
    interval = Interval(max(-1.0, centre - z * error), min(1.0, centre + z * error))
    return Difference(n, difference, interval, p, (z + power) * error, method)


def sign_flip(apart: Values) -> float:
    """Compute the two-sided p of paired differences: the share of sign patterns with a sum as far from zero.

    If neither model is better, a difference is as likely to have either sign (Fisher, The Design of
    Experiments, 1935, §21; Edgington & Onghena, Randomization Tests, 2007). Exact: all patterns of the
    differences that are not zero are enumerated. Raises UsageError for more than `EXACT` of them.
    """
    differences = _column("differences", apart)
    differences = differences[differences != 0]
    if len(differences) > EXACT:
        raise UsageError(f"sign_flip takes at most {EXACT} differences, got {len(differences)}")
    if not len(differences):
        return 1.0
    sizes = np.abs(differences)
    observed = abs(float(differences.sum()))
    # The first sign is kept: turning all signs turns the sign of the sum alone, and both sides are counted.
    sums = sizes[:1]
    for size in sizes[1:]:
        sums = np.concatenate((sums + size, sums - size))
    # Sums that are equal in exact arithmetic may differ in the last bits.
    return float((np.abs(sums) >= observed - 1e-9 * sizes.sum()).mean())


def holm(p: Sequence[float]) -> list[float]:
    """Adjust p-values for their number, in the given order (Holm 1979, Scand. J. Statist. 6: 65-70).

    Calling a difference below 5 % then errs in any of them at most one time in twenty, whatever their
    dependence.
    """
    order = sorted(range(len(p)), key=lambda place: p[place])
    adjusted, largest = [1.0] * len(p), 0.0
    for rank, place in enumerate(order):
        largest = max(largest, min(1.0, (len(p) - rank) * p[place]))
        adjusted[place] = largest
    return adjusted


def wilson(successes: int, n: int) -> Interval | None:
    """Compute the 95 % score interval of a proportion (Wilson 1927, J. Am. Stat. Assoc. 22: 209-212).

    Unlike the textbook's ± 1.96 SE it stays within [0, 1] and holds for rare successes. None below `FEWEST`.
    Raises UsageError unless 0 ≤ successes ≤ n and n ≥ 1.
    """
    if n < 1 or not 0 <= successes <= n:
        raise UsageError(f"{successes} of {n} is not a proportion")
    if n < FEWEST:
        return None
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
    """Compute the exact two-sided p of two models being right equally often (McNemar 1947, Psychometrika 12).

    `only_a` questions were answered correctly by a alone, `only_b` by b alone: without a difference each of
    them falls to either side like a fair coin. Raises UsageError for counts below zero.
    """
    if only_a < 0 or only_b < 0:
        raise UsageError(f"counts must be ≥ 0, got {only_a} and {only_b}")
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


@dataclass(frozen=True, slots=True)
class _Studentised:
    """The bootstrap-t of a ratio: its interval, the two-sided p of a ratio of zero, what can be detected."""

    interval: Interval
    p: float
    detectable: float


def _studentised(
    above: _Column, below: _Column, scale: float, seed: int, resamples: int
) -> _Studentised | None:
    """Resample t = (R* − R) / SE* of the ratio R = Σ above / Σ below; None where no interval is given.

    The standard error is the jackknife's, √((n − 1) / n Σ (R₋ᵢ − R)²), with R − R₋ᵢ = eᵢ / (Σ below − belowᵢ)
    and eᵢ = aboveᵢ − R belowᵢ; with equal denominators it is s / √n. `scale`: size of the values that went
    into `above`, which rounding errors are measured by.
    """
    from scipy.special import stdtr, stdtrit

    if resamples < 1:
        raise UsageError(f"resamples must be at least 1, got {resamples}")
    n = len(above)
    weight = below / below.mean()
    scaled = above / below.mean()
    ratio = float(scaled.sum() / n)
    rest = scaled - ratio * weight
    if n < FEWEST or np.abs(rest).max() <= _ROUNDING * scale / below.mean():
        return None
    factor = math.sqrt((n - 1) / n)
    error = factor * float(np.sqrt(((rest / (n - weight)) ** 2).sum()))
    # Few long documents carry most of the weight: the degrees of freedom are those of Kish's effective size.
    freedom = max(1.0, n * n / float((weight**2).sum()) - 1)
    student = float(stdtrit(freedom, (1 + _CONFIDENCE) / 2))
    resampled = _resampled_t(rest, weight, error, seed, resamples).clip(-_REACH * student, _REACH * student)
    low, high = np.quantile(resampled, [(1 - _CONFIDENCE) / 2, (1 + _CONFIDENCE) / 2])
    t = ratio / error
    beyond = min(int((resampled >= t).sum()), int((resampled <= t).sum()))
    p = max(2 * (beyond + 1) / (resamples + 1), 2 * float(stdtr(freedom, -abs(t))))
    above_by, below_by = max(float(high), student) * error, max(-float(low), student) * error
    return _Studentised(
        interval=Interval(ratio - above_by, ratio + below_by),
        p=min(1.0, p),
        detectable=(student + float(stdtrit(freedom, _POWER))) * error,
    )


def _resampled_t(rest: _Column, weight: _Column, error: float, seed: int, resamples: int) -> _Column:
    """t-values of resamples of n documents; infinite where a resample has no spread."""
    generator = np.random.Generator(np.random.PCG64(seed))
    n = len(rest)
    equal = bool((weight == weight[0]).all())
    rows = max(1, _CELLS // n)
    t = np.empty(resamples)
    for start in range(0, resamples, rows):
        stop = min(start + rows, resamples)
        drawn = generator.integers(n, size=(stop - start, n), dtype=np.int32)
        shift, spread = (_mean_of if equal else _ratio_of)(rest, weight, drawn)
        flat = spread <= 1e-9 * error
        t[start:stop] = shift / np.where(flat, 1.0, spread)
        t[start:stop][flat & (shift != 0)] = np.copysign(math.inf, shift[flat & (shift != 0)])
    return t


def _mean_of(rest: _Column, weight: _Column, drawn: NDArray[np.int32]) -> tuple[_Column, _Column]:
    """(R* − R, SE*) of each resample where all documents have the same weight, which is one."""
    n = len(rest)
    values = rest[drawn]
    shift = values.mean(axis=1)
    values -= shift[:, None]
    return shift, np.sqrt(np.einsum("ij,ij->i", values, values) / (n * (n - 1)))


def _ratio_of(rest: _Column, weight: _Column, drawn: NDArray[np.int32]) -> tuple[_Column, _Column]:
    """(R* − R, SE*) of each resample."""
    n = len(rest)
    values, weights = rest[drawn], weight[drawn]
    total = weights.sum(axis=1)
    shift = values.sum(axis=1) / total
    values -= shift[:, None] * weights
    np.subtract(total[:, None], weights, out=weights)
    values /= weights
    return shift, np.sqrt((n - 1) / n * np.einsum("ij,ij->i", values, values))


def _column(name: str, values: Values) -> _Column:
    column = np.array(values, dtype=np.float64)
    if column.ndim != 1:
        raise UsageError(f"{name}: one value per document is needed, got an array of shape {column.shape}")
    if len(column) < 1:
        raise UsageError(f"{name}: at least one document is needed, got none")
    if not np.isfinite(column).all():
        place = int(np.flatnonzero(~np.isfinite(column))[0])
        raise MeditronError(f"{name}[{place}] is {column[place]}, it must be finite")
    return column


def _positive(name: str, values: Values) -> _Column:
    column = _column(name, values)
    if not (column > 0).all():
        place = int(np.flatnonzero(column <= 0)[0])
        raise MeditronError(f"{name}[{place}] is {column[place]:g}, it must be above zero")
    return column


def _same_length(one: _Column, other: _Column) -> None:
    if len(one) != len(other):
        raise UsageError(f"{len(one)} documents against {len(other)}: pairs need the same number")
