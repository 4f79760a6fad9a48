import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from meditron.core.statistics import clustered_mean
from meditron.evaluate import accuracy
from meditron.evaluate.compare import compare_results
from meditron.evaluate.config import EvalOptions, ModelPair
from meditron.evaluate.contamination import score_groups
from meditron.evaluate.eval_set import EvalSet
from meditron.evaluate.methods.base import find_method
from meditron.evaluate.methods.registry import METHODS
from meditron.evaluate.rows import QuestionRow
from meditron.evaluate.rows_file import RowsFile, read_rows
from meditron.evaluate.standalone import evaluate_on_task
from meditron.tasks.errata import Erratum
from meditron.tasks.question import Question
from meditron.tasks.registry import open_task

DRAWN = np.random.default_rng(5)


def an_eval_set(task_file: Path, **options: Any) -> EvalSet:
    settings = EvalOptions.model_validate({"questions": 30} | options)
    [eval_set] = EvalSet.from_task(open_task(str(task_file)), settings, seed=1)
    return eval_set


def rows(eval_set: EvalSet, model: str, skill: float) -> list[Any]:
    """Rows of a model that adds `skill` to the gold option's scores."""
    return [row(eval_set, model, question, skill) for question in eval_set.questions]


def row(eval_set: EvalSet, model: str, question: Question, skill: float) -> QuestionRow:
    noise = DRAWN.normal(-5, 1, (3, 3)) + skill * (np.arange(3) == question.gold) * [[1], [1], [2]]
    scores = dict(zip(("sum", "bytes", "calibrated"), map(tuple, noise.tolist()), strict=True))
    method = eval_set.method
    next_token = {"token": "x", "constrained": False, "free_prediction": None, "scores": {"first-token": ()}}
    by_method = {"scores": scores, "rule": method.rule} if method.name == "loglikelihood" else next_token
    prediction = int(np.argmax(scores[method.rule])) if method.name == "loglikelihood" else None
    return method.row_type(
        model=model,
        model_digest="d",
        engine="torch",
        dtype="float32",
        id=question.id,
        cache_key="p",
        task=eval_set.task.name,
        version=1,
        data_sha256="s",
        template=eval_set.template_id,
        prompt_form="raw",
        method=method.name,
        shots=0,
        question_sha256="q",
        prompt_sha256="p",
        gold=question.gold,
        prediction=prediction,
        correct=prediction == question.gold,
        option_probability_mass=0.25,
        **by_method,
    )


def test_a_score_is_counted_from_its_rows(task_file: Path) -> None:
    eval_set = an_eval_set(task_file)
    model_rows = rows(eval_set, "base", 1)
    result = accuracy.score_task(eval_set, model_rows, "drugs.jsonl")
    right = sum(r.correct for r in model_rows)
    assert (result.n, result.accuracy) == (30, right / 30)
    reference = stats.binomtest(right, 30).proportion_ci(method="wilson")
    assert result.interval == pytest.approx((reference.low, reference.high))
    for rule, scored in result.rules.items():
        hits = [np.argmax(r.scores[rule]) == r.gold for r in model_rows]
        assert scored.accuracy == pytest.approx(np.mean(hits))
    assert result.confusion == tuple(
        (*(sum(r.gold == g and r.prediction == p for r in model_rows) for p in range(3)), 0) for g in range(3)
    )
    assert (result.parse_rate, result.option_probability_mass) == (1, 0.25)
    assert result.prompt_sha256 == hashlib.sha256(b"p\n" * 30).hexdigest()
    assert result.data_sha256 == eval_set.task.data_sha256("test")


def test_what_names_no_option_counts_as_wrong_and_not_as_parsed(task_file: Path) -> None:
    eval_set = an_eval_set(task_file, methods=("next-token",))
    result = accuracy.score_task(eval_set, rows(eval_set, "base", 9), "drugs.jsonl")
    assert (result.accuracy, result.parse_rate, result.macro_f1) == (0, 0, 0)
    assert (result.rule, result.rules) == (None, {})
    assert [line[3] for line in result.confusion] == [
        sum(q.gold == g for q in eval_set.questions) for g in range(3)
    ]


def test_baselines_need_no_model(task_file: Path) -> None:
    eval_set = an_eval_set(task_file)
    gold = [question.gold for question in eval_set.questions]
    commonest = max(gold.count(option) for option in range(3)) / 30
    result = accuracy.compute_baselines(eval_set, None)
    assert {name: b.accuracy for name, b in result.items()} == {"majority": commonest, "position": commonest}


def test_naive_bayes_is_not_trained_on_evaluated_questions(task_file: Path) -> None:
    eval_set = an_eval_set(task_file)
    assert accuracy.answer_by_bayes(eval_set, eval_set.task.rows("train")) is None, (
        "a file's questions are both splits"
    )
    training = [Question(id=f"t{g}", text=f"word{g}", options=eval_set.classes, gold=g) for g in range(3)]
    reference = accuracy.answer_by_bayes(eval_set, [*training, *eval_set.questions])
    assert reference is not None
    assert reference.trained_on == 3
    assert accuracy.compute_baselines(eval_set, reference)["naive Bayes"].trained_on == 3


def test_every_later_model_is_paired_with_the_first_its_calibrated_rule_and_naive_bayes(
    task_file: Path,
) -> None:
    eval_set = an_eval_set(task_file)
    answers = {"base": rows(eval_set, "base", 0), "tuned": rows(eval_set, "tuned", 6)}
    training = [Question(id=f"t{g}", text=f"word{g}", options=eval_set.classes, gold=g) for g in range(3)]
    reference = accuracy.answer_by_bayes(eval_set, training)
    pairs = [ModelPair(model="tuned", against="base")]
    result = accuracy.compute_differences(eval_set, pairs, answers, reference)
    assert [(d.a, d.b) for d in result] == [
        ("base", "tuned"),
        ("base (calibrated)", "tuned"),
        ("naive Bayes", "tuned"),
    ]
    assert {d.what for d in result} == {"accuracy, drugs"}
    a, b = ([r.correct for r in answers[name]] for name in ("base", "tuned"))
    assert result[0].difference == pytest.approx(np.mean(b) - np.mean(a))
    only_b = sum(y and not x for x, y in zip(a, b, strict=True))
    only_a = sum(x and not y for x, y in zip(a, b, strict=True))
    assert result[0].mcnemar == pytest.approx(stats.binomtest(only_b, only_a + only_b).pvalue)
    low, high = result[0].interval
    assert 0 < low < result[0].difference < high
    calibrated = np.mean([r.best_option("calibrated") == r.gold for r in answers["base"]])
    assert result[1].difference == pytest.approx(np.mean(b) - calibrated)
    alone = accuracy.compute_differences(eval_set, [], {"base": answers["base"]}, reference)
    assert [(d.a, d.b) for d in alone] == [("naive Bayes", "base")]


def test_a_score_without_known_errors(task_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    eval_set = an_eval_set(task_file)
    model_rows = rows(eval_set, "base", 1)
    wrong = eval_set.questions[:4]
    known = {question.id: Erratum("wrong answer key", "a study") for question in wrong}
    monkeypatch.setattr(accuracy, "find_errata", lambda questions: known)
    errata = accuracy.score_task(eval_set, model_rows, "drugs.jsonl").errata
    assert errata is not None
    assert errata.without is not None
    assert (errata.sources, errata.questions, errata.without.n) == (("a study",), {"wrong answer key": 4}, 26)
    assert errata.without.accuracy == sum(r.correct for r in model_rows if r.id not in known) / 26
    monkeypatch.setattr(accuracy, "find_errata", lambda questions: {})
    assert accuracy.score_task(eval_set, model_rows, "drugs.jsonl").errata is None


def clustered_file(tmp_path: Path, field: str) -> Path:
    """Thirty questions, three on each of ten passages or of ten subjects."""
    lines = [
        {"id": f"q{n}", "question": f"Which? {n}", "options": ["yes", "no"], "gold": n % 2}
        | {field: f"Passage {n // 3}."}
        for n in range(30)
    ]
    path = tmp_path / f"{field}.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.mark.parametrize("field", ["context", "group"])
def test_questions_on_one_passage_or_of_one_subject_are_a_cluster(
    tmp_path: Path, tiny: Path, field: str
) -> None:
    result, path = evaluate_on_task(str(tiny), str(clustered_file(tmp_path, field)), out=tmp_path / "out")
    [score] = result.tasks[str(tiny)].values()
    answers = read_rows(path, QuestionRow)
    assert (score.clusters, len({row.cluster for row in answers})) == (10, 10)
    expected = clustered_mean(
        [float(row.correct) for row in answers], [row.cluster for row in answers], seed=1, bounds=(0, 1)
    )
    assert score.clustered_interval == pytest.approx(expected, abs=0.02)
    # In a comparison of two results, too.
    other = [row.model_copy(update={"model": "other", "correct": not row.correct}) for row in answers]
    with RowsFile(tmp_path / "other" / path.name, QuestionRow) as file:
        file.rewrite_sorted(other)
    [comparison] = compare_results(str(path), str(tmp_path / "other"))
    assert comparison.clusters == 10
    assert comparison.clustered_interval is not None
    assert comparison.clustered_interval[0] <= comparison.difference <= comparison.clustered_interval[1]


def test_a_difference_over_clusters_has_the_seed_and_the_resamples_that_are_asked_for() -> None:
    keys = [(str(n),) for n in range(300)]
    right = {key: bool(DRAWN.random() < 0.5) for key in keys}
    better = {key: value or bool(DRAWN.random() < 0.3) for key, value in right.items()}
    clusters = {key: str(n // 3) for n, key in enumerate(keys)}
    values = [float(better[key]) - float(right[key]) for key in sorted(keys)]
    names = [clusters[key] for key in sorted(keys)]
    intervals = set()
    for settings in ({"seed": 1}, {"seed": 2}, {"seed": 2, "resamples": 150}):
        difference = accuracy.accuracy_difference(
            "drugs", "a", right, "b", better, clusters=clusters, **settings
        )
        assert difference.clustered_interval == clustered_mean(values, names, **settings)
        intervals.add(difference.clustered_interval)
    assert len(intervals) == 3


def test_questions_of_their_own_have_no_clusters(task_file: Path) -> None:
    eval_set = an_eval_set(task_file)
    score = accuracy.score_task(eval_set, rows(eval_set, "base", 1), "drugs.jsonl")
    assert (eval_set.clusters, score.clusters, score.clustered_interval) == ({}, 0, None)


def test_the_calibration_is_that_of_the_softmax_of_the_options(task_file: Path) -> None:
    eval_set = an_eval_set(task_file)
    model_rows = rows(eval_set, "base", 1)
    result = accuracy.score_task(eval_set, model_rows, "drugs.jsonl").calibration
    chosen = [np.exp(r.scores["sum"])[r.prediction] / np.exp(r.scores["sum"]).sum() for r in model_rows]
    right = [r.correct for r in model_rows]
    assert result is not None
    assert result.overconfidence == pytest.approx(np.mean(chosen) - np.mean(right))
    assert sum(each.n * each.confidence for each in result.bins) == pytest.approx(sum(chosen))
    assert sum(each.n * each.accuracy for each in result.bins) == pytest.approx(sum(right))
    no_probability = an_eval_set(task_file, methods=("next-token",))
    unknown = accuracy.score_task(no_probability, rows(no_probability, "base", 0), "drugs.jsonl")
    assert unknown.calibration is None


@pytest.mark.parametrize("method", sorted(METHODS))
def test_scores_are_split_by_contamination_whatever_the_method(task_file: Path, method: str) -> None:
    eval_set = an_eval_set(task_file)
    groups = {q.id: "trained" if place < 10 else "not found" for place, q in enumerate(eval_set.questions)}
    # The row type of every method, with only the fields that the split reads.
    row_type = find_method(method).row_type
    answers = [
        row_type.model_construct(id=q.id, gold=q.gold, prediction=0, correct=q.gold == 0)
        for q in eval_set.questions
    ]
    parts = score_groups(answers, groups)
    assert {name: part.n for name, part in parts.items()} == {"trained": 10, "not found": 20}
    right = sum(row.correct for row in answers)
    assert sum(part.n * part.accuracy for part in parts.values()) == pytest.approx(right)
