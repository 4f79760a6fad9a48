"""Scores of a task with intervals, the baselines beside them, and the paired differences, from rows."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from meditron.core.statistics import wilson_interval
from meditron.evaluate.bayes import NaiveBayes
from meditron.evaluate.compare import Correctness, accuracy_difference, unlike
from meditron.evaluate.config import Against
from meditron.evaluate.eval_set import EvalSet
from meditron.evaluate.methods.base import count_accuracy
from meditron.evaluate.rows import QuestionRow
from meditron.store.results import Baseline, Comparison, TaskScore
from meditron.tasks.question import Question

__all__ = [
    "BAYES",
    "EvalSetFigures",
    "NaiveBayesAnswers",
    "answer_by_bayes",
    "baselines",
    "differences",
    "figures",
    "score_task",
]

BAYES: Literal["naive Bayes"] = "naive Bayes"


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalSetFigures:
    """All figures of one evaluation set."""

    scores: Mapping[str, TaskScore]
    """Model → score."""
    baselines: dict[str, Baseline]
    differences: list[Comparison]


def figures(
    eval_set: EvalSet,
    rows: Mapping[str, Sequence[QuestionRow]],
    pairs: Sequence[Against],
    training: Sequence[Question],
) -> EvalSetFigures:
    """Compute all figures of an evaluation set.

    Args:
        eval_set: The questions and the method.
        rows: Model → its rows, in the questions' order.
        pairs: Pairs of models to compare.
        training: Training rows of naive Bayes.
    """
    bayes = answer_by_bayes(eval_set, training)
    return EvalSetFigures(
        scores={name: score_task(eval_set, model_rows, eval_set.file) for name, model_rows in rows.items()},
        baselines=baselines(eval_set, bayes),
        differences=differences(eval_set, pairs, rows, bayes),
    )


def score_task(eval_set: EvalSet, rows: Sequence[QuestionRow], file_name: str) -> TaskScore:
    """Compute one model's score from its rows, which are in the questions' order."""
    gold, predictions = [row.gold for row in rows], [row.prediction for row in rows]
    accuracy = count_accuracy(gold, predictions)
    return TaskScore(
        accuracy=accuracy.accuracy,
        interval=accuracy.interval,
        macro_f1=accuracy.macro_f1,
        model=rows[0].model,
        task=eval_set.label,
        version=eval_set.task.version,
        data=eval_set.task.data or eval_set.task.name,
        split=eval_set.task.split,
        template=eval_set.template,
        prompt_form=rows[0].prompt_form,
        method=eval_set.method.name,
        method_description=eval_set.method.description,
        dtype=rows[0].dtype,
        engine=rows[0].engine,
        shots=eval_set.examples.shots,
        shot_ids=tuple(example.id for example in eval_set.examples.drawn),
        shots_from=eval_set.examples.file,
        shots_sha256=eval_set.examples.sha256,
        n=len(rows),
        repeated=eval_set.repeated,
        parse_rate=sum(prediction is not None for prediction in predictions) / len(rows),
        truncated=sum(row.truncated for row in rows),
        classes=eval_set.classes,
        confusion=_confusion(gold, predictions, len(eval_set.classes)),
        prompt_sha256=_sha256(row.prompt_sha256 for row in rows),
        data_sha256=eval_set.data_sha256,
        rows=file_name,
        # Fields that only some methods have: rules, ties, probability mass.
        **eval_set.method.summarize(rows),
    )


def _sha256(hashes: Iterable[str]) -> str:
    return hashlib.sha256("".join(f"{digest}\n" for digest in hashes).encode()).hexdigest()


def _confusion(
    gold: Sequence[int], predictions: Sequence[int | None], classes: int
) -> tuple[tuple[int, ...], ...]:
    counts = Counter(zip(gold, predictions, strict=True))
    # The last column counts answers that name no option.
    columns = (*range(classes), None)
    return tuple(tuple(counts[row, column] for column in columns) for row in range(classes))


@dataclass(frozen=True, slots=True, kw_only=True)
class NaiveBayesAnswers:
    """Answers of naive Bayes to an evaluation set, in the questions' order."""

    predictions: tuple[int, ...]
    trained_on: int


def answer_by_bayes(eval_set: EvalSet, training: Sequence[Question]) -> NaiveBayesAnswers | None:
    """Train naive Bayes on the rows that are not evaluated themselves, and answer the questions.

    Returns:
        Its answers; None if the options are not classes, or no training rows are left.
    """
    evaluated = {question.content_sha256 for question in eval_set.questions}
    # By content: a file of questions is its own training split, and would be memorized.
    usable = [q for q in training if q.content_sha256 not in evaluated and q.options == eval_set.classes]
    if not eval_set.classes or not usable:
        return None
    classifier = NaiveBayes.train(usable)
    predictions = tuple(map(classifier.predict, eval_set.questions))
    return NaiveBayesAnswers(predictions=predictions, trained_on=len(usable))


def baselines(eval_set: EvalSet, bayes: NaiveBayesAnswers | None) -> dict[str, Baseline]:
    """Return the baselines without a language model: most common class, best position, naive Bayes."""
    gold = [question.gold for question in eval_set.questions]
    most_common = Counter(gold).most_common(1)[0][1]
    # "position" knows the test's own answers: an upper bound for always choosing the same letter.
    rows = [_baseline(eval_set, "position", most_common)]
    # A majority class exists only if every question has the same options.
    if eval_set.classes:
        rows.insert(0, _baseline(eval_set, "majority", most_common))
    if bayes is not None:
        right = sum(g == p for g, p in zip(gold, bayes.predictions, strict=True))
        rows.append(_baseline(eval_set, BAYES, right, bayes.trained_on))
    return {baseline.name: baseline for baseline in rows}


def _baseline(
    eval_set: EvalSet,
    name: Literal["majority", "position", "naive Bayes"],
    right: int,
    trained_on: int | None = None,
) -> Baseline:
    n = len(eval_set.questions)
    return Baseline(
        task=eval_set.label,
        name=name,
        n=n,
        accuracy=right / n,
        interval=wilson_interval(right, n),
        trained_on=trained_on,
    )


def differences(
    eval_set: EvalSet,
    pairs: Sequence[Against],
    rows: Mapping[str, Sequence[QuestionRow]],
    bayes: NaiveBayesAnswers | None,
) -> list[Comparison]:
    """Compare the models of each pair, and each model with the first's alternatives and naive Bayes.

    Args:
        eval_set: The questions and the method, which names alternatives such as the calibrated rule.
        pairs: Pairs of models; without any, the models are compared with naive Bayes only.
        rows: Model → its rows, in the questions' order.
        bayes: The answers of naive Bayes, if there are any.
    """
    sides: list[tuple[str, Correctness, str, tuple[str, ...]]] = [
        (pair.against, _correct(rows[pair.against]), pair.model, unlike(rows[pair.against], rows[pair.model]))
        for pair in pairs
    ]
    # Without pairs every model is compared with naive Bayes; with pairs only those that are asked about.
    first, compared = next(iter(rows)), dict.fromkeys(pair.model for pair in pairs)
    # A finetune must beat the base at its best, not only by a rule that suits the finetune.
    for name, predictions in eval_set.method.alternatives(rows[first]).items():
        sides += [
            (f"{first} ({name})", _graded(rows[first], predictions), model, unlike(rows[first], rows[model]))
            for model in compared
            if model != first
        ]
    if bayes is not None:
        guesses = _graded(rows[first], bayes.predictions)
        sides += [(BAYES, guesses, model, ()) for model in compared or rows]
    return [
        accuracy_difference(eval_set.label, a, correct_a, b, _correct(rows[b]), unlike=setting_changes)
        for a, correct_a, b, setting_changes in sides
        if len(correct_a) >= 2
    ]


def _correct(rows: Sequence[QuestionRow]) -> Correctness:
    return {row.item(): row.correct for row in rows}


def _graded(rows: Sequence[QuestionRow], predictions: Sequence[int | None]) -> Correctness:
    pairs = zip(rows, predictions, strict=True)
    return {row.item(): prediction == row.gold for row, prediction in pairs}
