"""One model on one task, or against another model, without a recipe."""

import re
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from meditron.core.errors import InputError
from meditron.evaluate import accuracy, fidelity
from meditron.evaluate.answers import answer
from meditron.evaluate.eval_set import EvalSet, rows_file
from meditron.evaluate.heldout import distinct
from meditron.evaluate.model import EvalModel
from meditron.evaluate.rows import FIDELITY, FidelityRow, QuestionRow, R, RowsFile, exclusive
from meditron.evaluate.stage import BAYES_ROWS, warn_of_repeated
from meditron.evaluate.trained import refuse_trained_questions, training_data
from meditron.store.artifact import Artifact
from meditron.store.files import refuse_overwrite
from meditron.store.models import resolve
from meditron.store.results import Baseline, Comparison, EvaluationResult, Mode, PromptForm, Rule, TaskScore
from meditron.tasks.registry import open_task

__all__ = ["against_model", "on_task"]

_RESAMPLES = 10_000


def on_task(
    model: str,
    task: str,
    *,
    mode: Mode = "options",
    rule: Rule = "sum",
    prompt_form: PromptForm = "trained",
    shots: int = 0,
    template: str | None = None,
    questions: int = 1000,
    corpus: Path | None = None,
    out: Path | None = None,
    dtype: str = "float32",
    seed: int = 1,
) -> tuple[EvaluationResult, Path]:
    """A MODEL's score on a task (a name, or a file of questions), beside the baselines; and its rows' file.

    The rows stand in `out` (by default `evaluations/MODEL`), where rows of other models and settings are left
    in place; asked again, what is there is not computed again.

    Raises:
        UsageError: no such task or template; the task needs a corpus, or has too few rows for the shots; the
            rows would overwrite an input.
        SourceError: no such model or file.
        InputError: a file is damaged.
        MeditronError: the model, or one that it was trained from, was trained on the questions; a figure is
            not a number.
    """
    opened = open_task(task, corpus=corpus, template=template)
    path = (out or _folder(model)) / rows_file(opened)
    exams = EvalSet.of(
        opened, questions=questions, mode=mode, rule=rule, shots=shots, seed=seed, form=prompt_form
    )
    warn_of_repeated(exams[0])
    scores: dict[str, TaskScore] = {}
    baselines: dict[str, dict[str, Baseline]] = {}
    differences: list[Comparison] = []
    with EvalModel(model, _artifact(model), dtype) as candidate:
        refuse_trained_questions(candidate, exams)
        refuse_overwrite([path], [Path(task), *candidate.content])
        with exclusive(path), RowsFile(path, QuestionRow) as file:
            answers = [answer(candidate, exam, file) for exam in exams]
            _finish(file, [row for rows in answers for row in rows])
    for exam, rows in zip(exams, answers, strict=True):
        reference = accuracy.bayes(exam, opened.rows("train", BAYES_ROWS))
        scores[exam.label] = accuracy.score(exam, rows, path.name)
        baselines[exam.label] = accuracy.baselines(exam, reference)
        differences += accuracy.differences(exam, (), {model: rows}, reference)
    result = EvaluationResult(
        tasks={model: scores},
        baselines=baselines,
        differences=differences,
        engines={model: candidate.how},
        ancestry={model: training_data(candidate)},
        rows=path.name,
        dtype=dtype,
        seed=seed,
        resamples=_RESAMPLES,
    )
    return result, path


def against_model(
    model: str,
    against: str,
    corpus: Path,
    *,
    documents: int = 32,
    max_tokens: int = 2048,
    out: Path | None = None,
    seed: int = 1,
) -> tuple[EvaluationResult, Path]:
    """How far a MODEL's predictions of a corpus' held-out text lie from another's; and its rows' file.

    Raises:
        UsageError: the models do not read the same tokens.
        SourceError: no such model or corpus.
        InputError: the corpus has nothing held out, or a file is damaged.
        MeditronError: a figure is not a number.
    """
    texts = distinct(corpus, documents)
    if not any(len(chosen) >= 2 for chosen in texts.values()):
        raise InputError(corpus, "fewer than two held-out documents of any source", hint="is it a corpus?")
    path = (out or _folder(model)) / FIDELITY
    with ExitStack() as stack:
        ours, theirs = both = [
            stack.enter_context(EvalModel(spec, _artifact(spec), fidelity.DTYPE)) for spec in (model, against)
        ]
        refuse_overwrite([path], [corpus, *ours.content, *theirs.content])
        stack.enter_context(exclusive(path))
        file = stack.enter_context(RowsFile(path, FidelityRow))
        rows = fidelity.hold_against(ours, theirs, texts, max_tokens, file)
        _finish(file, rows)
        engines = {candidate.name: candidate.how for candidate in both}
        ancestry = {candidate.name: training_data(candidate) for candidate in both}
    result = EvaluationResult(
        fidelity=fidelity.summarize(rows, texts, seed=seed, resamples=_RESAMPLES),
        engines=engines,
        ancestry=ancestry,
        rows=FIDELITY,
        dtype=fidelity.DTYPE,
        seed=seed,
        resamples=_RESAMPLES,
    )
    return result, path


def _finish(file: RowsFile[R], rows: Sequence[R]) -> None:
    """Leave these rows and those of other models and settings."""
    file.finish([*file.rows, *rows])


def _folder(model: str) -> Path:
    return Path("evaluations") / (re.sub(r"[^A-Za-z0-9._-]+", "-", model).strip("-.") or "model")


def _artifact(model: str) -> Artifact:
    return Artifact(model, resolve(model).path, "")
