"""From a task's rows to scores with intervals, the baselines beside them, and the paired differences."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from meditron.core.statistics import macro_f1, wilson
from meditron.evaluate.bayes import NaiveBayes
from meditron.evaluate.compare import Right, accuracy_difference, unlike
from meditron.evaluate.config import Against
from meditron.evaluate.eval_set import EvalSet
from meditron.evaluate.rows import QuestionRow
from meditron.store.results import RULES, Accuracy, Baseline, Comparison, TaskScore
from meditron.tasks.question import Question

__all__ = ["BAYES", "Reference", "baselines", "bayes", "differences", "score"]

BAYES: Literal["naive Bayes"] = "naive Bayes"


def score(exam: EvalSet, rows: Sequence[QuestionRow], file_name: str) -> TaskScore:
    """One model's score, from its rows in the questions' order."""
    gold, predicted = [row.gold for row in rows], [row.prediction for row in rows]
    asked = _accuracy(gold, predicted)
    by_options = exam.mode == "options"
    return TaskScore(
        accuracy=asked.accuracy,
        interval=asked.interval,
        macro_f1=asked.macro_f1,
        model=rows[0].model,
        task=exam.label,
        version=exam.task.version,
        data=exam.task.data or exam.task.name,
        split=exam.task.split,
        template=exam.template,
        prompt_form=rows[0].prompt_form,
        method=exam.method,
        dtype=rows[0].dtype,
        engine=rows[0].engine,
        shots=exam.shots,
        shot_ids=tuple(shot.id for shot in exam.drawn),
        n=len(rows),
        repeated=exam.repeated,
        ties=sum(_tied(row) for row in rows),
        rule=exam.rule if by_options else None,
        rules={r: _accuracy(gold, [row.by(r) for row in rows]) for r in RULES} if by_options else {},
        parse_rate=sum(p is not None for p in predicted) / len(rows),
        option_probability_mass=min(1.0, sum(row.option_probability_mass for row in rows) / len(rows)),
        truncated=sum(row.truncated for row in rows),
        classes=exam.classes,
        confusion=_confusion(gold, predicted, len(exam.classes)),
        prompt_sha256=_sha256(row.prompt_sha256 for row in rows),
        data_sha256=exam.data_sha256,
        rows=file_name,
    )


def _tied(row: QuestionRow) -> bool:
    """Tell if the answer was one of several options with the best score."""
    scores = row.scores[row.rule] if row.rule else ()
    return bool(scores) and scores.count(max(scores)) > 1


def _sha256(hashes: Iterable[str]) -> str:
    return hashlib.sha256("".join(f"{each}\n" for each in hashes).encode()).hexdigest()


def _accuracy(gold: Sequence[int], predicted: Sequence[int | None]) -> Accuracy:
    right = sum(g == p for g, p in zip(gold, predicted, strict=True))
    return Accuracy(
        accuracy=right / len(gold),
        interval=wilson(right, len(gold)),
        macro_f1=macro_f1(gold, predicted),
    )


def _confusion(
    gold: Sequence[int], predicted: Sequence[int | None], classes: int
) -> tuple[tuple[int, ...], ...]:
    counts = Counter(zip(gold, predicted, strict=True))
    answers = (*range(classes), None)
    return tuple(tuple(counts[of, answer] for answer in answers) for of in range(classes))


@dataclass(frozen=True, slots=True)
class Reference:
    """Naive Bayes' answers to an exam, in the questions' order."""

    predictions: tuple[int, ...]
    trained_on: int


def bayes(exam: EvalSet, training: Sequence[Question]) -> Reference | None:
    """Naive Bayes, trained on those of the rows that are not themselves asked.

    None where the options are no classes, or nothing is left to learn from.
    """
    asked = {question.content_sha256 for question in exam.questions}
    apart = [q for q in training if q.content_sha256 not in asked and q.options == exam.classes]
    if not exam.classes or not apart:
        return None
    classifier = NaiveBayes.train(apart)
    return Reference(tuple(map(classifier.predict, exam.questions)), len(apart))


def baselines(exam: EvalSet, reference: Reference | None) -> dict[str, Baseline]:
    """What needs no language model: the commonest class, the best position, and naive Bayes."""
    gold = [question.gold for question in exam.questions]
    commonest = Counter(gold).most_common(1)[0][1]
    found = [_baseline(exam, "position", commonest)]
    if exam.classes:
        found.insert(0, _baseline(exam, "majority", commonest))
    if reference is not None:
        right = sum(g == p for g, p in zip(gold, reference.predictions, strict=True))
        found.append(_baseline(exam, BAYES, right, reference.trained_on))
    return {baseline.name: baseline for baseline in found}


def _baseline(
    exam: EvalSet,
    name: Literal["majority", "position", "naive Bayes"],
    right: int,
    trained_on: int | None = None,
) -> Baseline:
    n = len(exam.questions)
    return Baseline(
        task=exam.label,
        name=name,
        n=n,
        accuracy=right / n,
        interval=wilson(right, n),
        trained_on=trained_on,
    )


def differences(
    exam: EvalSet,
    pairs: Sequence[Against],
    rows: Mapping[str, Sequence[QuestionRow]],
    reference: Reference | None,
) -> list[Comparison]:
    """Each pair by the exam's rule; its models against the first's calibrated rule and against naive Bayes.

    Without a pair, the models against naive Bayes alone.
    """
    sides: list[tuple[str, Right, str, tuple[str, ...]]] = [
        (pair.against, _right(rows[pair.against]), pair.model, unlike(rows[pair.against], rows[pair.model]))
        for pair in pairs
    ]
    first, compared = next(iter(rows)), dict.fromkeys(pair.model for pair in pairs)
    if exam.mode == "options" and exam.rule != "calibrated":
        calibrated = {row.item(): row.by("calibrated") == row.gold for row in rows[first]}
        sides += [
            (f"{first} (calibrated)", calibrated, model, unlike(rows[first], rows[model]))
            for model in compared
            if model != first
        ]
    if reference is not None:
        guessed = {
            row.item(): prediction == row.gold
            for row, prediction in zip(rows[first], reference.predictions, strict=True)
        }
        sides += [(BAYES, guessed, model, ()) for model in compared or rows]
    return [
        accuracy_difference(exam.label, a, of_a, b, _right(rows[b]), unlike=differing)
        for a, of_a, b, differing in sides
        if len(of_a) >= 2
    ]


def _right(rows: Sequence[QuestionRow]) -> Right:
    return {row.item(): row.correct for row in rows}
