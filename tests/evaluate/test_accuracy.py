import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from meditron.evaluate import accuracy
from meditron.evaluate.config import EvalOptions, ModelPair
from meditron.evaluate.eval_set import EvalSet
from meditron.evaluate.rows import QuestionRow
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
    by_method = {"scores": scores, "rule": method.rule} if method.name == "loglikelihood" else {"token": "x"}
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
