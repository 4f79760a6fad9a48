"""Config of the evaluate stage."""

from itertools import pairwise
from typing import Annotated, Self

from pydantic import Field, ValidationInfo, field_validator, model_validator

from meditron.core.config import Config, InputKind, NonSemantic, StageConfig
from meditron.core.machine import DType
from meditron.evaluate.methods.registry import METHODS
from meditron.store.results import PromptForm, Rule
from meditron.tasks.registry import TASKS

__all__ = ["Against", "EvalOptions", "EvaluateConfig", "is_file"]

# Name of the corpus among the stage's inputs; no model or task can have it.
CORPUS = "corpus"


def is_file(task: str) -> bool:
    """Return True if a task is named by a file or source of questions, False for a registered name."""
    # Registered names are plain words, so a file needs a suffix, a folder or a scheme to be one.
    return any(mark in task for mark in "./:")


class Against(Config):
    """Two evaluated models to compare: the difference is `model` minus `against`."""

    model: str
    """Model whose gain or loss is measured."""

    against: str
    """Model it is compared with."""


class EvalOptions(Config):
    """Evaluation options that the recipe's table and the command share, under the same names."""

    questions: int = Field(default=1000, ge=1)
    """Maximum number of questions per task: the first in the order of their ids' hash."""

    methods: tuple[str, ...] = Field(default=("loglikelihood",), min_length=1)
    """How answers are taken: `loglikelihood` compares the options' log-probabilities, `next-token` takes the
    most likely token of the vocabulary. Several methods make several scores."""

    rule: Rule = "sum"
    """Rule of loglikelihood: the option's log-probability (`sum`), the same per byte (`bytes`), or minus its
    unconditional log-probability (`calibrated`)."""

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
    """Maximum number of held-out documents per source for measures of one model against another."""

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
        # The registry is read here and not in the annotation: tests and plugins may add methods.
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
    """References of models: `base`, a stage of the recipe (`pretrain`), a file of one (`quantize:F16`)."""

    documents: int = Field(default=200, ge=2)
    """Maximum number of held-out documents per source: the first in the order of their contents' hash."""

    differences: tuple[Against, ...] | None = None
    """Pairs to compare; default: every later model against the first and against the one before it."""

    tasks: tuple[str, ...] = ()
    """Tasks: registered names, or files of multiple-choice questions."""

    train_baseline: int | None = Field(default=None, ge=1)
    """Training rows of naive Bayes; default: those of the task's finetune, else 2,000."""

    fidelity: tuple[Against, ...] = ()
    """Pairs of models whose predictions of held-out text are compared, token by token."""

    @model_validator(mode="after")
    def _models_are_distinct_and_compared_models_are_evaluated(self) -> Self:
        if repeated := _repeated(self.models):
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
        if repeated := _repeated(self.tasks):
            raise ValueError(f"tasks: '{repeated}' is listed twice")
        for task in self.tasks:
            if task not in TASKS and not is_file(task):
                known = ", ".join(TASKS)
                raise ValueError(f"tasks: no task '{task}'; tasks: {known}, or a file of questions")
        return self

    def pairs(self) -> tuple[Against, ...]:
        """Return the comparisons to make, in the order of the report."""
        if self.differences is not None:
            return self.differences
        # The first model is the base: the gain over all stages, then the gain of each stage.
        first, *later = self.models
        pairs = [(model, first) for model in later]
        pairs += [(model, before) for before, model in pairwise(self.models)]
        # For the second model both pairs are the same: it is compared once.
        return tuple(Against(model=model, against=against) for model, against in dict.fromkeys(pairs))

    def question_files(self) -> tuple[str, ...]:
        """Return the files of questions and of examples."""
        examples = () if self.shots_from is None else (self.shots_from,)
        return (*filter(is_file, self.tasks), *examples)

    def inputs(self) -> dict[str, str]:
        """Return every model and file of questions under its own reference, and the corpus."""
        compared = (name for pair in self.fidelity for name in (pair.model, pair.against))
        return {name: name for name in (*self.models, *compared, *self.question_files())} | {CORPUS: CORPUS}

    def input_kinds(self) -> dict[str, InputKind]:
        """Return the kinds of the models and of the files of questions."""
        # The recipe opens every input of a known kind before the run, so a wrong file fails in seconds.
        questions = dict.fromkeys(self.question_files(), InputKind("questions"))
        return {name: InputKind("model") for name in self.inputs() if name != CORPUS} | questions


def _repeated(names: tuple[str, ...]) -> str | None:
    return next((name for name in names if names.count(name) > 1), None)
