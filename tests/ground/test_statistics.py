"""Statistics against scipy's, against theory, and against what must hold for any numbers."""

import tracemalloc

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from meditron.ground.errors import MeditronError, UsageError
from meditron.ground.statistics import bootstrap_ratio, macro_f1, mcnemar, paired_bootstrap, wilson

losses = st.floats(-50, 50, allow_nan=False).map(lambda value: round(value, 6))
pairs = st.lists(st.tuples(losses, losses, st.integers(1, 4000)), min_size=2, max_size=30)


def sample(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Log-losses of two models on n documents, and the documents' tokens."""
    generator = np.random.default_rng(seed)
    base = generator.gamma(30, 0.1, n)
    return base - generator.normal(0.1, 0.15, n), base, generator.integers(40, 900, n)


def level(n: int) -> float:
    """The confidence of the percentile interval that has the expanded one's ends (Hesterberg 2015)."""
    return 1 - 2 * float(scipy.stats.norm.sf(scipy.stats.t.ppf(0.975, n - 1) * np.sqrt(n / (n - 1))))


def test_mean_and_its_interval_are_scipys() -> None:
    values, _, _ = sample(80)
    ours = bootstrap_ratio(values, np.ones(80), seed=1)
    theirs = scipy.stats.bootstrap(
        (values,), np.mean, method="percentile", confidence_level=level(80), n_resamples=10_000, rng=2
    )
    noise = 3 * theirs.standard_error / 25  # the Monte-Carlo error of a 2.5 % quantile of 10,000
    assert ours[0] == pytest.approx(values.mean())
    assert ours[1] == pytest.approx(tuple(theirs.confidence_interval), abs=noise)


def test_ratio_and_its_interval_are_scipys() -> None:
    losses_, _, tokens = sample(60)
    ours = bootstrap_ratio(losses_ * tokens, tokens, seed=1)
    theirs = scipy.stats.bootstrap(
        (losses_ * tokens, tokens),
        lambda a, b, axis: a.sum(axis) / b.sum(axis),
        paired=True,
        method="percentile",
        confidence_level=level(60),
        n_resamples=10_000,
        rng=2,
    )
    assert ours[0] == pytest.approx(np.average(losses_, weights=tokens))
    assert ours[1] == pytest.approx(tuple(theirs.confidence_interval), abs=3 * theirs.standard_error / 25)


@pytest.mark.parametrize("weighted", [False, True])
def test_paired_difference_is_scipys(weighted: bool) -> None:
    a, b, tokens = sample(60)
    weights = tokens if weighted else np.ones(60)
    ours = paired_bootstrap(a, b, weights=tokens if weighted else None, seed=1)
    theirs = scipy.stats.bootstrap(
        (a, b, weights),
        lambda a, b, w, axis: ((a - b) * w).sum(axis) / w.sum(axis),
        paired=True,
        method="percentile",
        confidence_level=level(60),
        n_resamples=10_000,
        rng=2,
    )
    assert ours.difference == pytest.approx(np.average(a - b, weights=weights))
    assert ours.interval == pytest.approx(
        tuple(theirs.confidence_interval), abs=3 * theirs.standard_error / 25
    )
    t = scipy.stats.t.ppf([0.975, 0.8], 59).sum()
    assert ours.detectable == pytest.approx(t * theirs.standard_error, rel=0.05)


def test_p_is_near_the_t_tests() -> None:
    a, b, _ = sample(60)
    closer = a + 0.06  # so that p is neither nothing nor one
    ours = paired_bootstrap(closer, b, seed=1).p
    assert ours == pytest.approx(scipy.stats.ttest_rel(closer, b).pvalue, abs=0.02)
    assert 0.001 < ours < 0.5


@pytest.mark.parametrize("n", [5, 12, 60])
def test_intervals_cover_the_truth_as_often_as_they_say(n: int) -> None:
    generator = np.random.default_rng(7)
    covered = found = 0
    for seed in range(400):
        difference = generator.normal(-0.1, 0.3, n)
        told = paired_bootstrap(difference, np.zeros(n), seed=seed, resamples=2000)
        covered += told.interval.low <= -0.1 <= told.interval.high
        found += paired_bootstrap(difference, np.full(n, -0.1), seed=seed, resamples=2000).p < 0.05
    # Within four standard errors; a plain percentile interval covers 85 % of the time at n = 5.
    assert 0.906 <= covered / 400 <= 0.994
    assert 0.006 <= found / 400 <= 0.094


@pytest.mark.parametrize("n", [5, 12, 40])
def test_p_is_the_level_at_which_the_interval_touches_zero(n: int) -> None:
    generator = np.random.default_rng(3)
    for seed in range(60):
        apart = generator.normal(0.5, 1.0, n)
        found = paired_bootstrap(apart, np.zeros(n), seed=seed, resamples=4000)
        if abs(found.p - 0.05) > 0.01:  # nearer than that, it is the resampling that decides
            assert (found.p < 0.05) == (not found.interval.low <= 0 <= found.interval.high)


def test_the_detectable_difference_is_found_four_times_in_five() -> None:
    generator = np.random.default_rng(11)
    true = (1.959964 + 0.841621) * 0.3 / np.sqrt(60)
    found = 0
    for seed in range(300):
        found += (
            paired_bootstrap(generator.normal(true, 0.3, 60), np.zeros(60), seed=seed, resamples=400).p < 0.05
        )
    assert 0.72 <= found / 300 <= 0.88


def test_detectable_is_the_paired_standard_error_times_the_quantiles_of_t() -> None:
    a, b, _ = sample(50)
    error = scipy.stats.sem(a - b)
    expected = scipy.stats.t.ppf([0.975, 0.8], 49).sum() * error
    assert paired_bootstrap(a, b, seed=1).detectable == pytest.approx(expected)


@settings(max_examples=60, deadline=None)
@given(pairs, st.integers(0, 2**32))
def test_swapping_the_models_turns_every_sign(rows: list[tuple[float, float, int]], seed: int) -> None:
    a, b, weights = zip(*rows, strict=True)
    there = paired_bootstrap(a, b, weights=weights, seed=seed, resamples=200)
    back = paired_bootstrap(b, a, weights=weights, seed=seed, resamples=200)
    assert there.difference == -back.difference
    assert there.interval == pytest.approx((-back.interval.high, -back.interval.low), abs=1e-12)
    assert there.p == back.p
    assert there.detectable == back.detectable


@settings(max_examples=60, deadline=None)
@given(pairs, st.integers(0, 2**32))
def test_intervals_lie_within_the_data(rows: list[tuple[float, float, int]], seed: int) -> None:
    a, b, weights = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    found = paired_bootstrap(a, b, weights=weights, seed=seed, resamples=200)
    assert found.n == len(rows)
    assert (a - b).min() - 1e-9 <= found.interval.low <= found.interval.high <= (a - b).max() + 1e-9
    assert 0 < found.p <= 1
    assert found.detectable >= 0


@settings(max_examples=40, deadline=None)
@given(pairs, st.integers(0, 2**32))
def test_equal_weights_are_no_weights(rows: list[tuple[float, float, int]], seed: int) -> None:
    a, b, _ = zip(*rows, strict=True)
    plain = paired_bootstrap(a, b, seed=seed, resamples=200)
    weighted = paired_bootstrap(a, b, weights=[7] * len(rows), seed=seed, resamples=200)
    assert weighted.interval == pytest.approx(plain.interval, abs=1e-9)
    assert weighted.detectable == pytest.approx(plain.detectable, abs=1e-9)


def test_the_same_model_differs_by_nothing() -> None:
    a, _, _ = sample(20)
    found = paired_bootstrap(a, a, seed=1)
    assert (found.difference, found.interval, found.p, found.detectable) == (0, (0, 0), 1, 0)


def test_a_seed_gives_the_same_interval_and_another_seed_another() -> None:
    a, b, _ = sample(30)
    assert paired_bootstrap(a, b, seed=5) == paired_bootstrap(a, b, seed=5)
    assert paired_bootstrap(a, b, seed=5).interval != paired_bootstrap(a, b, seed=6).interval


def test_many_documents_take_little_memory() -> None:
    a, b, tokens = sample(10_000)
    tracemalloc.start()
    paired_bootstrap(a, b, weights=tokens, seed=1, resamples=200)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20_000_000  # in one piece it would be 200 × 10,000 × 8 bytes for each of three arrays


@pytest.mark.parametrize(
    ("a", "b", "weights", "message"),
    [
        ([1.0], [2.0], None, "at least two documents"),
        ([], [], None, "at least two documents"),
        ([1.0, 2.0, 3.0], [1.0, 2.0], None, "3 documents against 2"),
        ([1.0, 2.0], [1.0, 2.0], [1, 2, 3], "2 documents against 3"),
        ([1.0, float("nan")], [1.0, 2.0], None, r"a\[1\] is nan"),
        ([1.0, 2.0], [float("inf"), 2.0], None, r"b\[0\] is inf"),
        ([1.0, 2.0], [1.0, 2.0], [3, 0], r"weights\[1\] is 0: it must be above zero"),
        ([[1.0, 2.0]], [[1.0, 2.0]], None, "shape"),
    ],
)
def test_what_has_no_interval_is_refused(a: list, b: list, weights: list | None, message: str) -> None:
    with pytest.raises(MeditronError, match=message):
        paired_bootstrap(a, b, weights=weights, seed=1)


def test_no_resamples_is_refused() -> None:
    with pytest.raises(UsageError, match="0 resamples"):
        bootstrap_ratio([1.0, 2.0], [1, 1], seed=1, resamples=0)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_is_scipys(trial: tuple[int, int]) -> None:
    successes, n = trial
    theirs = scipy.stats.binomtest(successes, n).proportion_ci(method="wilson")
    assert wilson(successes, n) == pytest.approx((theirs.low, theirs.high), abs=1e-12)


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (3, 2), (-1, 5)])
def test_wilson_refuses_what_is_no_proportion(successes: int, n: int) -> None:
    with pytest.raises(UsageError):
        wilson(successes, n)


@given(st.integers(0, 400), st.integers(0, 400))
def test_mcnemar_is_the_binomial_test(only_a: int, only_b: int) -> None:
    n = only_a + only_b
    expected = scipy.stats.binomtest(only_a, n, 0.5).pvalue if n else 1.0
    assert mcnemar(only_a, only_b) == pytest.approx(expected, rel=1e-9)


def test_mcnemar_takes_thousands_and_no_negative_counts() -> None:
    assert mcnemar(3000, 3200) == pytest.approx(scipy.stats.binomtest(3000, 6200, 0.5).pvalue)
    with pytest.raises(UsageError, match="no counts"):
        mcnemar(-1, 2)


@given(st.lists(st.tuples(st.integers(0, 4), st.none() | st.integers(0, 4)), min_size=1, max_size=60))
def test_macro_f1_is_the_mean_of_each_classs_harmonic_mean(asked: list[tuple[int, int | None]]) -> None:
    def f1(c: int) -> float:
        hits = sum(g == p == c for g, p in asked)
        if not hits:
            return 0.0
        precision = hits / sum(p == c for _, p in asked)
        return scipy.stats.hmean([precision, hits / sum(g == c for g, _ in asked)])

    classes = {g for g, _ in asked} | {p for _, p in asked if p is not None}
    gold, predicted = zip(*asked, strict=True)
    assert macro_f1(gold, predicted) == pytest.approx(sum(map(f1, classes)) / len(classes))
    with pytest.raises(UsageError, match="against"):
        macro_f1(gold, predicted[1:])
