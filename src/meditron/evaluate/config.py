"""Config of the evaluate stage: the table `[evaluate]` of a recipe."""

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from meditron.core.config import Config, InputKind, NonSemantic, StageConfig
from meditron.core.errors import MeditronError
from meditron.core.machine import DType
from meditron.evaluate.methods.registry import METHODS
from meditron.store.results import PromptForm, Rule
from meditron.tasks.file_task import task_name
from meditron.tasks.registry import TASKS

__all__ = ["EvalOptions", "EvaluateConfig", "ModelPair", "is_question_file"]

# Name of the corpus among the stage's inputs; models and tasks must have other names.
CORPUS = "corpus"
_FEWEST_DOCUMENTS = 2  # held-out documents of a source; one gives no interval


def is_question_file(task: str) -> bool:
    """Return True if a task is given as a file or URL of questions, False for a registered name."""
    # Registered names contain no `.`, `/` or `:`; a URL and a path with a suffix or folder do.
    return any(mark in task for mark in "./:")


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
    most likely token of the vocabulary as the answer. Each method gives a score of its own."""

    rule: Rule = "sum"
    """Score of an option for `loglikelihood`: its log-probability (`sum`), its log-probability per byte
    (`bytes`), or its log-probability minus its unconditional log-probability (`calibrated`)."""

    prompt_form: PromptForm = "trained"
    """Prompt each model in the chat template of its last finetune (`trained`), in plain text (`raw`), or
    `both`."""

    shots: int = Field(default=0, ge=0)
    """Number of solved examples before each question."""

    shots_from: str | None = None
    """File of questions from which the examples are drawn; default: the task's training split."""

    max_tokens: int = Field(default=2048, ge=2)
    """Maximum number of scored tokens per document; results count the truncated documents."""

    fidelity_documents: int = Field(default=32, ge=2)
    """Maximum number of held-out documents per source for fidelity, which compares two models'
    predictions."""

    dtype: DType = "float32"
    """Number format of weights and activations; the loss is always float32, and so is all of fidelity.
    `auto`: bfloat16 if the CPU has instructions for it, else float32."""

    resamples: int = Field(default=10_000, ge=100)
    """Bootstrap resamples of each interval and p-value."""

    batch_tokens: Annotated[int, NonSemantic] = Field(default=4096, ge=1)
    """Tokens per batch, padding included. Changes memory and speed, not results."""

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
    """Tasks: registered names, or files of multiple-choice questions."""

    train_baseline: int | None = Field(default=None, ge=1)
    """Number of questions that naive Bayes is trained on; default: those of the task's finetune, else
    2,000."""

    fidelity: tuple[ModelPair, ...] = ()
    """Pairs of models whose predictions of held-out text are compared, token by token."""

    @model_validator(mode="after")
    def _models_are_distinct_and_compared_models_are_evaluated(self) -> Self:
        if repeated := _first_repeated(self.models):
            raise ValueError(f"models: '{repeated}' is listed twice")
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
        if repeated := _first_repeated(self.tasks):
            raise ValueError(f"tasks: '{repeated}' is listed twice")
        for task in self.tasks:
            if task not in TASKS and not is_question_file(task):
                known = ", ".join(TASKS)
                raise ValueError(f"tasks: no task '{task}'; tasks: {known}, or a file of questions")
        by_name: dict[str, str] = {}
        for task in self.tasks:
            name = _task_name_of(task)
            if (other := by_name.setdefault(name, task)) != task:
                raise ValueError(
                    f"tasks: '{other}' and '{task}' would both be named '{name}'; rename one file"
                )
        return self

    def pairs(self) -> tuple[ModelPair, ...]:
        """Return the pairs of models to compare, in the order of the report."""
        if self.differences is not None:
            return self.differences
        # First the total gain of every model over the first one (the base), then the gain of each stage.
        first, *later = self.models
        pairs = [(model, first) for model in later]
        pairs += [(model, before) for before, model in pairwise(self.models)]
        # dict.fromkeys: for the second model both pairs are the same, so one is dropped.
        return tuple(ModelPair(model=model, against=against) for model, against in dict.fromkeys(pairs))

    def question_and_example_files(self) -> tuple[str, ...]:
        """Return the tasks that are files, and the file of examples."""
        examples = () if self.shots_from is None else (self.shots_from,)
        return (*filter(is_question_file, self.tasks), *examples)

    def inputs(self) -> dict[str, str]:
        """Return all inputs: every model and question file with its reference as name, and the corpus."""
        compared = (name for pair in self.fidelity for name in (pair.model, pair.against))
        return {name: name for name in (*self.models, *compared, *self.question_and_example_files())} | {
            CORPUS: CORPUS
        }

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
        questions = dict.fromkeys(self.question_and_example_files(), InputKind("questions"))
        return {name: InputKind("model") for name in self.inputs() if name != CORPUS} | questions


def _task_name_of(task: str) -> str:
    """Return the name that the results of a task have: a registered name, or that of its file."""
    return (
        task_name(Path(task.partition("@sha256:")[0].rpartition("#")[2])) if is_question_file(task) else task
    )


def _first_repeated(names: tuple[str, ...]) -> str | None:
    return next((name for name in names if names.count(name) > 1), None)
