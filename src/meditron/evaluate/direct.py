"""One model on one task, or against another model, without a recipe."""

import re
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from meditron.evaluate import accuracy, fidelity
from meditron.evaluate.answers import answer
from meditron.evaluate.candidate import Candidate
from meditron.evaluate.exam import Exam
from meditron.evaluate.rows import FIDELITY, FidelityRow, QuestionRow, R, RowsFile
from meditron.evaluate.stage import BAYES_ROWS, rows_file
from meditron.ground.errors import InputError
from meditron.store.artifact import Artifact
from meditron.store.corpus import held_out
from meditron.store.files import digest_of
from meditron.store.manifest import fingerprint, read_manifest
from meditron.store.models import resolve
from meditron.store.results import EvaluationResult, Mode, Rule
from meditron.tasks.registry import open_task

__all__ = ["against_model", "on_task"]

_RESAMPLES = 10_000


def on_task(
    model: str,
    task: str,
    *,
    mode: Mode = "options",
    rule: Rule = "sum",
    shots: int = 0,
    layout: str | None = None,
    questions: int = 1000,
    corpus: Path | None = None,
    out: Path | None = None,
    dtype: str = "float32",
    seed: int = 1,
) -> tuple[EvaluationResult, Path]:
    """A MODEL's score on a task (a name, or a file of questions), beside the baselines; and its rows' file.

    The rows stand in `out` (by default `evaluations/MODEL`), where another model's rows of the task are left
    in place; asked again, what is there is not computed again.

    Raises:
        UsageError: no such task or layout; the task needs a corpus, or has too few rows for the shots.
        SourceError: no such model or file.
        InputError: a file is damaged.
        MeditronError: a figure is not a number.
    """
    opened = open_task(task, corpus=corpus, layout=layout)
    exam = Exam.of(opened, questions=questions, mode=mode, rule=rule, shots=shots, seed=seed)
    name = rows_file(opened)
    with (
        RowsFile((out or _folder(model)) / name, QuestionRow) as file,
        Candidate(model, _artifact(model), dtype) as candidate,
    ):
        rows = answer(candidate, exam, file)
        _finish(file, model, rows)
    reference = accuracy.bayes(exam, opened.rows("train", BAYES_ROWS))
    differences = accuracy.differences(exam, (), {model: rows}, reference)
    result = EvaluationResult(
        tasks={model: {opened.name: accuracy.score(exam, rows, name)}},
        baselines={opened.name: accuracy.baselines(exam, reference)},
        differences=differences,
        engines={model: rows[0].engine},
        rows=name,
        dtype=dtype,
        seed=seed,
        resamples=_RESAMPLES,
    )
    return result, file.path


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
    texts = held_out(corpus, documents)
    if not any(len(chosen) >= 2 for chosen in texts.values()):
        raise InputError(corpus, "fewer than two held-out documents of any source", hint="is it a corpus?")
    with ExitStack() as stack:
        file = stack.enter_context(RowsFile((out or _folder(model)) / FIDELITY, FidelityRow))
        ours, theirs = (
            stack.enter_context(Candidate(spec, _artifact(spec), fidelity.DTYPE)) for spec in (model, against)
        )
        rows = fidelity.hold_against(ours, theirs, texts, max_tokens, file)
        engines = {each.name: each.how for each in (ours, theirs)}
        _finish(file, model, rows)
    result = EvaluationResult(
        fidelity=fidelity.summarize(rows, texts, seed=seed, resamples=_RESAMPLES),
        engines=engines,
        rows=FIDELITY,
        dtype=fidelity.DTYPE,
        seed=seed,
        resamples=_RESAMPLES,
    )
    return result, file.path


def _finish(file: RowsFile[R], model: str, rows: Sequence[R]) -> None:
    """Leave these rows and those of other models."""
    file.finish([*(row for row in file.rows if row.model != model), *rows])


def _folder(model: str) -> Path:
    return Path("evaluations") / (re.sub(r"[^A-Za-z0-9._-]+", "-", model).strip("-.") or "model")


def _artifact(model: str) -> Artifact:
    files = resolve(model)
    if files.kind == "init":
        return Artifact(model, files.path, fingerprint({"model": model}))
    manifest = read_manifest(files.path) if files.path.is_dir() else None
    return Artifact(model, files.path, manifest.digest if manifest else digest_of(files.path), manifest)
