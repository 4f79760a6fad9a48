"""Records of explanations: the difference of two results of one model, by the settings that differ."""

from typing import Literal

from pydantic import Field

from meditron.core.config import Record
from meditron.store.results import Interval

__all__ = ["Explanation", "FactorEffect", "Flip"]


class Flip(Record):
    """A question that two settings answer differently."""

    id: str
    gold: int
    before: int | None
    """Index of the option chosen before the change; None for an answer that names no option."""
    after: int | None
    """Index of the option chosen after it."""
    effect: Literal["gained", "lost", "both wrong"]
    """`gained`: wrong before and right after; `lost`: right before and wrong after."""


class FactorEffect(Record):
    """Change of a task's accuracy by a change of one factor, all other settings being equal."""

    factors: tuple[str, ...]
    """Names of the factors; several if no result with only some of them changed is known."""
    changes: tuple[str, ...]
    """The values before and after: `template: letters/1 / texts/1`."""
    n: int = Field(ge=0)
    """Number of questions."""
    before: float
    """Accuracy before the change."""
    after: float
    difference: float
    """Accuracy after the change minus that before it."""
    interval: Interval
    p: float | None
    """McNemar's exact two-sided p-value; None for other questions, which cannot be paired."""
    p_adjusted: float | None
    """p adjusted by Holm's method for the factors of the explanation; None for fewer than 6 questions."""
    gained: int = Field(ge=0)
    """Number of questions that were wrong before and are right after the change."""
    lost: int = Field(ge=0)
    """Number of questions that were right before and are wrong after the change."""
    flips: tuple[Flip, ...] = ()
    """Every question whose answer changed."""


class Explanation(Record):
    """The difference of two accuracies of one model on one task, attributed to the settings that differ.

    The differences of the effects add up to `difference`.
    """

    a: str
    b: str
    task: str
    n_a: int = Field(ge=1)
    n_b: int = Field(ge=1)
    n: int = Field(ge=1)
    """Number of questions that both results have with the same content."""
    accuracy_a: float
    accuracy_b: float
    difference: float
    """Accuracy of b minus that of a, each on all of its questions."""
    factors: tuple[str, ...]
    """Names of the factors in which the results differ; `data` if their questions differ."""
    effects: tuple[FactorEffect, ...]
    """Effect of each factor, changed one after the other from a's value to b's."""
    missing: tuple[str, ...] = ()
    """Evaluations that would separate factors which were changed together."""
