"""Scores by rubrics, against the published formula."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from api_server import Server, scripted_judge
from meditron.evaluate.config import EvalOptions
from meditron.evaluate.rubric.scores import answer_score, combine
from meditron.evaluate.standalone import evaluate_on_rubrics
from meditron.store.rubric_results import RubricScore
from meditron.tasks.rubrics import Criterion

CRITERIA = st.lists(st.tuples(st.integers(-10, 10), st.booleans()), min_size=1, max_size=8)


def criteria(points: list[int]) -> list[Criterion]:
    return [Criterion(criterion="x", points=value) for value in points]


@given(CRITERIA)
def test_the_score_of_an_answer_is_achieved_over_possible_points(items):
    points, met = (list(side) for side in zip(*items, strict=True))
    possible = np.clip(points, 0, None).sum()
    score = answer_score(criteria(points), [float(each) for each in met])
    if possible == 0:
        assert score is None
    else:
        assert score == pytest.approx(np.dot(points, met) / possible)


def test_criteria_without_a_verdict_are_in_neither_sum():
    assert answer_score(criteria([5, 5, -3]), [1.0, None, None]) == 1
    assert answer_score(criteria([5, 5, -3]), [None, None, 1.0]) is None
    assert answer_score(criteria([5, 5, -3]), [0.5, 0.0, 1.0]) == pytest.approx((2.5 - 3) / 10)


def test_several_verdicts_become_one():
    assert combine([True, True, False], "majority") == 1
    assert combine([True, False, False], "majority") == 0
    assert combine([True, False, None], "majority") is None  # tied
    assert combine([True, None, None], "majority") == 1
    assert combine([True, False, False], "mean") == pytest.approx(1 / 3)
    assert combine([None, None], "mean") is None


def evaluate(servers: list[Server], file: Path, out: Path, **changes: object) -> RubricScore:
    model, *judges = servers
    words = {"judges": tuple(f"api:{each.url}#judge" for each in judges), "resamples": 500}
    options = EvalOptions.model_validate(words | changes)
    result, _ = evaluate_on_rubrics(f"api:{model.url}#toy", file, options, out=out)
    [[score]] = [by_set.values() for by_set in result.rubrics.values()]
    return score


def test_scores_of_a_run_are_those_of_its_verdicts(
    model_server: Server, judge_server: Server, rubric_file: Path, tmp_path: Path
) -> None:
    """The answer repeats the prompt in capitals: FEVER and CASE are met, CASE 1 in every third row."""
    score = evaluate([model_server, judge_server], rubric_file, tmp_path)
    expected = [(5 - 2 + 7 * (n % 3 == 1)) / 12 for n in range(12)]
    assert score.score == score.mean == pytest.approx(np.mean(expected))
    assert score.interval is not None
    assert score.interval[0] < score.score < score.interval[1]
    assert score.bounds == pytest.approx((score.score, score.score))
    assert (score.n, score.clusters, score.criteria, score.missing, score.unscored) == (12, 12, 48, 0, 0)
    assert score.met_rate == pytest.approx((12 + 4 + 12) / 48)
    groups = {group.tag: group for group in score.groups}
    for tag, odd in (("theme:a", 1), ("theme:b", 0)):
        assert groups[tag].score == pytest.approx(np.mean(expected[odd::2]))
        assert (groups[tag].of, groups[tag].n) == ("conversations", 6)
    assert groups["axis:accuracy"].score == pytest.approx(1)
    assert groups["axis:completeness"].score == pytest.approx(4 / 12)
    # In level:example the CASE criterion costs 2 of 7 points in every row: below zero without case 1.
    assert groups["level:example"].score == pytest.approx(
        np.mean([(7 * (n % 3 == 1) - 2) / 7 for n in range(12)])
    )


def test_a_mean_below_zero_is_limited_to_zero(
    model_server: Server, judge_server: Server, rubric_file: Path, tmp_path: Path
) -> None:
    judge_server.text = scripted_judge(lambda answer, criterion: criterion in ("Names WAIT", "Names CASE"))
    score = evaluate([model_server, judge_server], rubric_file, tmp_path)
    assert score.mean == pytest.approx(-0.5)
    assert score.score == 0
    assert score.interval is None


def test_missing_verdicts_are_counted_and_bounded(
    model_server: Server, judge_server: Server, rubric_file: Path, tmp_path: Path
) -> None:
    """No verdict on WAIT (−4 points): met would cost 4 of 12 points."""
    judge_server.text = scripted_judge(
        lambda answer, criterion: "Unclear." if criterion == "Names WAIT" else "FEVER" in criterion
    )
    score = evaluate([model_server, judge_server], rubric_file, tmp_path, judge_attempts=2)
    assert score.missing == 12
    assert score.tied == 0
    assert score.score == pytest.approx(5 / 12)
    assert score.bounds == pytest.approx((1 / 12, 5 / 12))
    [judge] = score.judge_scores
    assert (judge.judgements, judge.missing, judge.retried) == (48, 12, 12)


def test_two_judges_that_disagree(
    model_server: Server, judge_server: Server, other_judge: Server, rubric_file: Path, tmp_path: Path
) -> None:
    other_judge.text = scripted_judge(lambda answer, criterion: criterion == "Names FEVER")
    servers = [model_server, judge_server, other_judge]
    majority = evaluate(servers, rubric_file, tmp_path)
    # Tied: CASE everywhere, CASE 1 in four rows. There 5 of 5 points are left, else 5 of 12.
    assert majority.missing == majority.tied == 16
    assert majority.score == pytest.approx((4 * 1 + 8 * 5 / 12) / 12)
    first, second = majority.judge_scores
    mean = evaluate(servers, rubric_file, tmp_path, judge_aggregate="mean")
    assert first.score is not None
    assert second.score is not None
    assert mean.score == pytest.approx((first.score + second.score) / 2)
    assert mean.missing == 0
    agreement = mean.judge_agreement
    assert agreement is not None
    [pair] = agreement.pairs
    # Equal: FEVER, WAIT and eight of twelve CASE 1; p_e = 28/48 · 12/48 + 20/48 · 36/48.
    assert (pair.n, agreement.n) == (48, 48)
    assert pair.agreement == pytest.approx(32 / 48)
    expected = (28 * 12 + 20 * 36) / 48**2
    assert pair.kappa == pytest.approx((32 / 48 - expected) / (1 - expected))
    assert len(judge_server.bodies) == len(other_judge.bodies) == 48  # the second run judged nothing


def test_human_labels_correct_a_lenient_judge(
    model_server: Server, judge_server: Server, rubric_file: Path, tmp_path: Path
) -> None:
    """The judge finds everything met except WAIT. All criteria of six rows are labelled."""
    judge_server.text = scripted_judge(lambda answer, criterion: criterion != "Names WAIT")
    evaluate([model_server, judge_server], rubric_file, tmp_path)
    rows = [json.loads(line) for line in (tmp_path / "rubrics-hb.answers.jsonl").read_text().splitlines()]
    labels = [
        {"prompt_id": row["id"], "answer_sha256": row["answer_sha256"], "criterion": text, "rater": rater}
        | {"met": text.removeprefix("Names ") in row["answer"]}
        for row in rows[:6]
        for text in ("Names FEVER", "Names CASE 1", "Names WAIT", "Names CASE")
        for rater in "ab"
    ]
    labels[1]["met"] = not labels[1]["met"]  # the raters are tied on the first criterion
    labels.append(labels[0] | {"answer_sha256": "0" * 64})
    file = tmp_path / "labels.jsonl"
    file.write_text("\n".join(map(json.dumps, labels)), encoding="utf-8")
    score = evaluate([model_server, judge_server], rubric_file, tmp_path, labels=str(file))
    human = score.human_agreement
    assert human is not None
    assert (human.criteria, human.tied, human.unused, human.labelled_conversations) == (23, 1, 1, 5)
    [combined] = human.comparisons
    # Of 23 labelled criteria, CASE 1 is not met in four rows of six (n % 3 is 0 or 2), where the judge errs.
    assert combined.n == 23
    assert combined.agreement == pytest.approx(19 / 23)
    assert combined.sensitivity == 1
    assert combined.specificity == pytest.approx(6 / 10)
    assert combined.met_rate == pytest.approx(36 / 48)
    assert combined.rogan_gladen == pytest.approx((0.75 + 0.6 - 1) / (1 + 0.6 - 1))
    assert combined.prediction_powered == pytest.approx(0.75 - 4 / 23)
    assert combined.prediction_powered_interval is not None
    # Judged score 10/12 in every row; in the five fully labelled rows CASE 1 is met once or twice.
    errors = [0 if "CASE 1" in row["answer"] else -7 / 12 for row in rows[1:6]]
    assert human.corrected_score == pytest.approx(10 / 12 + np.mean(errors))
    assert human.raters_alpha is not None
    assert 0.8 < human.raters_alpha < 1
    assert len(judge_server.bodies) == 48
