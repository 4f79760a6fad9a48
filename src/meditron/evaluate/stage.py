"""The evaluate stage: held-out text, tasks and fidelity of every model, with intervals and differences."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meditron.core.console import warn
from meditron.core.errors import UsageError
from meditron.core.machine import matrix_dtype
from meditron.evaluate import accuracy, fidelity, perplexity
from meditron.evaluate.answers import answer
from meditron.evaluate.config import CORPUS, EvaluateConfig, is_file
from meditron.evaluate.eval_set import EvalSet
from meditron.evaluate.heldout import choose, distinct, refuse_overlap
from meditron.evaluate.model import EvalModel
from meditron.evaluate.rows import FIDELITY, PERPLEXITY, DocumentRow, FidelityRow, QuestionRow, R, RowsFile
from meditron.evaluate.scoring import score
from meditron.evaluate.trained import refuse_trained_documents, refuse_trained_questions, training_data
from meditron.report.evaluation_page import write_report
from meditron.store.artifact import Artifact
from meditron.store.corpus import CorpusDocument
from meditron.store.jsonl import read_jsonl
from meditron.store.results import (
    Baseline,
    EvaluationResult,
    Fidelity,
    TaskScore,
    TrainingData,
    write_results,
)
from meditron.tasks.question import Question
from meditron.tasks.registry import open_task
from meditron.tasks.task import Task

__all__ = ["BAYES_ROWS", "run", "training", "warn_of_repeated"]

_TRAINED_ON = "rows.jsonl.zst"  # a finetune's training rows
BAYES_ROWS = 2_000
"""Training rows of naive Bayes where nothing else says how many."""


def run(config: EvaluateConfig, inputs: Mapping[str, Artifact], out: Path) -> dict[str, Any]:
    """Measure every model; called again after a kill, go on where it stopped.

    Writes `perplexity.jsonl` (a row a model and document), `<task>.jsonl` (a row a model and question),
    `fidelity.jsonl` (a row a pair of models and document), `results.json` and `report.html`.

    Raises:
        MeditronError: a held-out document stands in the corpus' training files, a model or one that it was
            trained from was trained on the questions or held-out documents, or a figure is not a number.
        InputError: the corpus has nothing held out, or its files, a model's or the rows are damaged.
        UsageError: a task that is not known, or two that would write one file.
    """
    corpus = inputs[CORPUS].path
    exams = _exams(config, inputs)
    documents = choose(corpus, config.documents)
    models = {name: EvalModel(name, inputs[name], matrix_dtype(config.dtype)) for name in config.models}
    for model in models.values():
        refuse_trained_questions(model, [exam for some in exams.values() for exam in some])
        refuse_trained_documents(model, documents)
    trained = refuse_overlap(corpus, documents)
    measured = _measure(config, inputs, documents, exams, models, out)
    ancestry = {name: training_data(model) for name, model in models.items()}
    result = _result(config, inputs, documents, exams, measured, ancestry)
    write_results(out, result)
    write_report(out / "report.html", result)
    overlap = {"overlap": 0, "training_documents_compared": trained}
    return result.model_dump(mode="json") | overlap


Exams = Mapping[str, Sequence[EvalSet]]
"""Task as the recipe names it → the ways in which it is asked."""


def _exams(config: EvaluateConfig, inputs: Mapping[str, Artifact]) -> Exams:
    exams: dict[str, tuple[EvalSet, ...]] = {}
    files: dict[str, Task] = {}
    for spec in config.tasks:
        place = str(inputs[spec].path) if is_file(spec) else spec
        task = open_task(place, corpus=inputs[CORPUS].path)
        exams[spec] = EvalSet.of(
            task,
            questions=config.questions,
            mode=config.mode,
            rule=config.rule,
            shots=config.shots,
            seed=config.seed or 0,
            form=config.prompt_form,
        )
        warn_of_repeated(exams[spec][0])
        file = exams[spec][0].file
        if file in files:
            raise UsageError(f"the tasks {files[file].name} and {task.name} would both write {file}")
        files[file] = task
    return exams


def warn_of_repeated(exam: EvalSet) -> None:
    """Warn if questions repeat each other's text and options: each of them counts in n."""
    if exam.repeated:
        warn(
            f"{exam.task.name}: {exam.repeated} of {len(exam.questions)} questions repeat another's text and "
            "options; each counts, so intervals are too narrow"
        )


def _trained_on(artifact: Artifact, spec: str) -> set[str]:
    """Ids of the task's questions that a finetune was trained on; none for anything else."""
    used = artifact.path / _TRAINED_ON
    if artifact.manifest is None or artifact.manifest.config.get("task") != spec or not used.is_file():
        return set()
    return {str(row.get("id")) for row in read_jsonl(used) if row.get("split") == "train"}


@dataclass(frozen=True, slots=True)
class Measured:
    """Every row of an evaluation."""

    texts: Mapping[str, list[DocumentRow]]
    """Model → rows of documents."""
    answers: Mapping[str, Mapping[str, list[QuestionRow]]]
    """Label of the exam → model → rows of questions."""
    held: list[FidelityRow]
    fidelity: list[Fidelity]

    def engines(self) -> dict[str, str]:
        """Model → what ran it."""
        texts = (row for own in self.texts.values() for row in own)
        return {row.model: row.engine for row in (*texts, *self.held)}


def _measure(
    config: EvaluateConfig,
    inputs: Mapping[str, Artifact],
    documents: Mapping[str, Sequence[CorpusDocument]],
    exams: Exams,
    models: Mapping[str, EvalModel],
    out: Path,
) -> Measured:
    """Every model, one after another, on everything that is asked of it."""
    texts: dict[str, list[DocumentRow]] = {}
    every = [exam for some in exams.values() for exam in some]
    answers: dict[str, dict[str, list[QuestionRow]]] = {exam.label: {} for exam in every}
    with ExitStack() as files:
        of_text = files.enter_context(RowsFile(out / PERPLEXITY, DocumentRow))
        of_tasks = {
            exam.file: files.enter_context(RowsFile(out / exam.file, QuestionRow))
            for exam, *_ in exams.values()
        }
        for name, model in models.items():
            with model:
                texts[name] = score(model, documents, config, of_text)
                for exam in every:
                    answers[exam.label][name] = answer(model, exam, of_tasks[exam.file])
        of_text.finish(_all(texts.values()))
        for some in exams.values():
            of_tasks[some[0].file].finish(_all(rows for e in some for rows in answers[e.label].values()))
    return Measured(texts, answers, *_held_against(config, inputs, out))


def _all(groups: Iterable[Iterable[R]]) -> Iterator[R]:
    return (row for rows in groups for row in rows)


def _held_against(
    config: EvaluateConfig, inputs: Mapping[str, Artifact], out: Path
) -> tuple[list[FidelityRow], list[Fidelity]]:
    """The rows and the figures of every pair of models that is asked for."""
    if not config.fidelity:
        return [], []
    documents = distinct(inputs[CORPUS].path, config.fidelity_documents)
    rows: list[FidelityRow] = []
    found: list[Fidelity] = []
    with RowsFile(out / FIDELITY, FidelityRow) as file:
        for pair in config.fidelity:
            with ExitStack() as both:
                model, against = (
                    both.enter_context(EvalModel(name, inputs[name], fidelity.DTYPE))
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
    documents: Mapping[str, Sequence[CorpusDocument]],
    exams: Exams,
    measured: Measured,
    ancestry: Mapping[str, TrainingData],
) -> EvaluationResult:
    """All figures, from the rows."""
    seed, resamples = config.seed or 0, config.resamples
    pairs = config.pairs()
    differences = perplexity.compared(measured.texts, pairs, seed=seed, resamples=resamples)
    tasks: dict[str, dict[str, TaskScore]] = {}
    baselines: dict[str, dict[str, Baseline]] = {}
    for spec, exam in ((spec, exam) for spec, some in exams.items() for exam in some):
        answers = measured.answers[exam.label]
        reference = accuracy.bayes(exam, training(config, inputs, spec, exam.task))
        baselines[exam.label] = accuracy.baselines(exam, reference)
        for name, rows in answers.items():
            tasks.setdefault(name, {})[exam.label] = accuracy.score(exam, rows, exam.file)
        differences += accuracy.differences(exam, pairs, answers, reference)
    return EvaluationResult(
        perplexity=perplexity.summarize(measured.texts, documents, seed=seed, resamples=resamples),
        tasks=tasks,
        baselines=baselines,
        fidelity=measured.fidelity,
        engines=measured.engines(),
        ancestry=dict(ancestry),
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
