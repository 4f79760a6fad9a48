"""Calibration of answers: are the answers that are given with probability p right with probability p?

The expected calibration error (ECE; Guo et al. 2017, arXiv:1706.04599) is Σ over bins of (n_bin / n) ·
|confidence − accuracy|, for `BINS` bins of equal width. It is biased upward: noise alone makes every bin's
gap larger than zero. Its interval corrects for this; method and coverage are in
`docs/explanation/statistics.md`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from meditron.core.errors import UsageError
from meditron.core.statistics import MIN_SAMPLE_SIZE, Interval, bootstrap_ratio, wilson_interval

__all__ = ["BINS", "Calibration", "ReliabilityBin", "calibrate", "calibration_errors"]

BINS = 10
_BIAS_SHARE = 0.75
"""Part of the estimated bias that is subtracted: from noisy gaps the bias is estimated too high."""
_Z = 1.959964
_Array = NDArray[np.float64]


class ReliabilityBin(NamedTuple):
    """The answers whose confidence lies in one bin."""

    n: int
    confidence: float
    """Mean confidence."""
    accuracy: float
    interval: Interval | None
    """Wilson's 95 % interval of the accuracy."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """Confidence of answers against their accuracy."""

    error: float
    """Expected calibration error."""
    error_interval: Interval | None
    overconfidence: float
    """Mean confidence minus accuracy; below zero for an underconfident model."""
    overconfidence_interval: Interval | None
    bins: tuple[ReliabilityBin, ...]
    """The bins that have answers, by increasing confidence."""


def calibrate(
    confidences: Sequence[float], correct: Sequence[bool], *, seed: int, resamples: int = 10_000
) -> Calibration:
    """Compare the confidence of answers with their accuracy.

    Args:
        confidences: Probability that the model gives to each answer.
        correct: Whether the answer is right.
        seed: Seed of the bootstrap of the overconfidence.
        resamples: Number of bootstrap resamples.

    Raises:
        UsageError: no answers, unequal lengths, or a confidence that is no probability.
    """
    confidence_N, correct_N = np.asarray(confidences, float), np.asarray(correct, float)
    if not len(confidence_N) or confidence_N.shape != correct_N.shape:
        raise UsageError(f"{len(confidence_N)} confidences against {len(correct_N)} answers")
    if not ((confidence_N >= 0) & (confidence_N <= 1)).all():
        raise UsageError("confidences must be between 0 and 1")
    error, low, high = (float(value[0]) for value in calibration_errors(confidence_N[None], correct_N[None]))
    over, over_interval = bootstrap_ratio(
        confidence_N - correct_N, np.ones(len(correct_N)), seed=seed, resamples=resamples, bounds=(-1, 1)
    )
    place_N = _bin_places(confidence_N)
    return Calibration(
        error=error,
        error_interval=Interval(low, high) if len(correct_N) >= MIN_SAMPLE_SIZE else None,
        overconfidence=over,
        overconfidence_interval=over_interval,
        bins=tuple(
            _reliability_bin(confidence_N[place_N == place], correct_N[place_N == place])
            for place in np.unique(place_N)
        ),
    )


def _bin_places(confidence: _Array) -> NDArray[np.int64]:
    return np.minimum((confidence * BINS).astype(np.int64), BINS - 1)


def _reliability_bin(confidence: _Array, correct: _Array) -> ReliabilityBin:
    right, n = int(correct.sum()), len(correct)
    return ReliabilityBin(n, float(confidence.mean()), right / n, wilson_interval(right, n))


def calibration_errors(confidence_RN: _Array, correct_RN: _Array) -> tuple[_Array, _Array, _Array]:
    """Return the expected calibration error of R samples of N answers, and both ends of its 95 % intervals.

    The bins' gaps g_b = Σ (confidence − correct) / N are asymptotically normal. |g| of a normal g has a
    folded normal mean, which exceeds |mean| by the bias; `_BIAS_SHARE` of it is subtracted. The standard
    error is the delta method's, with the signs of the gaps. The interval begins at 0 if perfect calibration
    is not rejected at 5 % (χ² of the gaps with the variances Σ c (1 − c) that it implies).
    """
    from scipy.special import chdtrc, ndtr

    runs, n = confidence_RN.shape
    place_RN = _bin_places(confidence_RN) + BINS * np.arange(runs)[:, None]

    def by_bin(values_RN: _Array) -> _Array:
        mean_RB: _Array = np.bincount(place_RN.ravel(), values_RN.ravel(), runs * BINS) / n
        return mean_RB.reshape(runs, BINS)

    difference_RN = confidence_RN - correct_RN
    gap_RB = by_bin(difference_RN)
    size_RB, sign_RB = np.abs(gap_RB), np.sign(gap_RB)
    square_RB = by_bin(difference_RN**2)
    error_R = size_RB.sum(axis=1)
    # Variance of Σ sign · gap: the gaps of one sample covary, because each answer is in one bin.
    filled_RB = sign_RB != 0
    variance_R = ((square_RB * filled_RB).sum(axis=1) - error_R**2) / max(1, n - 1)
    spread_RB = np.sqrt(np.maximum(square_RB - gap_RB**2, 0) / max(1, n - 1))
    ratio_RB = size_RB / np.where(spread_RB > 0, spread_RB, np.inf)
    folded_RB = spread_RB * (np.sqrt(2 / np.pi) * np.exp(-(ratio_RB**2) / 2) - 2 * ratio_RB * ndtr(-ratio_RB))
    center_R = np.maximum(error_R - _BIAS_SHARE * folded_RB.sum(axis=1), 0)
    margin_R = _Z * np.sqrt(np.maximum(variance_R, 0))
    expected_RB = by_bin(confidence_RN * (1 - confidence_RN))
    known_RB = expected_RB > 1e-12
    chi_R = (n * np.where(known_RB, gap_RB**2 / np.where(known_RB, expected_RB, 1), 0)).sum(axis=1)
    calibrated_R = chdtrc(np.maximum(known_RB.sum(axis=1), 1), chi_R) >= 0.05
    low_R = np.where(calibrated_R, 0.0, np.maximum(center_R - margin_R, 0))
    high_R: _Array = np.minimum(center_R + margin_R, 1)
    return error_R, low_R, high_R
