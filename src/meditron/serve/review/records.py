"""What the database of reviews takes and returns."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from meditron.core.errors import UsageError
from meditron.serve.review.questions import Question
from meditron.serve.review.ratings import HARM_KIND, HARMFUL, PAIR, PREFERENCE, Values
from meditron.serve.review.rubric import PREFERENCES, Rubric

__all__ = [
    "Answer",
    "Item",
    "ItemLink",
    "NotOpenError",
    "RatedItem",
    "Review",
    "ReviewModel",
    "ReviewSetup",
    "State",
]

State = Literal["incomplete", "open", "closed"]
"""Answers are missing; people rate; finished."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_MOST_MODELS = 6
_SHORTEST_LABEL = 3  # a shorter label of a model occurs in any name by chance


class NotOpenError(UsageError):
    """A review that cannot be rated now, or whose results are still hidden."""

    status = 409


@dataclass(frozen=True, slots=True, kw_only=True)
class ReviewSetup:
    """Settings that a review is created from."""

    name: str
    questions: Sequence[Question]
    models: Sequence[str]
    """Labels of the models, in the order in which results list them."""
    rubric: str
    rubric_sha256: str
    settings: Mapping[str, Any]
    """System prompt and sampling of the answers, and the source of each model's answers."""
    seed: int | None = None
    """Seed of the sides and orders; None: a random one."""
    creator: str = "local"

    def check(self) -> None:
        """Raise UsageError if the name of the review or of a model cannot be used."""
        if not _NAME.fullmatch(self.name):
            raise UsageError(
                f"{self.name!r:.80}: the name of a review has up to 64 letters, digits, '.', '_' and '-'"
            )
        if not 2 <= len(self.models) <= _MOST_MODELS:
            raise UsageError(f"a review compares 2 to {_MOST_MODELS} models, got {len(self.models)}")
        for label in self.models:
            if label in PREFERENCES:
                raise UsageError(f"a model cannot be called {label}", hint="the results use this word")
            if self.models.count(label) > 1:
                raise UsageError(f"two models are called {label}", hint="--model NAME=MODEL gives one a name")
            if len(label) >= _SHORTEST_LABEL and label.casefold() in self.name.casefold():
                raise UsageError(
                    f"the name of the review, {self.name}, contains that of a model, {label}",
                    hint="raters see the review's name",
                )


@dataclass(frozen=True, slots=True)
class Review:
    """A review."""

    id: int
    name: str
    created: float
    creator: str
    closed: float | None
    closer: str | None
    seed: int
    settings: Mapping[str, Any]
    questions_sha256: str
    rubric: Rubric
    rubric_sha256: str
    questions: int
    """Number of questions."""
    missing: int
    """Number of answers that are still to be generated."""

    @property
    def state(self) -> State:
        """Stage of the review, which decides what can be done with it."""
        if self.closed is not None:
            return "closed"
        return "incomplete" if self.missing else "open"

    def require_closed(self) -> None:
        """Raise NotOpenError while the models' names are hidden."""
        if self.closed is None:
            raise NotOpenError(
                f"the review {self.name} is not closed: its results are hidden",
                hint=f"meditron review close {self.name}",
            )


@dataclass(frozen=True, slots=True)
class ReviewModel:
    """A model of a review."""

    id: int
    label: str
    identity: Mapping[str, Any]
    """Where its answers come from: MODEL, SHA-256, quantization, engine; empty before the first answer."""


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer of a model."""

    question: Question
    model: str
    """Label of the model."""
    text: str


@dataclass(frozen=True, slots=True)
class ItemLink:
    """A comparison in a rater's list."""

    token: str
    place: int
    """Position in the rater's order, from 0."""
    complete: bool


@dataclass(frozen=True, slots=True)
class Item:
    """A comparison as its rater may see it: no name of a model."""

    token: str
    place: int
    """Position in the rater's order, from 0."""
    question: str
    left: str
    right: str
    values: Values


@dataclass(frozen=True, slots=True, kw_only=True)
class RatedItem:
    """A comparison with the models' names, for the results."""

    rater: str
    token: str
    """Random, and not part of any export."""
    place: int
    question: Question
    left: str
    """Label of the model on the left."""
    right: str
    values: Values
    changes: int
    """Number of values that were changed after they had been saved."""
    saved: float | None
    """Time of the last change, seconds since 1970."""

    @property
    def preferred(self) -> str | None:
        """The preferred model, `tie`, `both-bad`, or None if there is no preference."""
        choice = self.values.get(PAIR, {}).get(PREFERENCE)
        return self.left if choice == "left" else self.right if choice == "right" else choice

    def answer_values(self, model: str) -> dict[str, Any]:
        """Return the values of a model's answer, without the kind of harm of one that is not harmful."""
        values = dict(self.values.get("left" if model == self.left else "right", {}))
        if values.get(HARMFUL) is not True:
            values.pop(HARM_KIND, None)
        return values
