"""The interface of an evaluation method, and the union of all methods' row types."""

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
from meditron.evaluate.rows import QuestionRow
from meditron.store.results import Accuracy

__all__ = ["EvalMethod", "count_accuracy", "find_method", "question_row_adapter"]

Q = TypeVar("Q", bound=QuestionRow)


class EvalMethod(ABC, Generic[Q]):
    """A way to take a model's answer to a question: its row type, its cache key and its scoring."""

    name: ClassVar[str]
    """Name in recipes, flags and results."""
    description: ClassVar[str]
    """One clause for reports: how an answer is taken."""
    row_type: type[Q]
    """A subclass of QuestionRow whose field `method` is the literal name."""
    # A kill costs one group at most; the engine forms smaller batches by length within it.
    group_size: ClassVar[int] = 64
    """Questions answered between two writes of the rows file."""

    @classmethod
    def from_options(cls, options: EvalOptions) -> Self:
        """Create the method with its settings; `options` is unused by methods without settings."""
        del options
        return cls()

    @abstractmethod
    def cache_key(self) -> Mapping[str, object]:
        """Return the settings of the method that decide what `answer` returns, as plain JSON values."""

    @abstractmethod
    def answer(
        self, model: EvalModel, prompts: Sequence[EvalPrompt], fields: Sequence[Mapping[str, Any]]
    ) -> list[Q]:
        """Answer questions.

        Args:
            model: The model. The method takes the capability that it needs from it, such as `model.scorer`.
            prompts: The questions as prompts; at most `group_size`.
            fields: For each prompt the fields of its row that do not depend on the answer.

        Returns:
            One row for each prompt, in their order.

        Raises:
            UsageError: the model's engine lacks the capability.
            MeditronError: a prompt cannot be scored, or a figure is not finite.
        """

    def choose(self, row: Q) -> Q:
        """Apply settings that only select among a row's stored figures, such as a rule."""
        return row

    def summarize(self, rows: Sequence[Q]) -> dict[str, Any]:
        """Return the fields of `TaskScore` that are specific to the method."""
        del rows
        return {}

    def alternatives(self, rows: Sequence[Q]) -> Mapping[str, Sequence[int | None]]:
        """Return other predictions from the same rows to compare models with, by name."""
        del rows
        return {}


def find_method(name: str) -> type[EvalMethod[Any]]:
    """Return the class of a registered method.

    Raises:
        UsageError: there is no such method.
    """
    if name not in METHODS:
        raise UsageError(f"no method '{name}'", hint=f"methods: {', '.join(METHODS)}")
    # Imported on use: a method may need libraries that the others do not.
    method: type[EvalMethod[Any]] = resolve_name(METHODS[name])
    return method


def question_row_adapter() -> TypeAdapter[QuestionRow]:
    """Return the validator of the union of all methods' rows; the field `method` selects the row type."""
    return _union_adapter(tuple(find_method(name).row_type for name in METHODS))


@cache  # Building a validator takes milliseconds; the key is the set of methods registered now.
def _union_adapter(row_types: tuple[type[QuestionRow], ...]) -> TypeAdapter[QuestionRow]:
    union: Any = reduce(or_, row_types)
    return TypeAdapter(Annotated[union, Field(discriminator="method")])


def count_accuracy(gold: Sequence[int], predictions: Sequence[int | None]) -> Accuracy:
    """Compute accuracy with its Wilson interval, and macro-F1."""
    # None (an answer that names no option) is never equal to a gold index: it counts as wrong.
    right = sum(g == p for g, p in zip(gold, predictions, strict=True))
    return Accuracy(
        accuracy=right / len(gold),
        interval=wilson_interval(right, len(gold)),
        macro_f1=macro_f1(gold, predictions),
    )
