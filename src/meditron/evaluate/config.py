"""Config of the evaluate stage: the table `[evaluate]` of a recipe."""

from collections.abc import Mapping
from itertools import pairwise
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from meditron.core.config import Config, InputKind, NonSemantic, StageConfig, translate_usage_errors
from meditron.core.errors import MeditronError
from meditron.core.machine import DType
from meditron.core.redaction import public_address
from meditron.evaluate.methods.registry import METHODS
from meditron.store.results import Extraction, PromptForm, Rule
from meditron.store.rubric_results import Aggregate
from meditron.tasks.file_task import name_in_reference
from meditron.tasks.registry import parse_task, parse_tasks

__all__ = ["EvalEngine", "EvalOptions", "EvaluateConfig", "Extraction", "ModelPair"]

EvalEngine = Literal["torch", "llama.cpp", "api"]

# Name of the corpus among the stage's inputs; models and tasks must have other names.
CORPUS = "corpus"
_FEWEST_DOCUMENTS = 2  # held-out documents of a source; one gives no interval
_SERVER = "api:"  # beginning of a model behind a server; the engine's module needs httpx


class ModelPair(Config):
    """Two evaluated models to compare: the difference is `model` minus `against`."""

    model: str
    """Model whose gain or loss is measured."""

    against: str
    """Model that it is compared with."""


class EvalOptions(Config):
    """Evaluation options that the recipe's table and the command share, under the same names."""

    questions: int = Field(default=1000, ge=1)
    """Maximum number of questions per task: the first in the order of their ids' hash."""

    methods: tuple[str, ...] = Field(default=("loglikelihood",), min_length=1)
    """Evaluation methods: `loglikelihood` compares the options' log-probabilities, `next-token` takes the
    most likely token as the answer, `cot` generates a chain of thought and takes the option that it names,
    `self-consistency` lets several of them vote. Each method gives a score of its own."""

    rule: Rule = "sum"
    """Score of an option for `loglikelihood`: its log-probability (`sum`), its log-probability per byte
    (`bytes`), or its log-probability minus its unconditional log-probability (`calibrated`)."""

    constrained: bool = False
    """Let `next-token` choose among the options' first tokens instead of the whole vocabulary."""

    samples: int = Field(default=5, ge=1)
    """Number of answers that vote in `self-consistency`."""

    temperature: float | None = Field(default=None, ge=0)
    """Sampling temperature of generated answers; default: 0 (greedy) for `cot`, 0.7 for
    `self-consistency`."""

    max_tokens: int = Field(default=256, ge=1)
    """Maximum number of tokens of a generated answer."""

    extraction: Extraction = "explicit"
    """How the answer is found in a generated text: the last option that it explicitly names (`explicit`), or
    the option with the highest log-probability after the text and `The answer is` (`forced`)."""

    early_stop: bool = True
    """Stop sampling a question in `self-consistency` when no further vote could change the winner."""

    prompt_form: PromptForm = "trained"
    """Prompt each model in the chat template of its last finetune (`trained`), in plain text (`raw`), or
    `both`."""

    shots: int = Field(default=0, ge=0)
    """Number of solved examples before each question."""

    shots_from: str | None = None
    """File of questions from which the examples are drawn; default: the task's training split."""

    document_tokens: int = Field(default=2048, ge=2)
    """Maximum number of scored tokens per document; results count the truncated documents."""

    fidelity_documents: int = Field(default=32, ge=2)
    """Maximum number of held-out documents per source for fidelity, which compares two models'
    predictions."""

    permutations: int = Field(default=1, ge=1, le=24)
    """Number of orders of each question's options, the published order included. More than one gives the mean
    accuracy over the orders and the share of questions answered right in every order."""

    seeds: int = Field(default=1, ge=1, le=100)
    """Number of seeds with which examples are drawn and answers sampled: `seed` and those after it. More than
    one gives the mean accuracy over the seeds, and its spread."""

    dtype: DType = "float32"
    """Number format of weights and activations; the loss is always float32, and so is all of fidelity.
    `auto`: bfloat16 if the CPU has instructions for it, else float32."""

    engine: EvalEngine | None = None
    """Inference engine of questions; default: `api` for a MODEL behind a server (`api:http://host:port/v1#model`),
    llama.cpp for generated answers of a quantized GGUF file, else torch."""

    concurrency: Annotated[int, NonSemantic] = Field(default=8, ge=1, le=256)
    """Requests in flight to a server."""

    timeout: Annotated[float, NonSemantic] = Field(default=300.0, gt=0)
    """Seconds within which a server must answer a request; it is sent again up to seven times."""

    resamples: int = Field(default=10_000, ge=100)
    """Bootstrap resamples of each interval and p-value."""

    batch_tokens: Annotated[int, NonSemantic] = Field(default=4096, ge=1)
    """Tokens per batch, padding included. Changes memory and speed, not results."""

    judges: tuple[str, ...] = ()
    """Models that judge open answers by rubrics: in files, or behind a server
    (`api:http://host:port/v1#model`)."""

    judge_prompt: str | None = None
    """File of the judges' prompt (.toml); default: the package's own."""

    judge_max_tokens: int = Field(default=512, ge=1)
    """Maximum number of tokens of a judge's text."""

    judge_temperature: float = Field(default=0.0, ge=0)
    """Sampling temperature of judges; 0 = greedy decoding."""

    judge_attempts: int = Field(default=3, ge=1, le=20)
    """Maximum number of times that a judge is asked for a verdict. A greedy judge would repeat itself, so
    further texts have a temperature of at least 0.7."""

    judge_aggregate: Aggregate = "majority"
    """How several judges' verdicts on a criterion become one: that of most judges (`majority`), or the share
    of judges that find it met (`mean`)."""

    labels: str | None = None
    """File of human labels of criteria, which the judges are compared with."""

    @field_validator("methods")
    @classmethod
    def _methods_are_known_and_distinct(cls, methods: tuple[str, ...]) -> tuple[str, ...]:
        # Checked here and not by a Literal type, because tests and plugins may register further methods.
        for method in methods:
            if method not in METHODS:
                raise ValueError(f"no method '{method}'; methods: {', '.join(METHODS)}")
            if methods.count(method) > 1:
                raise ValueError(f"'{method}' is listed twice")
        return methods

    @model_validator(mode="after")
    def _votes_are_drawn(self) -> Self:
        # Greedy samples are all equal: the vote would be one answer's.
        if "self-consistency" in self.methods and self.temperature == 0:
            raise ValueError("temperature must be above 0 for self-consistency, got 0")
        return self

    @model_validator(mode="after")
    def _seeds_have_an_effect(self) -> Self:
        sampled = "self-consistency" in self.methods or ("cot" in self.methods and self.temperature)
        if self.seeds > 1 and not (self.shots or sampled):
            raise ValueError(
                f"seeds must be 1 without shots and without sampled answers, got {self.seeds}: nothing is "
                "drawn"
            )
        return self

    @model_validator(mode="after")
    def _the_engine_can_score(self) -> Self:
        if "loglikelihood" in self.methods and self.engine in ("llama.cpp", "api"):
            raise ValueError(
                f"the engine {self.engine} gives no log-probabilities of whole options, which loglikelihood "
                "needs; choose another method"
            )
        return self

    @field_validator("judges")
    @classmethod
    def _judges_are_distinct(cls, judges: tuple[str, ...]) -> tuple[str, ...]:
        if repeated := _first_repeated(judges):
            raise ValueError(f"'{repeated}' is listed twice")
        for judge in judges:
            address = judge.removeprefix(_SERVER)
            if judge.startswith(_SERVER) and public_address(address) != address:
                raise ValueError(f"'{_SERVER}{public_address(address)}' must have no credentials or query")
        return judges

    @property
    def local_judges(self) -> tuple[str, ...]:
        """The judges in files."""
        return tuple(judge for judge in self.judges if not judge.startswith(_SERVER))

    @field_validator("shots_from")
    @classmethod
    def _a_file_of_examples_is_used(cls, shots_from: str | None, info: ValidationInfo) -> str | None:
        # Without shots the file would be ignored, and a zero-shot score taken for a few-shot one.
        if shots_from == "":
            raise ValueError("must name a file, got an empty text")
        if shots_from is not None and info.data.get("shots") == 0:
            raise ValueError("shots must be at least 1 with shots_from, got 0")
        return shots_from


class EvaluateConfig(EvalOptions, StageConfig):
    """The recipe's `[evaluate]` table."""

    models: tuple[str, ...] = Field(min_length=1)
    """Models to evaluate: `base`, a stage of the recipe (`pretrain`), or a file of a stage
    (`quantize:F16`)."""

    documents: int = Field(default=200, ge=2)
    """Maximum number of held-out documents per source: the first in the order of their contents' hash."""

    differences: tuple[ModelPair, ...] | None = None
    """Pairs to compare; default: every later model against the first and against the one before it."""

    tasks: tuple[str, ...] = ()
    """Tasks, named as in `meditron evaluate`: `pubmed-sections`, a benchmark (`mmlu-medical`, or
    `mmlu-medical:FOLDER`), a multiple-choice task of lm-eval (`.yaml`), or a file of multiple-choice
    questions."""

    task_models: Mapping[str, tuple[str, ...]] = Field(default_factory=dict)
    """Models that answer a task, by the task as written in `tasks`; default: all models. For runs with one
    finetuned model per benchmark."""

    rubrics: tuple[str, ...] = ()
    """Files of conversations with rubrics, in HealthBench's format; the models' answers are scored by
    `judges`."""

    train_baseline: int | None = Field(default=None, ge=1)
    """Number of questions that naive Bayes is trained on; default: those of the task's finetune, else
    2,000."""

    fidelity: tuple[ModelPair, ...] = ()
    """Pairs of models whose predictions of held-out text are compared, token by token."""

    @model_validator(mode="after")
    def _models_are_distinct_and_compared_models_are_evaluated(self) -> Self:
        if repeated := _first_repeated(self.models):
            raise ValueError(f"models: '{repeated}' is listed twice")
        if self.engine == "api":
            raise ValueError("engine: a recipe's models are files, which 'api' cannot open")
        if CORPUS in self.models:
            raise ValueError("models: 'corpus' is not a model")
        for pair in self.differences or ():
            for name in (pair.model, pair.against):
                if name not in self.models:
                    raise ValueError(f"differences: '{name}' is not among the models")
        for table, pairs in (("differences", self.differences or ()), ("fidelity", self.fidelity)):
            for pair in pairs:
                if pair.model == pair.against:
                    raise ValueError(f"{table}: '{pair.model}' against itself")
        return self

    @field_validator("tasks")
    @classmethod
    def _tasks_are_known_and_distinct(cls, tasks: tuple[str, ...]) -> tuple[str, ...]:
        with translate_usage_errors():
            parse_tasks(tasks)
        return tasks

    @model_validator(mode="after")
    def _task_models_are_known(self) -> Self:
        for task, models in self.task_models.items():
            if task not in self.tasks:
                raise ValueError(f"task_models: '{task}' is not among the tasks")
            if not models:
                raise ValueError(f"task_models: '{task}' needs at least one model")
            if repeated := _first_repeated(models):
                raise ValueError(f"task_models: '{task}' lists '{repeated}' twice")
            if unknown := [name for name in models if name not in self.models]:
                raise ValueError(f"task_models: '{task}' lists '{unknown[0]}', which is not among the models")
        return self

    @model_validator(mode="after")
    def _rubrics_have_judges(self) -> Self:
        if self.rubrics and not self.judges:
            raise ValueError("judges: rubrics need at least one")
        given = {"judges": self.judges, "judge_prompt": self.judge_prompt, "labels": self.labels}
        for key, value in given.items():
            if value and not self.rubrics:
                raise ValueError(f"{key}: there are no rubrics to judge by")
        if self.rubrics and self.prompt_form == "both":
            raise ValueError("prompt_form: rubrics are answered in one form, got 'both'")
        by_name: dict[str, str] = {}
        for file in self.rubrics:
            if not any(mark in file for mark in "./:"):
                raise ValueError(f"rubrics: '{file}' is not a file: write ./{file} for a file")
            name = name_in_reference(file)
            if (other := by_name.setdefault(name, file)) != file:
                raise ValueError(f"rubrics: '{other}' and '{file}' would both be named '{name}'")
        return self

    @property
    def backend(self) -> Literal["torch", "llama.cpp"] | None:
        """The engine of all models, which are local."""
        return None if self.engine == "api" else self.engine

    def models_of(self, task: str) -> tuple[str, ...]:
        """Return the models that answer a task, in the order of `models`; `task` as written in `tasks`."""
        answering = self.task_models.get(task, self.models)
        return tuple(name for name in self.models if name in answering)

    def pairs(self, task: str | None = None) -> tuple[ModelPair, ...]:
        """Return the pairs of models to compare, in the order of the report.

        With `task`, the pairs on that task: of models that both answer it.
        """
        models = self.models if task is None else self.models_of(task)
        if self.differences is not None:
            return tuple(p for p in self.differences if p.model in models and p.against in models)
        # First the total gain of every model over the first one (the base), then the gain of each stage.
        first, *later = models
        pairs = [(model, first) for model in later]
        pairs += [(model, before) for before, model in pairwise(models)]
        # dict.fromkeys: for the second model both pairs are the same, so one is dropped.
        return tuple(ModelPair(model=model, against=against) for model, against in dict.fromkeys(pairs))

    def benchmarks(self) -> tuple[str, ...]:
        """Return the tasks that are not made from the corpus."""
        return tuple(task for task in self.tasks if parse_task(task).source is not None)

    def _data_files(self) -> dict[str, InputKind]:
        """Return the files of rubrics, of labels and of the judges' prompt, with their kinds."""
        labels = {} if self.labels is None else {self.labels: InputKind("labels")}
        prompt = {} if self.judge_prompt is None else {self.judge_prompt: InputKind("judge prompt")}
        return dict.fromkeys(self.rubrics, InputKind("rubrics")) | labels | prompt

    def inputs(self) -> dict[str, str]:
        """Return all inputs: models, tasks by the text that names them, other files, and the corpus."""
        compared = (name for pair in self.fidelity for name in (pair.model, pair.against))
        models = {name: name for name in (*self.models, *compared, *self.local_judges)}
        tasks = {task: str(parse_task(task).source) for task in self.benchmarks()}
        examples = () if self.shots_from is None else (self.shots_from,)
        files = {name: name for name in (*examples, *self._data_files())}
        return {**models, **tasks, **files, CORPUS: CORPUS}

    def check_dependency(self, key: str, metrics: Mapping[str, Any]) -> None:
        """Raise MeditronError if no source of the corpus has two held-out documents."""
        counts = {name: source.get("heldout", 0) for name, source in metrics.get("sources", {}).items()}
        if key == CORPUS and counts and max(counts.values()) < _FEWEST_DOCUMENTS:
            listed = ", ".join(f"{name} {count}" for name, count in counts.items())
            raise MeditronError(
                f"too few held-out documents to evaluate ({listed}): one source needs {_FEWEST_DOCUMENTS}",
                hint="raise corpus.heldout, or add documents to the corpus",
            )

    def input_kinds(self) -> dict[str, InputKind]:
        """Return the kind of each input: model or questions."""
        # Inputs with a kind are opened and checked before a run, so that a wrong file fails within seconds.
        specs = (*self.benchmarks(), *([] if self.shots_from is None else [self.shots_from]))
        questions = {spec: InputKind("questions", task=spec) for spec in specs}
        models = {name: InputKind("model") for name in self.inputs() if name != CORPUS}
        return models | questions | self._data_files()


def _first_repeated(names: tuple[str, ...]) -> str | None:
    return next((name for name in names if names.count(name) > 1), None)
