"""Base class of evaluation methods, and the union of all methods' row types."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cache, reduce
from operator import or_
from pkgutil import resolve_name
from typing import Annotated, Any, ClassVar, Generic, Self, TypeVar

from pydantic import Field, TypeAdapter

from meditron.core.errors import UsageError
from meditron.core.statistics import macro_f1, wilson_interval
from meditron.evaluate.config import EvalOptions
from meditron.evaluate.methods.registry import METHODS
from meditron.evaluate.model import EvalModel
from meditron.evaluate.prompts import EvalPrompt
from meditron.evaluate.rows import ImportedRow, QuestionRow
from meditron.store.results import Accuracy
from meditron.tasks.prompt_template import PromptTemplate

__all__ = ["EvalMethod", "count_accuracy", "find_method", "question_row_adapter"]

Q = TypeVar("Q", bound=QuestionRow)


class EvalMethod(ABC, Generic[Q]):
    """Base class of evaluation methods. A method defines its row type, its cache key and its scoring."""

    name: ClassVar[str]
    """Name of the method in recipes, flags and results."""
    description: ClassVar[str]
    """Explanation of the method in one clause, for reports."""
    row_type: type[Q]
    """Type of the method's rows: a subclass of QuestionRow whose field `method` is a Literal of the name."""
    # A killed run loses at most one group. The engine splits a group into smaller batches by length.
    group_size: ClassVar[int] = 64
    """Number of questions that are answered between two writes of the rows file."""

    generates: ClassVar[bool] = False
    """True for a method that generates text. A quantized GGUF file then runs in llama.cpp by default."""

    @classmethod
    def from_options(cls, options: EvalOptions, seed: int) -> Self:
        """Create the method from the options and the run's seed. Methods with settings override this."""
        del options, seed
        return cls()

    @property
    def is_sampled(self) -> bool:
        """True if the answers depend on the seed."""
        return False

    def adapt_template(self, template: PromptTemplate) -> PromptTemplate:
        """Return the prompt template that the method uses instead of the task's own; default: that one."""
        return template

    @abstractmethod
    def cache_key(self) -> Mapping[str, object]:
        """Return the method's settings that decide the result of `answer_prompts`, as plain JSON values."""

    @abstractmethod
    def answer_prompts(
        self, model: EvalModel, prompts: Sequence[EvalPrompt], fields: Sequence[Mapping[str, Any]]
    ) -> list[Q]:
        """Let a model answer questions.

        Args:
            model: The model. The method uses the capability that it needs, such as `model.scorer`.
            prompts: The questions as prompts; at most `group_size`.
            fields: For each prompt, the fields of its row that do not depend on the answer.

        Returns:
            One row for each prompt, in the order of the prompts.

        Raises:
            UsageError: the model's engine lacks the capability.
            MeditronError: a prompt cannot be scored, or a score is infinite or NaN.
        """

    def choose_answer(self, row: Q) -> Q:
        """Choose the answer again from a row's stored scores, by settings such as the rule."""
        return row

    def score_fields(self, rows: Sequence[Q]) -> dict[str, Any]:
        """Return the fields of `TaskScore` that only this method has."""
        del rows
        return {}

    def alternative_predictions(self, rows: Sequence[Q]) -> Mapping[str, Sequence[int | None]]:
        """Return other ways to choose answers from the same rows, as further sides of comparisons.

        Returns:
            Name → the chosen option of each row.
        """
        del rows
        return {}


def find_method(name: str) -> type[EvalMethod[Any]]:
    """Return the class of the registered method with this name.

    Raises:
        UsageError: there is no such method.
    """
    if name not in METHODS:
        raise UsageError(f"no method '{name}'", hint=f"methods: {', '.join(METHODS)}")
    # Imported here, because a method may need libraries that other methods do not need.
    method: type[EvalMethod[Any]] = resolve_name(METHODS[name])
    return method


def question_row_adapter() -> TypeAdapter[QuestionRow]:
    """Return the validator for rows of all methods and imported ones. The field `method` decides the type."""
    return _union_adapter((*(find_method(name).row_type for name in METHODS), ImportedRow))


@cache  # Building a validator takes milliseconds. Methods that are registered later give another key.
def _union_adapter(row_types: tuple[type[QuestionRow], ...]) -> TypeAdapter[QuestionRow]:
    row_union: Any = reduce(or_, row_types)
    return TypeAdapter(Annotated[row_union, Field(discriminator="method")])


def count_accuracy(gold: Sequence[int], predictions: Sequence[int | None]) -> Accuracy:
    """Compute the accuracy, its Wilson interval, and macro-F1."""
    # A prediction of None (the answer names no option) counts as wrong, because it equals no gold index.
    right = sum(g == p for g, p in zip(gold, predictions, strict=True))
    return Accuracy(
        accuracy=right / len(gold),
        interval=wilson_interval(right, len(gold)),
        macro_f1=macro_f1(gold, predictions),
    )
