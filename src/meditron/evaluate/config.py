"""What the evaluate stage is told: which models, what they are asked, how sure to be."""

from itertools import pairwise
from typing import Annotated, Self

from pydantic import Field, model_validator

from meditron.core.config import Config, NonSemantic
from meditron.core.machine import DType
from meditron.core.stage import InputKind, StageConfig
from meditron.store.results import Mode, PromptForm, Rule
from meditron.tasks.registry import TASKS

__all__ = ["Against", "EvaluateConfig", "is_file"]

CORPUS = "corpus"


def is_file(task: str) -> bool:
    """Whether a task is named by a file or source of questions, not by a registered name."""
    return any(mark in task for mark in "./:")


class Against(Config):
    """Two of the evaluated models to compare: the difference is `model` minus `against`."""

    model: str
    """The model whose gain or loss is asked for."""

    against: str
    """The model it is measured against."""


class EvaluateConfig(StageConfig):
    """The recipe's `[evaluate]` table."""

    models: tuple[str, ...] = Field(min_length=1)
    """The models' references: `base`, a stage of the recipe (`pretrain`), a file of one (`quantize:F16`)."""

    documents: int = Field(default=200, ge=2)
    """Held-out documents of each source, at most: the first in the order of their contents' hash."""

    max_tokens: int = Field(default=2048, ge=2)
    """Tokens of a document that are scored, at most; the record says how many documents were cut."""

    dtype: DType = "float32"
    """Number format of weights and activations; the head and the loss are float32 always, and fidelity all
    through. `auto`: bfloat16 where the CPU has instructions for it, else float32."""

    resamples: int = Field(default=10_000, ge=100)
    """Bootstrap resamples behind every interval and p value."""

    differences: tuple[Against, ...] | None = None
    """Pairs to compare; when absent, every later model against the first and against the one before it."""

    tasks: tuple[str, ...] = ()
    """Tasks to answer: registered names, or files of multiple-choice questions."""

    questions: int = Field(default=1000, ge=2)
    """Questions of each task, at most: the first in the order of their ids' hash."""

    mode: Mode = "options"
    """Compare the options' log-probabilities, or take the likeliest token of the whole vocabulary."""

    rule: Rule = "sum"
    """What chooses an option: its log-probability, the same by its bytes, or less what it has unasked."""

    prompt_form: PromptForm = "trained"
    """Ask each model as its last finetune was trained (`trained`), all in plain text (`raw`), or `both`."""

    shots: int = Field(default=0, ge=0)
    """Solved questions before each prompt, drawn from the task's training split."""

    train_baseline: int | None = Field(default=None, ge=1)
    """Training rows of naive Bayes; when absent all that the task's finetune used, else 2,000."""

    fidelity: tuple[Against, ...] = ()
    """Pairs of models whose predictions of held-out text are held against each other."""

    fidelity_documents: int = Field(default=32, ge=2)
    """Held-out documents of each source for that, at most."""

    batch_tokens: Annotated[int, NonSemantic] = Field(default=4096, ge=1)
    """Tokens, padding counted, that go through the model at once. Moves memory and speed, not results."""

    @model_validator(mode="after")
    def _models_are_distinct_and_compared_models_are_evaluated(self) -> Self:
        if len(set(self.models)) != len(self.models):
            raise ValueError("models: one of them stands there twice")
        if CORPUS in self.models:
            raise ValueError("models: 'corpus' is no model")
        for pair in self.differences or ():
            for name in (pair.model, pair.against):
                if name not in self.models:
                    raise ValueError(f"differences: '{name}' is not among the models")
        for table, pairs in (("differences", self.differences or ()), ("fidelity", self.fidelity)):
            for pair in pairs:
                if pair.model == pair.against:
                    raise ValueError(f"{table}: '{pair.model}' against itself")
        if len(set(self.tasks)) != len(self.tasks):
            raise ValueError("tasks: one of them stands there twice")
        for task in self.tasks:
            if task not in TASKS and not is_file(task):
                known = ", ".join(TASKS)
                raise ValueError(f"tasks: no task '{task}'; there are {known}, and files of questions")
        return self

    def pairs(self) -> tuple[Against, ...]:
        """The comparisons to make, in the order they are reported."""
        if self.differences is not None:
            return self.differences
        first, *later = self.models
        pairs = [(model, first) for model in later]
        pairs += [(model, before) for before, model in pairwise(self.models)]
        return tuple(Against(model=model, against=against) for model, against in dict.fromkeys(pairs))

    def inputs(self) -> dict[str, str]:
        """Every model and task's file under its own reference, and the corpus with the held-out documents."""
        held = (name for pair in self.fidelity for name in (pair.model, pair.against))
        return {name: name for name in (*self.models, *held, *filter(is_file, self.tasks))} | {CORPUS: CORPUS}

    def input_kinds(self) -> dict[str, InputKind]:
        """Return the kinds of the models and of the tasks' files."""
        questions = dict.fromkeys(filter(is_file, self.tasks), InputKind("questions"))
        return {name: InputKind("model") for name in self.inputs() if name != CORPUS} | questions
