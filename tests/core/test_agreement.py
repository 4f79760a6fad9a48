"""Agreement and corrected rates, against other libraries, published examples and simulations."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meditron.core.agreement import (
    cluster_interval,
    cluster_sums,
    cohen_kappa,
    coincidence_alpha,
    coincidence_sums,
    krippendorff_alpha,
    krippendorff_sums,
    prediction_powered_rate,
    rogan_gladen,
    share,
)

VERDICTS = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=2, max_size=40)
GAPS = st.sampled_from([0.0, 1.0, math.nan])
TABLES = st.lists(st.lists(GAPS, min_size=3, max_size=3), min_size=2, max_size=30)


def pair_counts(pairs: list[tuple[int, int]]) -> np.ndarray:
    return np.bincount([2 * a + b for a, b in pairs], minlength=4).astype(float)


@given(VERDICTS)
def test_kappa_is_that_of_scikit_learn(pairs):
    metrics = pytest.importorskip("sklearn.metrics")
    first, second = zip(*pairs, strict=True)
    kappa = float(cohen_kappa(pair_counts(pairs)))
    if len({*first, *second}) == 1:
        assert math.isnan(kappa)
    else:
        assert kappa == pytest.approx(metrics.cohen_kappa_score(first, second, labels=[0, 1]))


@given(TABLES)
def test_alpha_is_that_of_the_krippendorff_package(table):
    krippendorff = pytest.importorskip("krippendorff")
    sums = krippendorff_sums(table).sum(0)
    alpha = float(krippendorff_alpha(sums))
    if sums[1] == 0 or sums[2] == 0:
        assert math.isnan(alpha)
    else:
        expected = krippendorff.alpha(np.array(table).T, level_of_measurement="nominal", value_domain=[0, 1])
        assert alpha == pytest.approx(expected)


RATINGS = st.lists(
    st.lists(st.sampled_from([1.0, 2.0, 3.0, 5.0, math.nan]), min_size=3, max_size=3), min_size=2, max_size=20
)


@settings(max_examples=40)
@given(RATINGS, st.sampled_from(["ordinal", "nominal"]))
def test_alpha_of_ratings_is_that_of_the_krippendorff_package(table, level):
    krippendorff = pytest.importorskip("krippendorff")
    sums = coincidence_sums(table, range(1, 6)).sum(0)
    alpha = float(coincidence_alpha(sums, ordinal=level == "ordinal"))
    if (sums.reshape(5, 5).sum(0) > 0).sum() < 2:
        assert math.isnan(alpha)
    else:
        expected = krippendorff.alpha(
            np.array(table).T, level_of_measurement=level, value_domain=[1, 2, 3, 4, 5]
        )
        assert alpha == pytest.approx(expected)


@settings(max_examples=40)
@given(TABLES)
def test_both_forms_of_alpha_agree_on_verdicts(table):
    general = float(coincidence_alpha(coincidence_sums(table, [0, 1]).sum(0), ordinal=False))
    assert general == pytest.approx(float(krippendorff_alpha(krippendorff_sums(table).sum(0))), nan_ok=True)


def test_alpha_of_the_published_example():
    """Krippendorff 2011, example A: two judges, ten items, alpha = 0.095."""
    meg, owen = [0, 1, 0, 0, 0, 0, 0, 0, 1, 0], [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]
    sums = krippendorff_sums(np.array([meg, owen]).T).sum(0)
    assert float(krippendorff_alpha(sums)) == pytest.approx(0.095, abs=5e-4)


def test_rogan_gladen_inverts_the_errors_of_a_judge():
    """A judge with Se 0.9 and Sp 0.8 finds 0.9 · 0.3 + 0.2 · 0.7 = 0.41 of the items met if 0.3 are."""
    labelled = [80, 10, 20, 90]  # both no, only the label yes, only the judge yes, both yes
    assert float(rogan_gladen(np.array([1000, 410, *labelled], float))) == pytest.approx(0.3)
    assert float(rogan_gladen(np.array([1000, 100, *labelled], float))) == 0  # below the false alarms
    chance = [50, 50, 50, 50]
    assert math.isnan(rogan_gladen(np.array([1000, 500, *chance], float)))
    assert math.isnan(rogan_gladen(np.array([1000, 500, 10, 0, 0, 0], float)))  # sensitivity is unknown


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=30))
def test_with_all_items_labelled_the_corrections_give_the_human_rate(pairs):
    human, judged = (np.array(side, float) for side in zip(*pairs, strict=True))
    sums = np.array([judged.sum(), len(pairs), (human - judged).sum(), len(pairs)])
    assert float(prediction_powered_rate(sums)) == pytest.approx(human.mean())
    counts = pair_counts([(int(a), int(b)) for a, b in pairs])
    corrected = float(
        rogan_gladen(np.array([len(pairs), judged.sum(), counts[0], counts[2], counts[1], counts[3]]))
    )
    if not math.isnan(corrected):
        assert corrected == pytest.approx(human.mean())


def test_intervals_of_a_share_are_those_of_scipy():
    scipy = pytest.importorskip("scipy.stats")
    values = (np.random.default_rng(0).random(200) < 0.3).astype(float)
    interval = cluster_interval(np.stack([values, np.ones(200)], axis=1), share, seed=1, resamples=4000)
    reference = scipy.bootstrap((values,), np.mean, n_resamples=4000, method="percentile", rng=1)
    assert interval is not None
    assert interval == pytest.approx(tuple(reference.confidence_interval), abs=0.01)


def test_the_corrected_rate_covers_the_truth_where_the_judged_rate_does_not():
    """300 samples: 60 conversations of 5 criteria; the judge errs, and 15 conversations are labelled."""
    generator = np.random.default_rng(5)
    covered = plain = 0
    truth = 0.5
    for seed in range(300):
        # Conversations differ in difficulty, so their criteria are not independent.
        rate = np.repeat(generator.beta(2, 2, 60), 5)
        human = generator.random(300) < rate
        judged = np.where(human, generator.random(300) < 0.95, generator.random(300) < 0.35).astype(float)
        labelled = (np.arange(300) < 75).astype(float)
        items = np.stack([judged, np.ones(300), (human - judged) * labelled, labelled], axis=1)
        sums = cluster_sums(items, [str(n // 5) for n in range(300)])
        interval = cluster_interval(sums, prediction_powered_rate, seed=seed, resamples=300)
        naive = cluster_interval(sums[:, :2], share, seed=seed, resamples=300)
        assert interval is not None
        assert naive is not None
        covered += interval.low <= truth <= interval.high
        plain += naive.low <= truth <= naive.high
    assert 0.9 <= covered / 300 <= 0.99
    assert plain / 300 < 0.3


def test_clusters_are_resampled_whole():
    """Each conversation has twenty equal verdicts, so that the interval is that of ten values, not of 200."""
    verdicts = np.repeat(np.arange(10) % 2, 20).astype(float)
    items = np.stack([verdicts, np.ones(200)], axis=1)
    apart = cluster_interval(items, share, seed=1, resamples=1000)
    together = cluster_interval(
        cluster_sums(items, [str(n // 20) for n in range(200)]), share, seed=1, resamples=1000
    )
    assert apart is not None
    assert together is not None
    assert together.high - together.low > 3 * (apart.high - apart.low)


def test_no_interval_without_information():
    ones = np.ones((5, 2))
    assert cluster_interval(ones, share, seed=1, resamples=100) is None  # fewer than six
    assert cluster_interval(np.ones((9, 2)), share, seed=1, resamples=100) is None  # no spread
    undefined = np.array([[1.0, 1.0], *[[0.0, 0.0]] * 8])
    assert cluster_interval(undefined, share, seed=1, resamples=100) is None
