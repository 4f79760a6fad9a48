"""Computation of a task's scores, baselines and paired differences from the rows of its answers."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from meditron.core.calibration import calibrate
from meditron.core.statistics import clustered_mean, wilson_interval
from meditron.evaluate.bayes import NaiveBayes
from meditron.evaluate.compare import (
    Correctness,
    accuracy_difference,
    count_truncated,
    setting_differences,
)
from meditron.evaluate.config import ModelPair
from meditron.evaluate.contamination import QuestionGroups, score_groups
from meditron.evaluate.eval_set import EvalSet
from meditron.evaluate.methods.base import count_accuracy
from meditron.evaluate.rows import QuestionRow
from meditron.store.identity import sha256_of_hashes
from meditron.store.results import (
    Baseline,
    Calibration,
    Comparison,
    ErrataScore,
    ReliabilityBin,
    SubsetScore,
    TaskScore,
)
from meditron.tasks.errata import Erratum, find_errata
from meditron.tasks.question import Question

__all__ = [
    "BAYES",
    "EvalSetFigures",
    "NaiveBayesAnswers",
    "answer_by_bayes",
    "compute_baselines",
    "compute_differences",
    "compute_figures",
    "constant_baselines",
    "row_figures",
    "score_task",
]

BAYES: Literal["naive Bayes"] = "naive Bayes"


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalSetFigures:
    """The scores, baselines and differences of one evaluation set."""

    scores: Mapping[str, TaskScore]
    """Model → score."""
    baselines: dict[str, Baseline]
    """Name of the baseline → its accuracy."""
    differences: list[Comparison]


def compute_figures(
    eval_set: EvalSet,
    rows: Mapping[str, Sequence[QuestionRow]],
    pairs: Sequence[ModelPair],
    training: Sequence[Question],
    groups: QuestionGroups | None = None,
    *,
    seed: int = 1,
    resamples: int = 10_000,
) -> EvalSetFigures:
    """Compute the scores, baselines and differences of an evaluation set.

    Args:
        eval_set: The questions and the method.
        rows: Model → its rows, in the questions' order.
        pairs: Pairs of models to compare.
        training: Questions to train naive Bayes on.
        groups: Groups of the questions by whether the training corpus contained them; default: none.
        seed: Seed of the bootstrap.
        resamples: Number of bootstrap resamples.
    """
    bayes = answer_by_bayes(eval_set, training)
    return EvalSetFigures(
        scores={
            name: score_task(eval_set, model_rows, eval_set.rows_file, groups, seed=seed, resamples=resamples)
            for name, model_rows in rows.items()
        },
        baselines=compute_baselines(eval_set, bayes),
        differences=compute_differences(eval_set, pairs, rows, bayes, seed=seed, resamples=resamples),
    )


def score_task(
    eval_set: EvalSet,
    rows: Sequence[QuestionRow],
    file_name: str,
    groups: QuestionGroups | None = None,
    *,
    seed: int = 1,
    resamples: int = 10_000,
) -> TaskScore:
    """Compute one model's score.

    Args:
        eval_set: The questions and the method.
        rows: The model's rows, in the questions' order.
        file_name: Name of the rows file, recorded in the score.
        groups: Groups of the questions by whether the training corpus contained them; default: none.
        seed: Seed of the bootstrap.
        resamples: Number of bootstrap resamples.
    """
    return TaskScore(
        **row_figures(rows, eval_set.classes, seed=seed, resamples=resamples),
        task=eval_set.label,
        version=eval_set.task.version,
        data=eval_set.task.data_file or eval_set.task.name,
        split=eval_set.task.test_split_name,
        template=eval_set.template_id,
        template_sha256=eval_set.task.template.sha256,
        example_prompt=eval_set.template.example(),
        system_prompt=eval_set.stored_prompt.id if eval_set.stored_prompt else None,
        method_description=eval_set.method.description,
        shots=eval_set.examples.shots,
        shot_ids=tuple(example.id for example in eval_set.examples.drawn_questions),
        shots_from=eval_set.examples.file_name,
        shots_sha256=eval_set.examples.file_sha256,
        repeated=eval_set.repeated_questions,
        data_sha256=eval_set.data_sha256,
        rows=file_name,
        contamination=score_groups(rows, groups or {}),
        errata=_score_without_errata(rows, find_errata(eval_set.questions)),
        # Fields of this method only, such as ties and probability mass.
        **eval_set.method.score_fields(rows),
    )


def row_figures(
    rows: Sequence[QuestionRow], classes: tuple[str, ...], *, seed: int, resamples: int
) -> dict[str, Any]:
    """Return the fields of `TaskScore` that follow from the rows alone, without those of one method.

    Args:
        rows: One model's rows of one evaluation.
        classes: The options, if they are the same for every question; else empty.
        seed: Seed of the bootstrap.
        resamples: Number of bootstrap resamples.
    """
    first = rows[0]
    gold, predictions = [row.gold for row in rows], [row.prediction for row in rows]
    accuracy = count_accuracy(gold, predictions)
    prompts = [row.prompt_sha256 for row in rows if row.prompt_sha256]
    return {
        **accuracy.model_dump(),
        "model": first.model,
        "prompt_form": first.prompt_form,
        "method": first.method,
        "dtype": first.dtype,
        "engine": first.engine,
        "n": len(rows),
        "parse_rate": sum(prediction is not None for prediction in predictions) / len(rows),
        "truncated": count_truncated(rows),
        "classes": classes,
        "confusion": _confusion_matrix(gold, predictions, len(classes)),
        "prompt_sha256": sha256_of_hashes(prompts) if len(prompts) == len(rows) else None,
        **_cluster_fields(rows, seed, resamples),
        "calibration": _calibration(rows, seed, resamples),
    }


def _score_without_errata(rows: Sequence[QuestionRow], errata: Mapping[str, Erratum]) -> ErrataScore | None:
    if not errata:
        return None
    kept = [row.correct for row in rows if row.id not in errata]
    right = sum(kept)
    without = (
        SubsetScore(n=len(kept), accuracy=right / len(kept), interval=wilson_interval(right, len(kept)))
        if kept
        else None
    )
    return ErrataScore(
        sources=tuple(sorted({erratum.source for erratum in errata.values()})),
        questions=dict(sorted(Counter(erratum.kind for erratum in errata.values()).items())),
        without=without,
    )


def _cluster_fields(rows: Sequence[QuestionRow], seed: int, resamples: int) -> dict[str, Any]:
    clusters = [row.cluster for row in rows]
    if not all(clusters):
        return {}
    right = [float(row.correct) for row in rows]
    interval = clustered_mean(right, clusters, seed=seed, resamples=resamples, bounds=(0, 1))
    return {"clusters": len({*clusters}), "clustered_interval": interval}


def _calibration(rows: Sequence[QuestionRow], seed: int, resamples: int) -> Calibration | None:
    confidences = [row.confidence for row in rows]
    known = [confidence for confidence in confidences if confidence is not None]
    if len(known) < len(rows):
        return None
    result = calibrate(known, [row.correct for row in rows], seed=seed, resamples=resamples)
    bins = [ReliabilityBin(**each._asdict()) for each in result.bins]
    return Calibration(
        error=result.error,
        error_interval=result.error_interval,
        overconfidence=result.overconfidence,
        overconfidence_interval=result.overconfidence_interval,
        bins=tuple(bins),
    )


def _confusion_matrix(
    gold: Sequence[int], predictions: Sequence[int | None], classes: int
) -> tuple[tuple[int, ...], ...]:
    counts = Counter(zip(gold, predictions, strict=True))
    # The last column, None, counts answers that name no option.
    columns = (*range(classes), None)
    return tuple(tuple(counts[row, column] for column in columns) for row in range(classes))


@dataclass(frozen=True, slots=True, kw_only=True)
class NaiveBayesAnswers:
    """Answers of naive Bayes to an evaluation set."""

    predictions: tuple[int, ...]
    """Index of the chosen option for each question, in the questions' order."""
    trained_on: int
    """Number of questions that it was trained on."""


def answer_by_bayes(eval_set: EvalSet, training: Sequence[Question]) -> NaiveBayesAnswers | None:
    """Train naive Bayes on the questions that are not evaluated, and let it answer the evaluated ones.

    Returns:
        Its answers. None if the questions have different options, or no training questions are left.
    """
    evaluated = {question.content_sha256 for question in eval_set.questions}
    # Compared by content: most question files have one split, so naive Bayes would memorize the answers.
    usable = [q for q in training if q.content_sha256 not in evaluated and q.options == eval_set.classes]
    if not eval_set.classes or not usable:
        return None
    classifier = NaiveBayes.train(usable)
    predictions = tuple(map(classifier.predict, eval_set.questions))
    return NaiveBayesAnswers(predictions=predictions, trained_on=len(usable))


def compute_baselines(eval_set: EvalSet, bayes: NaiveBayesAnswers | None) -> dict[str, Baseline]:
    """Compute the baselines without a language model: majority class, best position, naive Bayes."""
    gold = [question.gold for question in eval_set.questions]
    baselines = constant_baselines(eval_set.label, gold, eval_set.classes)
    if bayes is not None:
        right = sum(g == p for g, p in zip(gold, bayes.predictions, strict=True))
        baselines[BAYES] = _baseline(eval_set.label, BAYES, right, len(gold), bayes.trained_on)
    return baselines


def constant_baselines(task: str, gold: Sequence[int], classes: tuple[str, ...]) -> dict[str, Baseline]:
    """Compute the baselines that always give the same answer.

    Args:
        task: Label of the task.
        gold: The gold options.
        classes: The options, if they are the same for every question; else empty.
    """
    most_common = Counter(gold).most_common(1)[0][1]
    # "position" uses the test's gold answers: it is the best accuracy of always choosing the same letter.
    # Only questions with the same options have a majority class.
    position = _baseline(task, "position", most_common, len(gold))
    majority = {"majority": _baseline(task, "majority", most_common, len(gold))} if classes else {}
    return {**majority, "position": position}


def _baseline(
    task: str,
    name: Literal["majority", "position", "naive Bayes"],
    right: int,
    n: int,
    trained_on: int | None = None,
) -> Baseline:
    return Baseline(
        task=task,
        name=name,
        n=n,
        accuracy=right / n,
        interval=wilson_interval(right, n),
        trained_on=trained_on,
    )


def compute_differences(
    eval_set: EvalSet,
    pairs: Sequence[ModelPair],
    rows: Mapping[str, Sequence[QuestionRow]],
    bayes: NaiveBayesAnswers | None,
    *,
    seed: int = 1,
    resamples: int = 10_000,
) -> list[Comparison]:
    """Compute the paired accuracy differences.

    The models of each pair are compared with each other. Every model in a pair is also compared with naive
    Bayes, and with the alternative predictions of the first model, such as those by the calibrated rule.

    Args:
        eval_set: The questions and the method, which decides the alternative predictions.
        pairs: Pairs of models. If there are none, every model is compared with naive Bayes only.
        rows: Model → its rows, in the questions' order.
        bayes: The answers of naive Bayes; None if there are none.
        seed: Seed of the bootstrap over clusters.
        resamples: Number of bootstrap resamples.
    """
    return [
        accuracy_difference(
            eval_set.label,
            a,
            correct_a,
            b,
            _correctness(rows[b]),
            unlike=setting_changes,
            clusters={row.item_key(): row.cluster for row in rows[b]},
            seed=seed,
            resamples=resamples,
        )
        for a, correct_a, b, setting_changes in _compared_sides(eval_set, pairs, rows, bayes)
        if len(correct_a) >= 2
    ]


def _compared_sides(
    eval_set: EvalSet,
    pairs: Sequence[ModelPair],
    rows: Mapping[str, Sequence[QuestionRow]],
    bayes: NaiveBayesAnswers | None,
) -> Iterator[tuple[str, Correctness, str, tuple[str, ...]]]:
    """Yield name and correctness of the first side, the second model, and the settings that differ."""
    for pair in pairs:
        against = rows[pair.against]
        changes = setting_differences(against, rows[pair.model])
        yield pair.against, _correctness(against), pair.model, changes
    first, compared = next(iter(rows)), dict.fromkeys(pair.model for pair in pairs)
    # A finetuned model should also beat the base model when the base is scored by the rule that suits it
    # best.
    for name, predictions in eval_set.method.alternative_predictions(rows[first]).items():
        correct = _grade_predictions(rows[first], predictions)
        for model in compared:
            if model != first:
                yield f"{first} ({name})", correct, model, setting_differences(rows[first], rows[model])
    if bayes is not None:
        guesses = _grade_predictions(rows[first], bayes.predictions)
        for model in compared or rows:
            yield BAYES, guesses, model, ()


def _correctness(rows: Sequence[QuestionRow]) -> Correctness:
    return {row.item_key(): row.correct for row in rows}


def _grade_predictions(rows: Sequence[QuestionRow], predictions: Sequence[int | None]) -> Correctness:
    pairs = zip(rows, predictions, strict=True)
    return {row.item_key(): prediction == row.gold for row, prediction in pairs}
