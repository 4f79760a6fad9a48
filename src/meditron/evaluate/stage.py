"""The evaluate stage: perplexity, task scores and fidelity of models, with paired differences."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from meditron.core.errors import UsageError
from meditron.core.machine import resolve_matrix_dtype
from meditron.evaluate import accuracy, fidelity, perplexity
from meditron.evaluate.config import CORPUS, EvaluateConfig
from meditron.evaluate.contamination import corpus_records, group_questions
from meditron.evaluate.eval_set import EvalSet
from meditron.evaluate.heldout import choose_heldout, distinct_heldout, refuse_training_overlap
from meditron.evaluate.model import EvalModel, LocalModel, open_judge
from meditron.evaluate.question_page import write_task_page
from meditron.evaluate.ranks import EvalRanks
from meditron.evaluate.rows import FIDELITY, PERPLEXITY, DocumentRow, EvalRow, FidelityRow, QuestionRow
from meditron.evaluate.rows_file import RowsFile
from meditron.evaluate.rubric.run import RubricEvaluation, RubricFigures
from meditron.evaluate.trained import (
    refuse_trained_conversations,
    refuse_trained_documents,
    refuse_trained_questions,
    training_data_record,
)
from meditron.evaluate.variants import EvalVariants, VariantRows
from meditron.report.evaluation_page import write_evaluation_page
from meditron.store.corpus import CorpusDocument
from meditron.store.jsonl import read_jsonl
from meditron.store.manifest import Artifact
from meditron.store.results import (
    Baseline,
    EvaluationResult,
    Fidelity,
    TaskScore,
    write_results,
)
from meditron.tasks.question import Question
from meditron.tasks.registry import open_task
from meditron.tasks.rubrics import RubricSet, open_rubrics
from meditron.tasks.task import Task

__all__ = ["BAYES_ROWS", "bayes_training_rows", "run"]

_TRAINING_ROWS = "rows.jsonl.zst"  # name of the file of training rows in the folder of a finetune stage
BAYES_ROWS = 2_000
"""Default number of questions that naive Bayes is trained on."""
R = TypeVar("R", bound=EvalRow)
EvalSets = Mapping[str, Sequence[EvalSet]]
"""Task as named in the recipe → its evaluation sets, one for each method and prompt form."""


def run(config: EvaluateConfig, inputs: Mapping[str, Artifact], out: Path) -> dict[str, Any]:
    """Evaluate every model, on all ranks of the job; continue if an earlier run was killed.

    Writes `perplexity.jsonl` (a row per model and document), `<task>.jsonl` (a row per model and question),
    `fidelity.jsonl` (a row per pair of models and document), `results.json`, `report.html` and, for each
    task, a page of its questions; and of each set of rubrics `rubrics-NAME.answers.jsonl`,
    `rubrics-NAME.judgements.jsonl` and `rubrics-NAME.html`.

    Returns:
        The results as metrics, with the number of training documents that were searched for held-out ones;
        empty on ranks other than 0.

    Raises:
        MeditronError: a held-out document is in the training split; a model, or a model that it was trained
            from, was trained on the questions or held-out documents; or a score is infinite or NaN.
        InputError: the corpus has no held-out documents; or a file of the corpus, of a model or of rows is
            damaged.
        UsageError: a task is unknown, or two tasks would write the same rows file.
    """
    ranks = EvalRanks.of_job()
    corpus = inputs[CORPUS].path
    eval_sets = _open_eval_sets(config, inputs)
    documents = choose_heldout(corpus, config.documents)
    models = {
        name: LocalModel(name, inputs[name], resolve_matrix_dtype(config.dtype), config.backend)
        for name in config.models
    }
    rubric_sets = [open_rubrics(inputs[name].path) for name in config.rubrics]
    # Checked before the scoring, which can take hours: scores on training data would be worthless.
    for name, model in models.items():
        answered = {spec: sets for spec, sets in eval_sets.items() if name in config.models_of(spec)}
        refuse_trained_questions(model, _all_eval_sets(answered))
        refuse_trained_documents(model, documents)
        refuse_trained_conversations(model, rubric_sets)
    compared = refuse_training_overlap(corpus, documents)
    with _rubric_evaluation(config, inputs, rubric_sets if ranks.is_main else (), out) as rubrics:
        rows = _measure_models(config, inputs, documents, eval_sets, models, out, ranks)
        if not ranks.is_main:
            return {}
        # Rank 0 writes and judges the open answers: their engines and servers answer many at a time. That can
        # take many hours, for which the other ranks, which have no part in it, must not have to wait.
        for model in models.values():
            with model:
                rubrics.answer(model)
        rubrics.judge()
        figures = rubrics.finish(config.pairs())
    result = _compute_result(config, inputs, documents, eval_sets, rows, figures, models)
    write_results(out, result)
    pages = {
        task_sets[0].rows_file: write_task_page(out, task_sets, rows.published())
        for task_sets in eval_sets.values()
    }
    write_evaluation_page(out / "report.html", result, pages)
    overlap = {"overlap": 0, "training_documents_compared": compared}
    return result.model_dump(mode="json") | overlap


def _rubric_evaluation(
    config: EvaluateConfig, inputs: Mapping[str, Artifact], sets: Sequence[RubricSet], out: Path
) -> RubricEvaluation:
    dtype = resolve_matrix_dtype(config.dtype)
    return RubricEvaluation(
        sets,
        [open_judge(judge, config, inputs.get(judge), dtype) for judge in config.judges],
        config,
        out,
        seed=config.seed or 0,
        prompt=inputs[config.judge_prompt].path if config.judge_prompt else None,
        labels=inputs[config.labels].path if config.labels else None,
    )


def _all_eval_sets(eval_sets: EvalSets) -> list[EvalSet]:
    return [eval_set for task_sets in eval_sets.values() for eval_set in task_sets]


def _open_eval_sets(config: EvaluateConfig, inputs: Mapping[str, Artifact]) -> EvalSets:
    eval_sets: dict[str, tuple[EvalSet, ...]] = {}
    files: dict[str, Task] = {}
    shots_from = _examples_file(config, inputs)
    for spec in config.tasks:
        fetched = inputs[spec].path if spec in inputs else None
        task = open_task(spec, corpus=inputs[CORPUS].path, files=fetched)
        eval_sets[spec] = EvalSet.from_task(task, config, seed=config.seed or 0, shots_from=shots_from)
        file = eval_sets[spec][0].rows_file
        # Two question files in different folders may have the same name.
        if file in files:
            raise UsageError(f"the tasks {files[file].name} and {task.name} would both write {file}")
        files[file] = task
    return eval_sets


def _examples_file(config: EvaluateConfig, inputs: Mapping[str, Artifact]) -> Path | None:
    # The artifacts have the local paths of downloaded inputs; the config has their references only.
    return None if config.shots_from is None else inputs[config.shots_from].path


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredRows:
    """All rows of an evaluation, and the results of fidelity."""

    documents: Mapping[str, list[DocumentRow]]
    """Model → rows of documents."""
    answers: Mapping[str, Mapping[str, VariantRows]]
    """Label of the evaluation set → model → rows of questions."""
    fidelity_rows: list[FidelityRow]
    fidelity: list[Fidelity]

    def published(self) -> dict[str, dict[str, Sequence[QuestionRow]]]:
        """Return label → model → rows of the questions as published, without their variants."""
        return {
            label: {model: rows.published for model, rows in by_model.items()}
            for label, by_model in self.answers.items()
        }

    def engines_by_model(self) -> dict[str, str]:
        """Return model → name of its engine."""
        texts = (row for rows in self.documents.values() for row in rows)
        return {row.model: row.engine for row in (*texts, *self.fidelity_rows) if row.engine}


def _measure_models(
    config: EvaluateConfig,
    inputs: Mapping[str, Artifact],
    documents: Mapping[str, Sequence[CorpusDocument]],
    eval_sets: EvalSets,
    models: Mapping[str, EvalModel],
    out: Path,
    ranks: EvalRanks,
) -> MeasuredRows:
    """Evaluate the models one after another, so that only one is in memory at a time."""
    document_rows: dict[str, list[DocumentRow]] = {}
    answers: dict[str, dict[str, VariantRows]] = {e.label: {} for e in _all_eval_sets(eval_sets)}
    shots_from = _examples_file(config, inputs)
    variants = [
        (spec, EvalVariants.of(eval_set, config, config.seed or 0, shots_from))
        for spec, task_sets in eval_sets.items()
        for eval_set in task_sets
    ]
    with ExitStack() as stack:
        text_file = stack.enter_context(RowsFile(out / PERPLEXITY, DocumentRow, ranks))
        task_files = {
            first.rows_file: stack.enter_context(RowsFile(out / first.rows_file, QuestionRow, ranks))
            for first, *_ in eval_sets.values()
        }
        for name, model in models.items():
            # Leaving the `with` block frees the weights before the next model is loaded.
            with model:
                document_rows[name] = perplexity.score_documents(model, documents, config, text_file)
                for spec, each in variants:
                    if name not in config.models_of(spec):
                        continue
                    file = task_files[each.published.rows_file]
                    answers[each.published.label][name] = each.answer(model, file)
        text_file.rewrite_sorted(_chain_rows(document_rows.values()))
        # All evaluation sets of a task write to one file.
        for task_sets in eval_sets.values():
            rows_of_task = (rows.all_rows() for e in task_sets for rows in answers[e.label].values())
            task_files[task_sets[0].rows_file].rewrite_sorted(_chain_rows(rows_of_task))
    fidelity_rows, figures = _measure_fidelity(config, inputs, out, ranks)
    return MeasuredRows(
        documents=document_rows,
        answers=answers,
        fidelity_rows=fidelity_rows,
        fidelity=figures,
    )


def _chain_rows(groups: Iterable[Iterable[R]]) -> Iterator[R]:
    return (row for rows in groups for row in rows)


def _measure_fidelity(
    config: EvaluateConfig, inputs: Mapping[str, Artifact], out: Path, ranks: EvalRanks
) -> tuple[list[FidelityRow], list[Fidelity]]:
    """Compare the distributions of every pair of models in `config.fidelity`."""
    if not config.fidelity:
        return [], []
    # Not `choose_heldout`: a source with fewer than two documents gets no result here, without a warning.
    documents = distinct_heldout(inputs[CORPUS].path, config.fidelity_documents)
    rows: list[FidelityRow] = []
    figures: list[Fidelity] = []
    with RowsFile(out / FIDELITY, FidelityRow, ranks) as file:
        for pair in config.fidelity:
            with ExitStack() as stack:
                model, against = (
                    stack.enter_context(LocalModel(name, inputs[name], fidelity.DTYPE))
                    for name in (pair.model, pair.against)
                )
                pair_rows = fidelity.compare_distributions(
                    model, against, documents, config.document_tokens, file
                )
            rows += pair_rows
            figures += fidelity.summarize(
                pair_rows, documents, seed=config.seed or 0, resamples=config.resamples
            )
        # Only the rows of the configured pairs are kept: the stage's files depend on its config alone.
        file.rewrite_sorted(rows)
    return rows, figures


def _compute_result(
    config: EvaluateConfig,
    inputs: Mapping[str, Artifact],
    documents: Mapping[str, Sequence[CorpusDocument]],
    eval_sets: EvalSets,
    rows: MeasuredRows,
    rubrics: RubricFigures,
    models: Mapping[str, EvalModel],
) -> EvaluationResult:
    """Compute all results of the evaluation from its rows."""
    seed, resamples = config.seed or 0, config.resamples
    differences = perplexity.compare_pairs(rows.documents, config.pairs(), seed=seed, resamples=resamples)
    corpora = corpus_records(models.values())
    tasks: dict[str, dict[str, TaskScore]] = {}
    baselines: dict[str, dict[str, Baseline]] = {}
    for spec, eval_set in ((spec, e) for spec, task_sets in eval_sets.items() for e in task_sets):
        training = bayes_training_rows(config, inputs, spec, eval_set.task)
        groups = group_questions(eval_set, corpora)
        figures = accuracy.compute_figures(
            eval_set,
            {name: answers.published for name, answers in rows.answers[eval_set.label].items()},
            config.pairs(spec),
            training,
            groups,
            seed=seed,
            resamples=resamples,
        )
        baselines[eval_set.label] = figures.baselines
        differences += figures.differences
        for name, score in figures.scores.items():
            tasks.setdefault(name, {})[eval_set.label] = rows.answers[eval_set.label][name].add_scores(
                score, seed=seed, resamples=resamples
            )
    return EvaluationResult(
        perplexity=perplexity.summarize(rows.documents, documents, seed=seed, resamples=resamples),
        tasks=tasks,
        baselines=baselines,
        fidelity=rows.fidelity,
        engines=rows.engines_by_model(),
        ancestry={name: training_data_record(model) for name, model in models.items()},
        differences=differences,
        rubrics=rubrics.scores,
        rubric_differences=rubrics.differences,
        rows=PERPLEXITY,
        dtype=resolve_matrix_dtype(config.dtype),
        seed=seed,
        resamples=resamples,
    )


def bayes_training_rows(
    config: EvaluateConfig, inputs: Mapping[str, Artifact], spec: str, task: Task
) -> Sequence[Question]:
    """Return the questions to train naive Bayes on.

    By default these are the questions that the first evaluated finetune on the task was trained on, or,
    without such a finetune, the first `BAYES_ROWS` of the training split.

    Args:
        config: The stage's config.
        inputs: The evaluated models by name.
        spec: The task as named in the recipe.
        task: The opened task.

    Raises:
        InputError: the finetune's training rows or the task's files are damaged.
    """
    if config.train_baseline is None:
        # With the training questions of the finetune, the comparison is not one of amounts of data.
        for artifact in inputs.values():
            if contents := _finetune_questions(artifact, spec):
                return [question for question in task.rows("train") if question.content_sha256 in contents]
    return task.rows("train", BAYES_ROWS if config.train_baseline is None else config.train_baseline)


def _finetune_questions(artifact: Artifact, spec: str) -> set[str]:
    """Return the content hashes of the rows of a finetune on a task; empty for other artifacts."""
    file = artifact.path / _TRAINING_ROWS
    tasks = artifact.manifest.config.get("task") if artifact.manifest else None
    # A finetune may have several tasks: ids are unique within one of them only, so contents are compared.
    if spec not in ([tasks] if isinstance(tasks, str) else tasks or ()) or not file.is_file():
        return set()
    return {str(row.get("content")) for row in read_jsonl(file) if row.get("split") == "train"}
