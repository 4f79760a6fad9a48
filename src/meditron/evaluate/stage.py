"""The evaluate stage: held-out text, tasks and fidelity of every model, with intervals and differences."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from meditron.core.errors import UsageError
from meditron.core.machine import resolve_matrix_dtype
from meditron.evaluate import accuracy, fidelity, perplexity
from meditron.evaluate.answers import answer_questions
from meditron.evaluate.config import CORPUS, EvaluateConfig, is_file
from meditron.evaluate.eval_set import EvalSet
from meditron.evaluate.heldout import choose, distinct, refuse_overlap
from meditron.evaluate.model import EvalModel, LocalModel
from meditron.evaluate.rows import FIDELITY, PERPLEXITY, DocumentRow, EvalRow, FidelityRow, QuestionRow
from meditron.evaluate.rows_file import RowsFile
from meditron.evaluate.trained import refuse_trained_documents, refuse_trained_questions, training_data
from meditron.report.evaluation_page import write_evaluation_page
from meditron.store.corpus import CorpusDocument
from meditron.store.jsonl import read_jsonl
from meditron.store.manifest import Artifact
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

__all__ = ["BAYES_ROWS", "bayes_training_rows", "run"]

_TRAINING_ROWS = "rows.jsonl.zst"  # a finetune's training rows
BAYES_ROWS = 2_000
"""Default number of naive Bayes' training rows."""
R = TypeVar("R", bound=EvalRow)
EvalSets = Mapping[str, Sequence[EvalSet]]
"""Task as the recipe names it → its evaluation sets, one for each method and prompt form."""


def run(config: EvaluateConfig, inputs: Mapping[str, Artifact], out: Path) -> dict[str, Any]:
    """Measure every model; after a kill the next call continues.

    Writes `perplexity.jsonl` (a row per model and document), `<task>.jsonl` (a row per model and question),
    `fidelity.jsonl` (a row per pair of models and document), `results.json` and `report.html`.

    Returns:
        The results as metrics, with the number of training documents compared with the held-out ones.

    Raises:
        MeditronError: a held-out document is in the corpus' training files, a model or one that it was
            trained from was trained on the questions or held-out documents, or a figure is not finite.
        InputError: the corpus has nothing held out, or its files, a model's or the rows are damaged.
        UsageError: an unknown task, or two tasks that would write one file.
    """
    corpus = inputs[CORPUS].path
    eval_sets = _open_eval_sets(config, inputs)
    documents = choose(corpus, config.documents)
    models = {
        name: LocalModel(name, inputs[name], resolve_matrix_dtype(config.dtype)) for name in config.models
    }
    # Before anything is computed: a score on training data would be worth nothing after hours of work.
    for model in models.values():
        refuse_trained_questions(model, _flatten(eval_sets))
        refuse_trained_documents(model, documents)
    compared = refuse_overlap(corpus, documents)
    rows = _measure(config, inputs, documents, eval_sets, models, out)
    ancestry = {name: training_data(model) for name, model in models.items()}
    result = _result(config, inputs, documents, eval_sets, rows, ancestry)
    write_results(out, result)
    write_evaluation_page(out / "report.html", result)
    overlap = {"overlap": 0, "training_documents_compared": compared}
    return result.model_dump(mode="json") | overlap


def _flatten(eval_sets: EvalSets) -> list[EvalSet]:
    return [eval_set for task_sets in eval_sets.values() for eval_set in task_sets]


def _open_eval_sets(config: EvaluateConfig, inputs: Mapping[str, Artifact]) -> EvalSets:
    eval_sets: dict[str, tuple[EvalSet, ...]] = {}
    files: dict[str, Task] = {}
    # Inputs may be fetched sources: the artifact knows the local path, the config only the reference.
    shots_from = None if config.shots_from is None else inputs[config.shots_from].path
    for spec in config.tasks:
        name_or_file = str(inputs[spec].path) if is_file(spec) else spec
        task = open_task(name_or_file, corpus=inputs[CORPUS].path)
        eval_sets[spec] = EvalSet.of(task, config, seed=config.seed or 0, shots_from=shots_from)
        file = eval_sets[spec][0].file
        # Two files of one name in two folders: their rows would overwrite each other.
        if file in files:
            raise UsageError(f"the tasks {files[file].name} and {task.name} would both write {file}")
        files[file] = task
    return eval_sets


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredRows:
    """All rows of an evaluation, and the figures of fidelity."""

    documents: Mapping[str, list[DocumentRow]]
    """Model → rows of documents."""
    answers: Mapping[str, Mapping[str, list[QuestionRow]]]
    """Label of the evaluation set → model → rows of questions."""
    fidelity_rows: list[FidelityRow]
    fidelity: list[Fidelity]

    def engines(self) -> dict[str, str]:
        """Return model → its engine."""
        texts = (row for rows in self.documents.values() for row in rows)
        return {row.model: row.engine for row in (*texts, *self.fidelity_rows)}


def _measure(
    config: EvaluateConfig,
    inputs: Mapping[str, Artifact],
    documents: Mapping[str, Sequence[CorpusDocument]],
    eval_sets: EvalSets,
    models: Mapping[str, EvalModel],
    out: Path,
) -> MeasuredRows:
    """Run every measure on one model after another, so that one model is in memory at a time."""
    document_rows: dict[str, list[DocumentRow]] = {}
    answers: dict[str, dict[str, list[QuestionRow]]] = {e.label: {} for e in _flatten(eval_sets)}
    with ExitStack() as stack:
        text_file = stack.enter_context(RowsFile(out / PERPLEXITY, DocumentRow))
        task_files = {
            first.file: stack.enter_context(RowsFile(out / first.file, QuestionRow))
            for first, *_ in eval_sets.values()
        }
        for name, model in models.items():
            # Leaving the context frees the weights before the next model is loaded.
            with model:
                document_rows[name] = perplexity.score_documents(model, documents, config, text_file)
                for eval_set in _flatten(eval_sets):
                    file = task_files[eval_set.file]
                    answers[eval_set.label][name] = answer_questions(model, eval_set, file)
        text_file.finish(_concatenate(document_rows.values()))
        # The sets of one task share its file.
        for task_sets in eval_sets.values():
            rows = _concatenate(rows for e in task_sets for rows in answers[e.label].values())
            task_files[task_sets[0].file].finish(rows)
    fidelity_rows, figures = _measure_fidelity(config, inputs, out)
    return MeasuredRows(
        documents=document_rows, answers=answers, fidelity_rows=fidelity_rows, fidelity=figures
    )


def _concatenate(groups: Iterable[Iterable[R]]) -> Iterator[R]:
    return (row for rows in groups for row in rows)


def _measure_fidelity(
    config: EvaluateConfig, inputs: Mapping[str, Artifact], out: Path
) -> tuple[list[FidelityRow], list[Fidelity]]:
    """Compare the distributions of every pair of models in `config.fidelity`."""
    if not config.fidelity:
        return [], []
    # `distinct` instead of `choose`: a source with one document is not an error here, it gets no figure.
    documents = distinct(inputs[CORPUS].path, config.fidelity_documents)
    rows: list[FidelityRow] = []
    figures: list[Fidelity] = []
    with RowsFile(out / FIDELITY, FidelityRow) as file:
        for pair in config.fidelity:
            with ExitStack() as stack:
                model, against = (
                    stack.enter_context(LocalModel(name, inputs[name], fidelity.DTYPE))
                    for name in (pair.model, pair.against)
                )
                pair_rows = fidelity.compare_distributions(model, against, documents, config.max_tokens, file)
            rows += pair_rows
            figures += fidelity.summarize(
                pair_rows, documents, seed=config.seed or 0, resamples=config.resamples
            )
        # Rows of pairs that are no longer in the config are dropped: the stage's files are its result.
        file.finish(rows)
    return rows, figures


def _result(
    config: EvaluateConfig,
    inputs: Mapping[str, Artifact],
    documents: Mapping[str, Sequence[CorpusDocument]],
    eval_sets: EvalSets,
    rows: MeasuredRows,
    ancestry: Mapping[str, TrainingData],
) -> EvaluationResult:
    """Compute all figures from the rows."""
    seed, resamples = config.seed or 0, config.resamples
    pairs = config.pairs()
    differences = perplexity.compare_pairs(rows.documents, pairs, seed=seed, resamples=resamples)
    tasks: dict[str, dict[str, TaskScore]] = {}
    baselines: dict[str, dict[str, Baseline]] = {}
    for spec, eval_set in ((spec, e) for spec, task_sets in eval_sets.items() for e in task_sets):
        training = bayes_training_rows(config, inputs, spec, eval_set.task)
        figures = accuracy.figures(eval_set, rows.answers[eval_set.label], pairs, training)
        baselines[eval_set.label] = figures.baselines
        differences += figures.differences
        for name, score in figures.scores.items():
            tasks.setdefault(name, {})[eval_set.label] = score
    return EvaluationResult(
        perplexity=perplexity.summarize(rows.documents, documents, seed=seed, resamples=resamples),
        tasks=tasks,
        baselines=baselines,
        fidelity=rows.fidelity,
        engines=rows.engines(),
        ancestry=dict(ancestry),
        differences=differences,
        rows=PERPLEXITY,
        dtype=resolve_matrix_dtype(config.dtype),
        seed=seed,
        resamples=resamples,
    )


def bayes_training_rows(
    config: EvaluateConfig, inputs: Mapping[str, Artifact], spec: str, task: Task
) -> Sequence[Question]:
    """Return naive Bayes' training rows: those of the first evaluated finetune of `spec`, if there is one.

    Raises:
        InputError: the finetune's rows or the task's files are damaged.
    """
    if config.train_baseline is None:
        # The same rows as the finetune: the comparison is between learners, not between amounts of data.
        for artifact in inputs.values():
            if ids := _finetune_ids(artifact, spec):
                return [question for question in task.rows("train") if question.id in ids]
    return task.rows("train", BAYES_ROWS if config.train_baseline is None else config.train_baseline)


def _finetune_ids(artifact: Artifact, spec: str) -> set[str]:
    """Return the ids of the task's questions that a finetune was trained on; none for other artifacts."""
    file = artifact.path / _TRAINING_ROWS
    if artifact.manifest is None or artifact.manifest.config.get("task") != spec or not file.is_file():
        return set()
    return {str(row.get("id")) for row in read_jsonl(file) if row.get("split") == "train"}
