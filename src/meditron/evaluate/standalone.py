"""Evaluation without a recipe: one model on one task, or the fidelity of one model to another."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, TypeVar

from meditron.core.config import StageConfig
from meditron.core.errors import InputError, UsageError
from meditron.core.machine import DType, resolve_matrix_dtype
from meditron.engine.base import API_SCHEME
from meditron.evaluate import accuracy, fidelity
from meditron.evaluate.config import EvalOptions
from meditron.evaluate.contamination import corpus_records, group_questions
from meditron.evaluate.eval_set import EvalSet, rows_file_name
from meditron.evaluate.heldout import distinct_heldout
from meditron.evaluate.model import ApiModel, EvalModel, LocalModel, open_judge
from meditron.evaluate.question_page import question_page_name, write_task_page
from meditron.evaluate.ranks import EvalRanks
from meditron.evaluate.rows import FIDELITY, EvalRow, FidelityRow, QuestionRow
from meditron.evaluate.rows_file import RowsFile, lock_rows_file
from meditron.evaluate.rubric.rows import rubric_file_name
from meditron.evaluate.rubric.run import ANSWERS, JUDGEMENTS, PAGE, RubricEvaluation
from meditron.evaluate.stage import BAYES_ROWS
from meditron.evaluate.trained import (
    refuse_trained_conversations,
    refuse_trained_questions,
    training_data_record,
)
from meditron.evaluate.variants import EvalVariants, VariantRows
from meditron.parallel.task import Ranks, StageTask
from meditron.store.files import refuse_overwrite
from meditron.store.manifest import Artifact
from meditron.store.models import models_of_folder, resolve_model
from meditron.store.prompts import PromptStore, StoredPrompt
from meditron.store.results import EvaluationResult, Fidelity
from meditron.tasks.question import Question
from meditron.tasks.registry import open_task, parse_task
from meditron.tasks.rubrics import open_rubrics

__all__ = ["Evaluation", "evaluate_against", "evaluate_on_rubrics", "evaluate_on_task", "run", "run_on"]

DEFAULTS = EvalOptions()
R = TypeVar("R", bound=EvalRow)


class Evaluation(EvalOptions, StageConfig):
    """An evaluation without a recipe: a model on a task, or against another model."""

    model: str
    task: str | None = None
    against: str | None = None
    """Model to compare with; needs a corpus."""
    template: str | None = None
    corpus: Path | None = None
    out: Path | None = None
    system_prompt: str | None = None
    """Stored prompt before each question: `NAME@HASH`."""
    prompts: Path | None = None
    """Folder of that prompt."""

    def inputs(self) -> dict[str, str]:
        """Return no inputs: models and tasks are opened by their names."""
        return {}

    def stored_prompt(self) -> StoredPrompt | None:
        """Return the stored prompt; SourceError if there is none of this name."""
        if self.system_prompt is None or self.prompts is None:
            return None
        return PromptStore(self.prompts).find(self.system_prompt)


def run_on(ranks: Ranks, evaluation: Evaluation) -> tuple[EvaluationResult, Path]:
    """Evaluate on all ranks of a job; the results are those of `evaluate_on_task` or `evaluate_against`.

    Raises:
        UsageError: the model is behind a server, so more processes would only send the same requests.
    """
    if ranks.size > 1 and evaluation.model.startswith(API_SCHEME):
        raise UsageError(
            f"{evaluation.model} is behind a server, which {ranks.size} processes do not make faster",
            hint="leave out --nproc; --concurrency sets the number of requests in flight",
        )
    done = ranks.run(StageTask(f"{__name__}:run", evaluation, {}, evaluation.out or Path()))
    return EvaluationResult.model_validate_json(done["result"]), Path(done["rows"])


def run(evaluation: Evaluation, inputs: Mapping[str, Artifact], out: Path) -> dict[str, Any]:
    """Do this rank's part of an evaluation; return the results as JSON, and the path of the rows file."""
    del inputs, out  # the config has their names
    options = EvalOptions(**{key: getattr(evaluation, key) for key in EvalOptions.model_fields})
    seed = 1 if evaluation.seed is None else evaluation.seed
    if evaluation.against is not None and evaluation.corpus is not None:
        result, rows = evaluate_against(
            evaluation.model, evaluation.against, evaluation.corpus, options, out=evaluation.out, seed=seed
        )
    else:
        result, rows = evaluate_on_task(
            evaluation.model,
            str(evaluation.task),
            options,
            template=evaluation.template,
            corpus=evaluation.corpus,
            out=evaluation.out,
            seed=seed,
            stored_prompt=evaluation.stored_prompt(),
        )
    return {"result": result.model_dump_json(), "rows": str(rows)}


def evaluate_on_task(
    model: str | EvalModel,
    task: str,
    options: EvalOptions = DEFAULTS,
    *,
    template: str | None = None,
    corpus: Path | None = None,
    out: Path | None = None,
    seed: int = 1,
    stored_prompt: StoredPrompt | None = None,
) -> tuple[EvaluationResult, Path]:
    """Score a model on a task, and compute the baselines.

    Rows of other models and settings in the same file are kept, and existing rows of this model are reused. A
    page beside the file shows the questions with this model's answers.

    Args:
        model: A MODEL, or an `EvalModel`, such as a model behind an API.
        task: A task's name, or a file of questions.
        options: The evaluation options.
        template: Name of the prompt template; default: that of the task.
        corpus: Folder of a corpus, for tasks that are made from one.
        out: Folder of the rows file; default: `evaluations/MODEL`.
        seed: Seed of the examples' draw.
        stored_prompt: Stored prompt without variables that comes before each question.

    Returns:
        The results, and the path of the rows file.

    Raises:
        UsageError: there is no such task or template; the task needs a corpus or has too few questions; the
            rows file would overwrite an input; or the engine lacks a capability that the method needs.
        SourceError: there is no such model or file.
        InputError: a file is damaged.
        MeditronError: the model or its base was trained on the questions, or a score is infinite or NaN.
    """
    # Both names are checked before either is downloaded.
    parse_task(task)
    eval_model = _open_model(model, options) if isinstance(model, str) else model
    opened = open_task(task, corpus=corpus, template=template)
    shots_from = Path(options.shots_from) if options.shots_from else None
    eval_sets = EvalSet.from_task(
        opened, options, seed=seed, shots_from=shots_from, stored_prompt=stored_prompt
    )
    variants = [EvalVariants.of(eval_set, options, seed, shots_from) for eval_set in eval_sets]
    path = (out or _default_folder(eval_model.name)) / rows_file_name(opened.name)
    # The end of the `with` block closes the engine, so its name and identity are read inside.
    with eval_model:
        refuse_trained_questions(eval_model, eval_sets)
        inputs = [Path(task), *filter(None, [shots_from]), *eval_model.content_files]
        answers = list(zip(eval_sets, _write_answers(eval_model, variants, path, inputs), strict=True))
        identity = _identity_fields(eval_model, generates=eval_sets[0].method.generates)
    training = opened.rows("train", BAYES_ROWS)
    figures = _task_figures(eval_model, answers, training, seed=seed, resamples=options.resamples)
    result = EvaluationResult(**figures, **identity, rows=path.name, seed=seed, resamples=options.resamples)
    return result, path


def _write_answers(
    model: EvalModel, variants: Sequence[EvalVariants], path: Path, inputs: Sequence[Path]
) -> list[VariantRows]:
    """Let a model answer all variants of a task; write the rows, and the page of the questions."""
    # The rows file is named after the task and could be the question file itself, with `--out`.
    refuse_overwrite([path, path.with_name(question_page_name(path.name))], inputs)
    ranks = EvalRanks.of_job()
    with _locked_rows_file(path, QuestionRow, ranks) as file:
        answers = [each.answer(model, file) for each in variants]
        _write_rows(file, [row for rows in answers for row in rows.all_rows()])
        if ranks.is_main:
            sets = [each.published for each in variants]
            by_label = {
                eval_set.label: {model.name: rows.published}
                for eval_set, rows in zip(sets, answers, strict=True)
            }
            write_task_page(path.parent, sets, by_label)
    return answers


def _identity_fields(model: EvalModel, *, generates: bool) -> dict[str, Any]:
    """Return the fields of an EvaluationResult that identify the model and the engine that answers."""
    answering = model.answering(generates=generates)
    return {
        "engines": {model.name: answering.engine_label},
        "identities": {model.name: answering.provenance} if answering.provenance else {},
        "ancestry": {model.name: training_data_record(model)},
        "dtype": answering.dtype,
    }


def _task_figures(
    model: EvalModel,
    answers: Sequence[tuple[EvalSet, VariantRows]],
    training: Sequence[Question],
    *,
    seed: int,
    resamples: int,
) -> dict[str, Any]:
    """Return one model's scores, baselines and differences, as fields of an EvaluationResult.

    Args:
        model: The model.
        answers: Each evaluation set with its rows.
        training: Questions to train naive Bayes on.
        seed: Seed of the bootstrap.
        resamples: Number of bootstrap resamples.
    """
    name, corpora = model.name, corpus_records([model])
    # Without pairs, the model is compared with naive Bayes only.
    figures = {
        eval_set.label: accuracy.compute_figures(
            eval_set,
            {name: rows.published},
            (),
            training,
            group_questions(eval_set, corpora),
            seed=seed,
            resamples=resamples,
        )
        for eval_set, rows in answers
    }
    scores = {
        eval_set.label: rows.add_scores(figures[eval_set.label].scores[name], seed=seed, resamples=resamples)
        for eval_set, rows in answers
    }
    return {
        "tasks": {name: scores},
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
    """Compare models' predictions on the held-out text of a corpus with those of another (see `fidelity`).

    Args:
        model: A MODEL, such as a quantized file, or a folder of several GGUF files, which are all compared.
        against: The reference MODEL, whose distributions are taken as true.
        corpus: Folder of a corpus.
        options: The evaluation options.
        out: Folder of the rows file; default: `evaluations/MODEL`.
        seed: Seed of the bootstrap.

    Returns:
        The results, and the path of the rows file.

    Raises:
        UsageError: the models have different tokenizers.
        SourceError: there is no such model or corpus.
        InputError: the corpus has too few held-out documents, or a file is damaged.
        MeditronError: a prediction is infinite or NaN.
    """
    texts = distinct_heldout(corpus, options.fidelity_documents)
    # Checked before the models are loaded: an interval needs at least two documents of a source.
    if not any(len(chosen) >= 2 for chosen in texts.values()):
        raise InputError(corpus, "fewer than two held-out documents of any source", hint="is it a corpus?")
    path = (out or _default_folder(model)) / FIDELITY
    figures: list[Fidelity] = []
    rows: list[FidelityRow] = []
    with _open_local_model(against, fidelity.DTYPE) as reference:
        sides = _models_to_compare(model, reference)
        models = (*sides, reference)
        refuse_overwrite([path], [corpus, *(file for each in models for file in each.content_files)])
        with _locked_rows_file(path, FidelityRow, EvalRanks.of_job()) as file:
            for side in sides:
                with side:
                    compared = fidelity.compare_distributions(
                        side, reference, texts, options.document_tokens, file
                    )
                rows += compared
                figures += fidelity.summarize(compared, texts, seed=seed, resamples=options.resamples)
            _write_rows(file, rows)
    result = EvaluationResult(
        fidelity=figures,
        engines={each.name: each.engine_label for each in models},
        ancestry={each.name: training_data_record(each) for each in models},
        rows=FIDELITY,
        dtype=fidelity.DTYPE,
        seed=seed,
        resamples=options.resamples,
    )
    return result, path


def _models_to_compare(model: str, reference: LocalModel) -> list[LocalModel]:
    """Return the model, or those of all GGUF files of a folder except the reference."""
    sides = [_open_local_model(spec, fidelity.DTYPE) for spec in models_of_folder(model)]
    return [side for side in sides if len(sides) == 1 or side.content_files != reference.content_files]


def evaluate_on_rubrics(
    model: str | EvalModel,
    rubrics: Path,
    options: EvalOptions = DEFAULTS,
    *,
    out: Path | None = None,
    seed: int = 1,
) -> tuple[EvaluationResult, Path]:
    """Score a model's open answers by their rubrics (see `rubric.scores`).

    Rows of other models and settings in the same files are kept; answers and judgements that exist are
    reused.

    Args:
        model: A MODEL, or an `EvalModel`.
        rubrics: File of conversations with rubrics.
        options: The evaluation options, with at least one judge.
        out: Folder of the rows files and the page; default: `evaluations/MODEL`.
        seed: Seed of sampled texts and of the bootstrap.

    Returns:
        The results, and the path of the page.

    Raises:
        UsageError: there is no judge, the prompts have two forms, or a conversation does not fit in the
            model's context.
        SourceError: there is no such model or file.
        InputError: a file is damaged.
        EngineError: a server fails for good; rows that are complete are kept.
    """
    if not options.judges:
        raise UsageError(f"{rubrics}: open answers with rubrics need a judge", hint="--judge MODEL")
    if options.prompt_form == "both":
        raise UsageError("rubrics are answered in one prompt form, got 'both'")
    rubric_set = open_rubrics(rubrics)
    eval_model = _open_model(model, options) if isinstance(model, str) else model
    dtype = resolve_matrix_dtype(options.dtype)
    judges = []
    for spec in options.judges:
        artifact = None if spec.startswith(API_SCHEME) else Artifact(spec, resolve_model(spec).path, "")
        judges.append(open_judge(spec, options, artifact, dtype))
    folder = out or _default_folder(eval_model.name)
    paths = [folder / rubric_file_name(rubric_set.name, ending) for ending in (ANSWERS, JUDGEMENTS, PAGE)]
    prompt, labels = (Path(name) if name else None for name in (options.judge_prompt, options.labels))
    refuse_trained_conversations(eval_model, [rubric_set])
    refuse_overwrite(paths, [rubrics, *filter(None, [prompt, labels]), *eval_model.content_files])
    evaluation = RubricEvaluation(
        [rubric_set], judges, options, folder, seed=seed, prompt=prompt, labels=labels, keep_other_rows=True
    )
    with lock_rows_file(paths[0]), evaluation:
        with eval_model:
            evaluation.answer(eval_model)
            identity = _identity_fields(eval_model, generates=True)
        evaluation.judge()
        figures = evaluation.finish(())
    result = EvaluationResult(
        rubrics=figures.scores, **identity, rows=paths[0].name, seed=seed, resamples=options.resamples
    )
    return result, paths[2]


@contextmanager
def _locked_rows_file(path: Path, row_type: type[R], ranks: EvalRanks) -> Iterator[RowsFile[R]]:
    """Open a rows file that no other evaluation writes until the end of the block."""
    # All evaluations of a model have the same default folder and may run at the same time.
    with (
        lock_rows_file(path) if ranks.is_main else nullcontext(),
        RowsFile(path, row_type, ranks) as file,
    ):
        yield file


def _write_rows(file: RowsFile[R], rows: Sequence[R]) -> None:
    """Rewrite the file with these rows and those of other models and settings."""
    file.rewrite_sorted([*file.rows, *rows])


def _default_folder(model: str) -> Path:
    # A MODEL may be a path or a URL: characters that are not safe in a file name are replaced.
    return Path("evaluations") / (re.sub(r"[^A-Za-z0-9._-]+", "-", model).strip("-.") or "model")


def _open_model(spec: str, options: EvalOptions) -> EvalModel:
    """Open a MODEL, in files or behind a server.

    Raises:
        UsageError: the engine does not run this kind of MODEL.
        SourceError: there is no such model.
    """
    if spec.startswith(API_SCHEME):
        if options.engine not in (None, "api"):
            raise UsageError(f"{spec} is behind a server, which the engine {options.engine} cannot open")
        from meditron.engine.api import ApiSettings

        return ApiModel(spec, ApiSettings(concurrency=options.concurrency, timeout=options.timeout))
    if options.engine == "api":
        raise UsageError(
            f"{spec} is not behind a server", hint="name the server: api:http://host:port/v1#model"
        )
    artifact = Artifact(spec, resolve_model(spec).path, "")
    return LocalModel(spec, artifact, resolve_matrix_dtype(options.dtype), options.engine)


def _open_local_model(spec: str, dtype: DType) -> LocalModel:
    return LocalModel(spec, Artifact(spec, resolve_model(spec).path, ""), resolve_matrix_dtype(dtype))
