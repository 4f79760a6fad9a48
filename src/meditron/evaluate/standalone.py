"""Evaluation without a recipe: one model on one task, or against another model."""

import re
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, TypeVar

from meditron.core.errors import InputError
from meditron.core.machine import resolve_matrix_dtype
from meditron.evaluate import accuracy, fidelity
from meditron.evaluate.answers import answer_questions
from meditron.evaluate.config import EvalOptions
from meditron.evaluate.eval_set import EvalSet, rows_file
from meditron.evaluate.heldout import distinct
from meditron.evaluate.model import EvalModel, LocalModel
from meditron.evaluate.rows import FIDELITY, EvalRow, FidelityRow, QuestionRow
from meditron.evaluate.rows_file import RowsFile, exclusive
from meditron.evaluate.stage import BAYES_ROWS
from meditron.evaluate.trained import refuse_trained_questions, training_data
from meditron.store.files import refuse_overwrite
from meditron.store.manifest import Artifact
from meditron.store.models import resolve_model
from meditron.store.results import EvaluationResult
from meditron.tasks.question import Question
from meditron.tasks.registry import open_task

__all__ = ["evaluate_against", "evaluate_on_task"]

DEFAULTS = EvalOptions()
R = TypeVar("R", bound=EvalRow)


def evaluate_on_task(
    model: str | EvalModel,
    task: str,
    options: EvalOptions = DEFAULTS,
    *,
    template: str | None = None,
    corpus: Path | None = None,
    out: Path | None = None,
    seed: int = 1,
) -> tuple[EvaluationResult, Path]:
    """Score a model on a task, beside the baselines.

    Rows of other models and settings in the same file are kept; rows that are there are not computed again.

    Args:
        model: A MODEL, or a model that is already described, such as one behind an API.
        task: A task's name, or a file of questions.
        options: Settings.
        template: Name of the prompt template; default: the task's own.
        corpus: Folder of a corpus, for tasks that are made from one.
        out: Folder of the rows; default: `evaluations/MODEL`.
        seed: Seed of the examples' draw.

    Returns:
        The results, and the rows' file.

    Raises:
        UsageError: no such task or template; the task needs a corpus, or has too few rows for the shots; the
            rows would overwrite an input; the model's engine lacks the method's capability.
        SourceError: no such model or file.
        InputError: a file is damaged.
        MeditronError: the model, or one that it was trained from, was trained on the questions; a figure is
            not finite.
    """
    opened = open_task(task, corpus=corpus, template=template)
    shots_from = Path(options.shots_from) if options.shots_from else None
    eval_sets = EvalSet.of(opened, options, seed=seed, shots_from=shots_from)
    eval_model = _local(model, resolve_matrix_dtype(options.dtype)) if isinstance(model, str) else model
    name = eval_model.name
    path = (out or _folder(name)) / rows_file(opened)
    # `with` closes the engine, so everything that needs it is read before.
    with eval_model:
        refuse_trained_questions(eval_model, eval_sets)
        # The rows' file is named after the task, so `--out` may point at the question file itself.
        refuse_overwrite([path], [Path(task), *filter(None, [shots_from]), *eval_model.content])
        with exclusive(path), RowsFile(path, QuestionRow) as file:
            answers = [answer_questions(eval_model, eval_set, file) for eval_set in eval_sets]
            _finish(file, [row for rows in answers for row in rows])
        engine, dtype, provenance = eval_model.engine_label, eval_model.dtype, eval_model.provenance
    result = EvaluationResult(
        **_task_figures(name, eval_sets, answers, opened.rows("train", BAYES_ROWS)),
        engines={name: engine},
        identities={name: provenance} if provenance else {},
        ancestry={name: training_data(eval_model)},
        rows=path.name,
        dtype=dtype,
        seed=seed,
        resamples=options.resamples,
    )
    return result, path


def _task_figures(
    name: str,
    eval_sets: Sequence[EvalSet],
    answers: Sequence[Sequence[QuestionRow]],
    training: Sequence[Question],
) -> dict[str, Any]:
    """Return the scores, baselines and differences of one model, as fields of an EvaluationResult."""
    # No pairs: one model is compared with naive Bayes only.
    figures = {
        eval_set.label: accuracy.figures(eval_set, {name: rows}, (), training)
        for eval_set, rows in zip(eval_sets, answers, strict=True)
    }
    return {
        "tasks": {name: {label: each.scores[name] for label, each in figures.items()}},
        "baselines": {label: each.baselines for label, each in figures.items()},
        "differences": [difference for each in figures.values() for difference in each.differences],
    }


def evaluate_against(
    model: str,
    against: str,
    corpus: Path,
    options: EvalOptions = DEFAULTS,
    *,
    out: Path | None = None,
    seed: int = 1,
) -> tuple[EvaluationResult, Path]:
    """Compare a model's predictions of a corpus' held-out text with another model's.

    Args:
        model: A MODEL, such as a quantized file.
        against: The MODEL whose distributions are taken as true.
        corpus: Folder of a corpus.
        options: Settings.
        out: Folder of the rows; default: `evaluations/MODEL`.
        seed: Seed of the bootstrap.

    Returns:
        The results, and the rows' file.

    Raises:
        UsageError: the models do not read the same tokens.
        SourceError: no such model or corpus.
        InputError: the corpus has nothing held out, or a file is damaged.
        MeditronError: a figure is not finite.
    """
    texts = distinct(corpus, options.fidelity_documents)
    # Before the models are loaded: an interval over documents needs two of a source.
    if not any(len(chosen) >= 2 for chosen in texts.values()):
        raise InputError(corpus, "fewer than two held-out documents of any source", hint="is it a corpus?")
    path = (out or _folder(model)) / FIDELITY
    with ExitStack() as stack:
        sides = [stack.enter_context(_local(spec, fidelity.DTYPE)) for spec in (model, against)]
        refuse_overwrite([path], [corpus, *(file for side in sides for file in side.content)])
        # The default folder is shared by all evaluations of a model, so two may run at once.
        stack.enter_context(exclusive(path))
        file = stack.enter_context(RowsFile(path, FidelityRow))
        rows = fidelity.compare_distributions(sides[0], sides[1], texts, options.max_tokens, file)
        _finish(file, rows)
        engines = {side.name: side.engine_label for side in sides}
        ancestry = {side.name: training_data(side) for side in sides}
    result = EvaluationResult(
        fidelity=fidelity.summarize(rows, texts, seed=seed, resamples=options.resamples),
        engines=engines,
        ancestry=ancestry,
        rows=FIDELITY,
        dtype=fidelity.DTYPE,
        seed=seed,
        resamples=options.resamples,
    )
    return result, path


def _finish(file: RowsFile[R], rows: Sequence[R]) -> None:
    """Write these rows with those of other models and settings."""
    file.finish([*file.rows, *rows])


def _folder(model: str) -> Path:
    # A MODEL may be a path or a URL: only characters that are safe in a file name stay.
    return Path("evaluations") / (re.sub(r"[^A-Za-z0-9._-]+", "-", model).strip("-.") or "model")


def _local(spec: str, dtype: str) -> LocalModel:
    return LocalModel(spec, Artifact(spec, resolve_model(spec).path, ""), dtype)
