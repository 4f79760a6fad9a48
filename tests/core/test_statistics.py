"""Statistics against scipy's, against theory, and against what must hold for any numbers."""

import tracemalloc
from itertools import product

import numpy as np
import pytest
import scipy.stats
from benchmarks.coverage import DISTRIBUTIONS, accuracies, means, ratios
from hypothesis import given, settings
from hypothesis import strategies as st

from meditron.core.errors import MeditronError, UsageError
from meditron.core.statistics import (
    bootstrap_ratio,
    clustered_mean,
    holm,
    macro_f1,
    mcnemar,
    paired_bootstrap,
    paired_proportions,
    sign_flip,
    wilson_interval,
)

losses = st.floats(-50, 50, allow_nan=False).map(lambda value: round(value, 6))
pairs = st.lists(st.tuples(losses, losses, st.integers(1, 4000)), min_size=1, max_size=30)


def sample(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Log-losses of two models on n documents, and the documents' tokens."""
    generator = np.random.default_rng(seed)
    base = generator.gamma(30, 0.1, n)
    return base - generator.normal(0.1, 0.15, n), base, generator.integers(40, 900, n)


def jackknife(numerators: np.ndarray, denominators: np.ndarray) -> float:
    """The standard error of a ratio of sums, by leaving out each document in turn."""
    n = len(numerators)
    ratio = numerators.sum() / denominators.sum()
    without = [np.delete(numerators, i).sum() / np.delete(denominators, i).sum() for i in range(n)]
    return float(np.sqrt((n - 1) / n * ((np.array(without) - ratio) ** 2).sum()))


def bootstrap_t(numerators: np.ndarray, denominators: np.ndarray, resamples: int) -> tuple[float, float]:
    """The textbook's interval, resample by resample, at either end the wider of it and Student's t."""
    n, generator = len(numerators), np.random.default_rng(99)
    ratio, error = numerators.sum() / denominators.sum(), jackknife(numerators, denominators)
    t = []
    for _ in range(resamples):
        drawn = generator.integers(n, size=n)
        y, w = numerators[drawn], denominators[drawn]
        t.append((y.sum() / w.sum() - ratio) / jackknife(y, w))
    low, high = np.quantile(t, [0.025, 0.975])
    effective = denominators.sum() ** 2 / (denominators**2).sum()
    student = scipy.stats.t.ppf(0.975, effective - 1)
    return ratio - max(high, student) * error, ratio - min(low, -student) * error


@pytest.mark.parametrize("weighted", [False, True])
def test_intervals_are_the_textbooks_bootstrap_t(weighted: bool) -> None:
    values, _, tokens = sample(20)
    values = values**3  # skewed, so that the resampled quantiles decide one end
    denominators = tokens.astype(float) if weighted else np.ones(20)
    value, interval = bootstrap_ratio(values * denominators, denominators, seed=1)
    expected = bootstrap_t(values * denominators, denominators, 1500)
    assert value == pytest.approx(np.average(values, weights=denominators))
    assert interval == pytest.approx(expected, abs=0.15 * jackknife(values * denominators, denominators))


def test_a_large_samples_interval_is_students() -> None:
    a, b, _ = sample(2000)
    result = paired_bootstrap(a, b, seed=1)
    expected = scipy.stats.ttest_rel(a, b).confidence_interval()
    width = expected.high - expected.low
    assert result.interval == pytest.approx((expected.low, expected.high), abs=0.05 * width)
    assert result.difference == pytest.approx(np.mean(a - b))


def test_p_is_near_the_t_tests() -> None:
    a, b, _ = sample(60)
    closer = a + 0.06  # so that p is neither nothing nor one
    p = paired_bootstrap(closer, b, seed=1).p
    assert p == pytest.approx(scipy.stats.ttest_rel(closer, b).pvalue, abs=0.02)
    assert 0.001 < p < 0.5


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_intervals_cover_the_truth_as_often_as_they_say(distribution: str) -> None:
    # Percentile intervals cover 88 to 90 % of the skewed differences here.
    draw = DISTRIBUTIONS[distribution]
    result = means(draw, 12, 800)
    assert 0.93 <= result["coverage"] <= 0.975
    assert result["verdict"] <= 0.065
    assert 0.92 <= ratios(draw, 24, 400) <= 0.98


@pytest.mark.parametrize(("only_a", "only_b", "n"), [(0.02, 0.02, 60), (0.15, 0.05, 24), (0.1, 0.1, 600)])
def test_intervals_of_accuracy_differences_cover(only_a: float, only_b: float, n: int) -> None:
    result = accuracies(only_a, only_b, n, 4000)
    assert result["coverage"] >= 0.935
    assert only_a != only_b or result["p"] <= 0.05


@pytest.mark.parametrize("n", [24, 60])
def test_p_is_the_level_at_which_the_interval_touches_zero(n: int) -> None:
    generator = np.random.default_rng(3)
    for seed in range(60):
        differences = generator.normal(0.3, 1.0, n)
        result = paired_bootstrap(differences, np.zeros(n), seed=seed, resamples=2000)
        if abs(result.p - 0.05) > 0.005:  # nearer than that, the quantiles' interpolation decides
            assert result.interval is not None
            assert (result.p < 0.05) == (not result.interval.low <= 0 <= result.interval.high)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-20, 20), min_size=1, max_size=11))
def test_sign_flips_are_all_counted(differences: list[int]) -> None:
    observed = abs(sum(differences))
    patterns = list(product((1, -1), repeat=len(differences)))
    sums = [abs(sum(s * d for s, d in zip(signs, differences, strict=True))) for signs in patterns]
    as_far = sum(total >= observed for total in sums)
    assert sign_flip([d / 10 for d in differences]) == pytest.approx(as_far / len(patterns))


def test_sign_flips_are_scipys() -> None:
    differences = np.random.default_rng(5).normal(0.4, 1, 12)
    reference = scipy.stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=np.inf, vectorized=True
    )
    assert sign_flip(differences) == pytest.approx(reference.pvalue)
    assert paired_bootstrap(differences, np.zeros(12), seed=1).p == sign_flip(differences)


def test_sign_flips_of_twenty_are_quick_and_of_more_refused() -> None:
    assert sign_flip(np.arange(1.0, 21)) == pytest.approx(2 / 2**20)
    with pytest.raises(UsageError, match="at most 20"):
        sign_flip(np.arange(1.0, 22))


@pytest.mark.parametrize("n", [4, 6, 12, 20])
def test_p_of_few_documents_does_not_depend_on_the_resamples(n: int) -> None:
    differences = np.arange(1, n + 1) / 10
    result = {
        paired_bootstrap(differences, np.zeros(n), seed=1, resamples=count).p for count in (100, 1000, 10_000)
    }
    assert result == {2 / 2**n}


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
def test_fewer_than_six_have_no_interval_and_cannot_be_significant(n: int) -> None:
    result = paired_bootstrap(np.arange(1, n + 1) / 10, np.zeros(n), seed=1)
    assert (result.interval, result.detectable) == (None, None)
    assert 0.05 < result.p <= 1
    assert bootstrap_ratio(np.arange(1.0, n + 1), np.ones(n), seed=1) == ((n + 1) / 2, None)
    assert wilson_interval(1, n) is None
    assert paired_proportions(1, 0, n).interval is None


@pytest.mark.parametrize("n", [6, 12, 20, 24, 60])
def test_samples_that_do_not_vary_claim_nothing_about_their_spread(n: int) -> None:
    values = np.random.default_rng(2).normal(3, 1, n)
    same = paired_bootstrap(values, values, seed=1)
    assert (same.difference, same.interval, same.p, same.detectable) == (0, None, 1, None)
    shifted = paired_bootstrap(values + 0.1, values, seed=1)  # equal but for the last bits
    assert shifted.interval is None
    assert shifted.p == pytest.approx(2 / 2**n)
    assert bootstrap_ratio(np.full(n, 6.0), np.full(n, 2.0), seed=1) == (3.0, None)


@pytest.mark.parametrize("n", [6, 12, 24, 60])
@pytest.mark.parametrize("kind", ["one differs", "ties", "an outlier", "huge", "tiny"])
def test_odd_samples_have_finite_intervals_with_a_width(n: int, kind: str) -> None:
    differences = np.random.default_rng(1).normal(0.2, 1, n)
    match kind:
        case "one differs":
            differences = np.eye(n)[0]
        case "ties":
            differences = np.where(differences > 0, 0.5, 0.0)
        case "an outlier":
            differences[0] = 1e6
        case "huge":
            differences *= 1e150
        case "tiny":
            differences *= 1e-150
    result = paired_bootstrap(differences, np.zeros(n), seed=1, resamples=500)
    assert result.interval is not None
    low, high = result.interval
    assert -np.inf < low < result.difference < high < np.inf
    assert 0 < result.p <= 1
    assert result.detectable is not None
    assert 0 < result.detectable < np.inf
    if kind in ("one differs", "an outlier"):
        assert low < 0 < high


def test_one_long_document_gives_a_wide_interval() -> None:
    tokens = np.array([100_000.0, 10, 10, 10, 10, 10])
    value, interval = bootstrap_ratio(np.array([2.0, 3, 4, 3, 4, 3]) * tokens, tokens, seed=1)
    assert interval is not None
    assert interval.low < value - 0.001 < value + 0.001 < interval.high


def test_intervals_are_cut_to_their_range() -> None:
    agreement = np.array([9, 10, 10, 10, 10, 10, 10.0])
    free = bootstrap_ratio(agreement, np.full(7, 10), seed=1)[1]
    cut = bootstrap_ratio(agreement, np.full(7, 10), seed=1, bounds=(0, 1))[1]
    assert free is not None
    assert cut == (free.low, 1.0)
    assert free.high > 1


def test_the_detectable_difference_is_found_four_times_in_five() -> None:
    generator = np.random.default_rng(11)
    true = (1.959964 + 0.841621) * 0.3 / np.sqrt(60)
    detected = 0
    for seed in range(300):
        detected += (
            paired_bootstrap(generator.normal(true, 0.3, 60), np.zeros(60), seed=seed, resamples=400).p < 0.05
        )
    assert 0.70 <= detected / 300 <= 0.88


def test_detectable_is_the_paired_standard_error_times_the_quantiles_of_t() -> None:
    a, b, _ = sample(50)
    error = scipy.stats.sem(a - b)
    expected = scipy.stats.t.ppf([0.975, 0.8], 49).sum() * error
    assert paired_bootstrap(a, b, seed=1).detectable == pytest.approx(expected)


@settings(max_examples=60, deadline=None)
@given(pairs, st.integers(0, 2**32))
def test_swapping_the_models_turns_every_sign(rows: list[tuple[float, float, int]], seed: int) -> None:
    a, b, _ = zip(*rows, strict=True)
    there = paired_bootstrap(a, b, seed=seed, resamples=200)
    back = paired_bootstrap(b, a, seed=seed, resamples=200)
    assert there.difference == -back.difference
    assert (there.interval is None) == (back.interval is None)
    if there.interval and back.interval:
        assert there.interval == pytest.approx((-back.interval.high, -back.interval.low), abs=1e-9)
    assert there.p == pytest.approx(back.p)
    assert there.detectable == pytest.approx(back.detectable)


@settings(max_examples=60, deadline=None)
@given(pairs, st.integers(0, 2**32))
def test_the_value_lies_within_its_interval(rows: list[tuple[float, float, int]], seed: int) -> None:
    values, _, weights = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
    value, interval = bootstrap_ratio(values * weights, weights, seed=seed, resamples=200)
    assert value == pytest.approx(np.average(values, weights=weights), abs=1e-9)
    assert (interval is None) == (len(rows) < 6 or bool(np.ptp(values) == 0))
    assert interval is None or interval.low < value < interval.high


@settings(max_examples=40, deadline=None)
@given(pairs, st.integers(0, 2**32))
def test_equal_weights_are_no_weights(rows: list[tuple[float, float, int]], seed: int) -> None:
    a, _, _ = zip(*rows, strict=True)
    plain = bootstrap_ratio(a, [1] * len(rows), seed=seed, resamples=200)
    weighted = bootstrap_ratio([7 * value for value in a], [7] * len(rows), seed=seed, resamples=200)
    assert weighted[0] == pytest.approx(plain[0], abs=1e-9)
    assert weighted[1] == (plain[1] and pytest.approx(plain[1], abs=1e-9))


def test_a_seed_gives_the_same_interval_and_another_seed_another() -> None:
    a, b, _ = sample(30, seed=4)
    a = a**3
    assert paired_bootstrap(a, b, seed=5) == paired_bootstrap(a, b, seed=5)
    assert paired_bootstrap(a, b, seed=5).interval != paired_bootstrap(a, b, seed=6).interval


def test_many_documents_take_little_memory() -> None:
    a, b, tokens = sample(10_000)
    paired_bootstrap(a, b, seed=1, resamples=1)  # imports are not counted
    tracemalloc.start()
    bootstrap_ratio(a * tokens, tokens, seed=1, resamples=200)
    paired_bootstrap(a, b, seed=1, resamples=200)
    sign_flip(a[:20])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 25_000_000  # in one piece it would be 200 × 10,000 × 8 bytes for each of three arrays


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        ([], [], "must not be empty"),
        ([1.0, 2.0, 3.0], [1.0, 2.0], "got 3 and 2"),
        ([1.0, float("nan")], [1.0, 2.0], r"a\[1\] must be finite, got nan"),
        ([1.0, 2.0], [float("inf"), 2.0], r"b\[0\] must be finite, got inf"),
        ([[1.0, 2.0]], [[1.0, 2.0]], "shape"),
    ],
)
def test_unusable_values_are_refused(a: list, b: list, message: str) -> None:
    with pytest.raises(MeditronError, match=message):
        paired_bootstrap(a, b, seed=1)


def test_denominators_must_be_above_zero_and_resamples_at_least_one() -> None:
    with pytest.raises(MeditronError, match=r"denominators\[1\] must be above zero, got 0"):
        bootstrap_ratio([1.0, 2.0], [3, 0], seed=1)
    with pytest.raises(UsageError, match="resamples must be at least 1, got 0"):
        bootstrap_ratio([1.0, 2.0], [1, 1], seed=1, resamples=0)


@given(st.lists(st.floats(0, 1), max_size=12))
def test_holms_adjustment_is_the_textbooks(p: list[float]) -> None:
    adjusted = holm(p)
    order = np.argsort(p, kind="stable")
    for rank, place in enumerate(order):
        steps = [(len(p) - earlier) * p[order[earlier]] for earlier in range(rank + 1)]
        assert adjusted[place] == pytest.approx(min(1.0, max(steps)))


def test_holm_is_known_by_example() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []


def test_accuracy_differences_of_few_discordant_questions() -> None:
    alike = paired_proportions(0, 0, 600)
    assert (alike.difference, alike.p) == (0, 1)
    assert alike.interval is not None
    assert alike.interval.low == -alike.interval.high < 0
    # Bonett and Price: (6 / 602 − 1 / 602) ± 1.96 √((7 / 602 − (5 / 602)²) / 602)
    five = paired_proportions(5, 0, 600)
    assert five.interval == pytest.approx((-0.000283, 0.016894), abs=1e-6)
    assert five.p == 0.0625
    assert paired_proportions(0, 6, 6).interval == pytest.approx((-1, -0.29166), abs=1e-5)
    with pytest.raises(UsageError, match="discordant"):
        paired_proportions(3, 4, 6)


@settings(max_examples=100, deadline=None)
@given(st.integers(6, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_is_scipys(trial: tuple[int, int]) -> None:
    successes, n = trial
    reference = scipy.stats.binomtest(successes, n).proportion_ci(method="wilson")
    assert wilson_interval(successes, n) == pytest.approx((reference.low, reference.high), abs=1e-12)


@pytest.mark.parametrize(("successes", "n"), [(0, 0), (3, 2), (-1, 5)])
def test_wilson_refuses_what_is_no_proportion(successes: int, n: int) -> None:
    with pytest.raises(UsageError):
        wilson_interval(successes, n)


@given(st.integers(0, 400), st.integers(0, 400))
def test_mcnemar_is_the_binomial_test(only_a: int, only_b: int) -> None:
    n = only_a + only_b
    expected = scipy.stats.binomtest(only_a, n, 0.5).pvalue if n else 1.0
    assert mcnemar(only_a, only_b) == pytest.approx(expected, rel=1e-9)


def test_mcnemar_takes_thousands_and_no_negative_counts() -> None:
    assert mcnemar(3000, 3200) == pytest.approx(scipy.stats.binomtest(3000, 6200, 0.5).pvalue)
    with pytest.raises(UsageError, match="counts must be"):
        mcnemar(-1, 2)


@given(st.lists(st.tuples(st.integers(0, 4), st.none() | st.integers(0, 4)), min_size=1, max_size=60))
def test_macro_f1_is_the_mean_of_each_classs_harmonic_mean(answers: list[tuple[int, int | None]]) -> None:
    def f1(c: int) -> float:
        hits = sum(g == p == c for g, p in answers)
        if not hits:
            return 0.0
        precision = hits / sum(p == c for _, p in answers)
        return scipy.stats.hmean([precision, hits / sum(g == c for g, _ in answers)])

    classes = {g for g, _ in answers} | {p for _, p in answers if p is not None}
    gold, predicted = zip(*answers, strict=True)
    assert macro_f1(gold, predicted) == pytest.approx(sum(map(f1, classes)) / len(classes))
    with pytest.raises(UsageError, match="against"):
        macro_f1(gold, predicted[1:])


def test_clusters_of_equal_answers_count_as_one_question() -> None:
    random = np.random.default_rng(4)
    one_per_cluster = (random.random(80) < 0.6).astype(float)
    names = [f"c{i}" for i in range(80)]
    single = clustered_mean(one_per_cluster, names, seed=1, bounds=(0, 1))
    repeated = clustered_mean(np.repeat(one_per_cluster, 5), list(np.repeat(names, 5)), seed=1, bounds=(0, 1))
    assert single is not None
    assert repeated == pytest.approx(single)
    naive = wilson_interval(int(5 * one_per_cluster.sum()), 400)
    assert naive is not None
    assert repeated is not None
    assert repeated.high - repeated.low > 2 * (naive.high - naive.low)
    assert single.high - single.low == pytest.approx(2 * 1.96 * one_per_cluster.std() / np.sqrt(79), rel=0.1)


def test_clustered_means_need_six_clusters_and_equal_lengths() -> None:
    assert clustered_mean([1, 0, 1, 0, 1, 0], list("aabbcc"), seed=1) is None
    with pytest.raises(UsageError, match="2 values against 1 clusters"):
        clustered_mean([1, 0], ["a"], seed=1)
