"""Orders and sides."""

from collections import Counter

import pytest
from scipy import stats

from meditron.serve.review.blinding import pair_answers


@pytest.mark.parametrize("questions", [1, 2, 7, 50])
@pytest.mark.parametrize("models", [2, 3, 4])
def test_every_pair_is_compared_once_per_question_with_balanced_sides(questions, models):
    pairings = pair_answers(range(questions), range(models), 3, "anna")
    assert Counter((each.question, *sorted((each.left, each.right))) for each in pairings) == Counter(
        (question, a, b) for question in range(questions) for a in range(models) for b in range(a + 1, models)
    )
    lefts = Counter((min(each.left, each.right), each.left) for each in pairings)
    for a in range(models):
        for b in range(a + 1, models):
            pair = [each for each in pairings if {each.left, each.right} == {a, b}]
            assert abs(sum(each.left == a for each in pair) * 2 - questions) <= 1
    assert lefts.total() == len(pairings)


def test_sides_and_orders_depend_on_the_seed_and_the_rater_alone():
    def draw(seed, rater):
        return pair_answers(range(30), "ab", seed, rater)

    assert draw(1, "anna") == draw(1, "anna")
    assert len({str(draw(seed, rater)) for seed in range(3) for rater in ("anna", "ben")}) == 6


def test_sides_are_uniform_over_raters():
    """For each question the first model is on the left for half of the raters (chi-squared test)."""
    raters = 400
    counts = Counter(
        each.question
        for rater in range(raters)
        for each in pair_answers(range(9), "ab", 5, str(rater))
        if each.left == "a"
    )
    for question in range(9):
        assert stats.binomtest(counts[question], raters).pvalue > 1e-4
    first = Counter(pair_answers(range(9), "ab", 5, str(rater))[0].question for rater in range(raters))
    assert stats.chisquare([first[question] for question in range(9)]).pvalue > 1e-4
