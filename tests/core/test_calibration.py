"""The expected calibration error against a loop over the bins, and its interval by simulation."""

import numpy as np
import pytest

from meditron.core.calibration import BINS, calibrate, calibration_errors
from meditron.core.errors import UsageError
from meditron.core.statistics import wilson_interval


def test_the_error_is_the_mean_gap_of_the_bins():
    random = np.random.default_rng(1)
    confidence = random.uniform(0.25, 1, 500)
    correct = random.random(500) < confidence - 0.1
    result = calibrate(list(confidence), list(correct), seed=1)
    expected = 0.0
    for low in np.arange(BINS) / BINS:
        inside = (confidence >= low) & (confidence < low + 1 / BINS)
        if inside.any():
            expected += inside.mean() * abs(confidence[inside].mean() - correct[inside].mean())
    assert result.error == pytest.approx(expected)
    assert result.overconfidence == pytest.approx(confidence.mean() - correct.mean())
    assert sum(bin_.n for bin_ in result.bins) == 500
    assert [bin_.interval for bin_ in result.bins] == [
        wilson_interval(round(bin_.n * bin_.accuracy), bin_.n) for bin_ in result.bins
    ]
    for value, interval in (
        (result.error, result.error_interval),
        (result.overconfidence, result.overconfidence_interval),
    ):
        assert interval is not None
        assert interval.low <= value <= interval.high


def test_the_interval_covers_and_a_calibrated_model_has_zero_in_it():
    random = np.random.default_rng(2)
    confidence = 0.25 + 0.75 * random.beta(2, 2, (2000, 400))
    for gap, least, most in ((0.0, 0.93, 1.0), (0.2, 0.93, 0.97)):
        correct = (random.random(confidence.shape) < confidence - gap).astype(float)
        _, low, high = calibration_errors(confidence, correct)
        assert least <= ((low <= gap + 1e-9) & (gap <= high)).mean() <= most


def test_extreme_answers_have_finite_intervals():
    sure = calibrate([1.0] * 8, [True] * 8, seed=1)
    assert (sure.error, sure.error_interval, sure.overconfidence) == (0, (0, 0), 0)
    wrong = calibrate([1.0] * 8, [False] * 8, seed=1)
    assert (wrong.error, wrong.overconfidence) == (1, 1)
    assert calibrate([0.5] * 5, [True] * 5, seed=1).error_interval is None
    with pytest.raises(UsageError, match="2 confidences against 1 answers"):
        calibrate([0.5, 0.5], [True], seed=1)
    with pytest.raises(UsageError, match="between 0 and 1"):
        calibrate([1.5], [True], seed=1)
