"""The recomputed tables of published scores, and the page that shows them."""

import pytest
from benchmarks.published_scores import PAGE, gaps, is_share_of, largest_deviation, published, render


def test_most_published_gaps_between_the_70b_models_are_within_noise():
    top = [gap for gap in gaps() if gap.table == "Top token (table 5)"]
    assert {gap.benchmark: round(gap.z, 2) for gap in top} == {
        "MMLU": -0.77,
        "PubMedQA": 0.78,
        "MedMCQA": 2.29,
        "MedQA": 0.77,
        "MedQA-4": 2.15,
    }


def test_the_page_shows_what_the_script_computes():
    page = PAGE.read_text(encoding="utf-8")
    assert page == render(page), "run `python -m benchmarks.published_scores --write`"


def test_the_named_defects_are_those_of_the_cells():
    page = PAGE.read_text(encoding="utf-8")
    for defect in (
        "1,871 questions, 1,862 were scored",
        "at most 445 of 500 questions of PubMedQA (89 %)",
        "Always `yes` scores 55.2 %",
        "printed 57.5, the five cells have 57.8",
        "49.1 ± 51.1; three accuracies with this mean have a standard deviation of at most 50.0",
        "Meditron-70B, self-consistency: 77.6 in table 5, 77.8 from the subjects",
        "of 16 questions the nearest shares are 75 % and 81.25 %",
        "MedQA −14.2, MedQA-4 −12.1; mean −6.4",
        "The 11.6 points over Clinical-Camel-70B",
    ):
        assert defect in page


def test_the_subjects_scores_fit_one_question_less():
    data = published()
    sizes = list(data["subjects"].values())
    assert sum(sizes) == 1871
    assert sum(sizes) - len(sizes) == data["questions"]["MMLU"]
    fits = [
        [sum(is_share_of(s, n - less) for s, n in zip(row["scores"], sizes, strict=True)) for less in (1, 0)]
        for row in data["mmlu"]
    ]
    assert min(less for less, _ in fits) >= 6
    assert max(whole for _, whole in fits) <= 2


@pytest.mark.parametrize(("score", "n", "expected"), [(31.3, 16, True), (77.9, 16, False), (0.0, 9, True)])
def test_a_share_is_a_whole_number_of_questions(score, n, expected):
    assert is_share_of(score, n) is expected


def test_the_largest_deviation_is_that_of_extreme_runs():
    assert largest_deviation(50.0, runs=2) == pytest.approx(70.71, abs=0.01)
    assert largest_deviation(100.0) == largest_deviation(0.0) == 0
    assert largest_deviation(100 / 3) == pytest.approx(57.735, abs=0.001)
