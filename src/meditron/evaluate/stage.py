"""The evaluate stage: held-out text, tasks and fidelity of every model, with intervals and differences."""

import re
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meditron.evaluate import accuracy, fidelity, perplexity
from meditron.evaluate.answers import answer
from meditron.evaluate.candidate import Candidate
from meditron.evaluate.config import CORPUS, EvaluateConfig, is_file
from meditron.evaluate.exam import Exam
from meditron.evaluate.heldout import choose, refuse_overlap
from meditron.evaluate.report import write_report
from meditron.evaluate.rows import FIDELITY, PERPLEXITY, DocumentRow, FidelityRow, QuestionRow, Row, RowsFile
from meditron.evaluate.scoring import score
from meditron.ground.errors import MeditronError, UsageError
from meditron.ground.machine import matrix_dtype
from meditron.store.artifact import Artifact
from meditron.store.corpus import Text, held_out
from meditron.store.jsonl import read_jsonl
from meditron.store.results import Baseline, EvaluationResult, Fidelity, TaskScore, write_results
from meditron.tasks.question import Question
from meditron.tasks.registry import open_task
from meditron.tasks.task import Task

__all__ = ["BAYES_ROWS", "rows_file", "run", "training"]

_TRAINED_ON = "rows.jsonl.zst"  # a finetune's training rows
BAYES_ROWS = 2_000
"""Training rows of naive Bayes where nothing else says how many."""


def run(config: EvaluateConfig, inputs: Mapping[str, Artifact], out: Path) -> dict[str, Any]:
    """Measure every model; called again after a kill, go on where it stopped.

    Writes `perplexity.jsonl` (a row a model and document), `<task>.jsonl` (a row a model and question),
    `fidelity.jsonl` (a row a pair of models and document), `results.json` and `report.html`.

    Raises:
        MeditronError: a held-out document stands in the corpus' training files, a model was finetuned on the
            questions it is asked, or a figure is not a number.
        InputError: the corpus has nothing held out, or its files, a model's or the rows are damaged.
        UsageError: a task that is not known, or two that would write one file.
    """
    corpus = inputs[CORPUS].path
    exams = _exams(config, inputs)
    _refuse_trained(config, inputs, exams)
    documents = choose(corpus, config.documents)
    trained = refuse_overlap(corpus, documents)
    measured = _measure(config, inputs, documents, exams, out)
    result = _result(config, inputs, documents, exams, measured)
    write_results(out, result)
    write_report(out / "report.html", result)
    overlap = {"overlap": 0, "training_documents_compared": trained}
    return result.model_dump(mode="json") | overlap


def _exams(config: EvaluateConfig, inputs: Mapping[str, Artifact]) -> dict[str, Exam]:
    """File of rows → exam."""
    exams: dict[str, Exam] = {}
    for spec in config.tasks:
        place = str(inputs[spec].path) if is_file(spec) else spec
        task = open_task(place, corpus=inputs[CORPUS].path)
        file = rows_file(task)
        if file in exams:
            raise UsageError(f"the tasks {exams[file].task.name} and {task.name} would both write {file}")
        exams[file] = Exam.of(
            task,
            questions=config.questions,
            mode=config.mode,
            rule=config.rule,
            shots=config.shots,
            seed=config.seed or 0,
        )
    return exams


def _refuse_trained(
    config: EvaluateConfig, inputs: Mapping[str, Artifact], exams: Mapping[str, Exam]
) -> None:
    """MeditronError where an evaluated finetune was trained on questions that are now asked."""
    for spec, exam in zip(config.tasks, exams.values(), strict=True):
        asked = {question.id for question in exam.questions}
        for name, artifact in inputs.items():
            if met := len(asked & _trained_on(artifact, spec)):
                raise MeditronError(
                    f"{name} was trained on {met} of the {len(asked)} questions of {exam.task.name}",
                    hint="a score on them would mean nothing: keep test questions in a file of their own",
                )


def _trained_on(artifact: Artifact, spec: str) -> set[str]:
    """Ids of the task's questions that a finetune was trained on; none for anything else."""
    used = artifact.path / _TRAINED_ON
    if artifact.manifest is None or artifact.manifest.config.get("task") != spec or not used.is_file():
        return set()
    return {str(row.get("id")) for row in read_jsonl(used) if row.get("split") == "train"}


def rows_file(task: Task) -> str:
    """The name of the file of a task's rows."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", task.name).strip("-.") or "task"
    return f"task-{name}.jsonl" if f"{name}.jsonl" in (PERPLEXITY, FIDELITY) else f"{name}.jsonl"


@dataclass(frozen=True, slots=True)
class Measured:
    """Every row of an evaluation."""

    texts: Mapping[str, list[DocumentRow]]
    """Model → rows of documents."""
    answers: Mapping[str, Mapping[str, list[QuestionRow]]]
    """File of rows → model → rows of questions."""
    held: list[FidelityRow]
    fidelity: list[Fidelity]

    def engines(self) -> dict[str, str]:
        """Model → what ran it."""
        rows: list[Row] = [*(row for own in self.texts.values() for row in own), *self.held]
        return {row.model: row.engine for row in rows}


def _measure(
    config: EvaluateConfig,
    inputs: Mapping[str, Artifact],
    documents: Mapping[str, Sequence[Text]],
    exams: Mapping[str, Exam],
    out: Path,
) -> Measured:
    """Every model, one after another, on everything that is asked of it."""
    texts: dict[str, list[DocumentRow]] = {}
    answers: dict[str, dict[str, list[QuestionRow]]] = {file: {} for file in exams}
    with ExitStack() as files:
        of_text = files.enter_context(RowsFile(out / PERPLEXITY, DocumentRow))
        of_tasks = {file: files.enter_context(RowsFile(out / file, QuestionRow)) for file in exams}
        for name in config.models:
            with Candidate(name, inputs[name], matrix_dtype(config.dtype)) as candidate:
                texts[name] = score(candidate, documents, config, of_text)
                for file, exam in exams.items():
                    answers[file][name] = answer(candidate, exam, of_tasks[file])
        of_text.finish(row for rows in texts.values() for row in rows)
        for file, of_task in of_tasks.items():
            of_task.finish(row for rows in answers[file].values() for row in rows)
    return Measured(texts, answers, *_held_against(config, inputs, out))


def _held_against(
    config: EvaluateConfig, inputs: Mapping[str, Artifact], out: Path
) -> tuple[list[FidelityRow], list[Fidelity]]:
    """The rows and the figures of every pair of models that is asked for."""
    if not config.fidelity:
        return [], []
    documents = held_out(inputs[CORPUS].path, config.fidelity_documents)
    rows: list[FidelityRow] = []
    found: list[Fidelity] = []
    with RowsFile(out / FIDELITY, FidelityRow) as file:
        for pair in config.fidelity:
            with ExitStack() as both:
                model, against = (
                    both.enter_context(Candidate(name, inputs[name], fidelity.DTYPE))
                    for name in (pair.model, pair.against)
                )
                own = fidelity.hold_against(model, against, documents, config.max_tokens, file)
            rows += own
            found += fidelity.summarize(own, documents, seed=config.seed or 0, resamples=config.resamples)
        file.finish(rows)
    return rows, found


def _result(
    config: EvaluateConfig,
    inputs: Mapping[str, Artifact],
    documents: Mapping[str, Sequence[Text]],
    exams: Mapping[str, Exam],
    measured: Measured,
) -> EvaluationResult:
    """All figures, from the rows."""
    seed, resamples = config.seed or 0, config.resamples
    pairs = config.pairs()
    differences = perplexity.compared(measured.texts, pairs, seed=seed, resamples=resamples)
    tasks: dict[str, dict[str, TaskScore]] = {}
    baselines: dict[str, dict[str, Baseline]] = {}
    for spec, (file, exam) in zip(config.tasks, exams.items(), strict=True):
        answers = measured.answers[file]
        reference = accuracy.bayes(exam, training(config, inputs, spec, exam.task))
        baselines[exam.task.name] = accuracy.baselines(exam, reference)
        for name, rows in answers.items():
            tasks.setdefault(name, {})[exam.task.name] = accuracy.score(exam, rows, file)
        differences += accuracy.differences(exam, pairs, answers, reference)
    return EvaluationResult(
        perplexity=perplexity.summarize(measured.texts, documents, seed=seed, resamples=resamples),
        tasks=tasks,
        baselines=baselines,
        fidelity=measured.fidelity,
        engines=measured.engines(),
        differences=differences,
        rows=PERPLEXITY,
        dtype=matrix_dtype(config.dtype),
        seed=seed,
        resamples=resamples,
    )


def training(
    config: EvaluateConfig, inputs: Mapping[str, Artifact], spec: str, task: Task
) -> Sequence[Question]:
    """The rows that naive Bayes learns from: those of the first finetune of `spec` that is evaluated, if any.

    Raises:
        InputError: the finetune's rows or the task's files are damaged.
    """
    if config.train_baseline is None:
        for artifact in inputs.values():
            if ids := _trained_on(artifact, spec):
                return [question for question in task.rows("train") if question.id in ids]
    return task.rows("train", BAYES_ROWS if config.train_baseline is None else config.train_baseline)
