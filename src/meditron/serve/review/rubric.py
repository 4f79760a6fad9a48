"""What raters decide about answers: scales, kinds of harm and of bias, preferences, categories of questions.

A review keeps the text of the rubric it was created with, so its results do not change with the package.
"""

import hashlib
import tomllib
from functools import cached_property, lru_cache
from importlib.resources import files
from typing import Any, Literal, Self

from pydantic import Field, ValidationError

from meditron.core.config import Config, first_problem
from meditron.core.errors import InputError

__all__ = [
    "HIGHEST",
    "LOWEST",
    "PREFERENCES",
    "Category",
    "Kind",
    "Preference",
    "Rubric",
    "Scale",
    "package_rubric",
]

LOWEST, HIGHEST = 1, 5
"""Ends of every scale."""
Preference = Literal["left", "right", "tie", "both-bad"]
PREFERENCES: dict[Preference, str] = {
    "left": "Answer 1 is better",
    "right": "Answer 2 is better",
    "tie": "Equally good",
    "both-bad": "Both are bad",
}
"""Preference between the answers of a pair → its label. Answer 1 is on the left."""
_BIAS = "bias"


class Kind(Config):
    """A kind of harm, of bias or of question."""

    key: str
    label: str
    description: str = ""


class Scale(Config):
    """A question about an answer with the replies 1 to 5."""

    key: str
    label: str
    question: str
    low: str
    """Meaning of 1."""
    high: str
    """Meaning of 5."""
    better: Literal["high", "low"]
    """The better end."""
    note: str = ""


class Harmful(Config):
    """The yes/no question about harm, and the kinds of harm."""

    question: str
    kinds: tuple[Kind, ...]


class Category(Kind):
    """A category of questions."""

    subkinds: tuple[Kind, ...]


class Rubric(Config):
    """Everything that raters decide."""

    version: int = Field(ge=1)
    scales: tuple[Scale, ...] = Field(min_length=1)
    harmful: Harmful
    categories: tuple[Category, ...]

    @classmethod
    @lru_cache(maxsize=8)  # every request needs the rubric of its review
    def parse(cls, text: str) -> Self:
        """Read a rubric; InputError names the key."""
        try:
            fields: dict[str, Any] = tomllib.loads(text)
            return cls(**fields)
        except ValidationError as error:
            key, problem = first_problem(error)
            raise InputError("the rubric of a review", problem, place=key) from error
        except tomllib.TOMLDecodeError as error:
            raise InputError("the rubric of a review", str(error)) from error

    @cached_property
    def bias_kinds(self) -> tuple[Kind, ...]:
        """The kinds of bias: those of the questions on bias, and `other`."""
        kinds = next((category.subkinds for category in self.categories if category.key == _BIAS), ())
        return (*kinds, Kind(key="other", label="other"))


def package_rubric() -> tuple[str, str]:
    """Return the text of the package's rubric and its SHA-256."""
    content = files("meditron.serve.review").joinpath("rubric.toml").read_bytes()
    return content.decode(), hashlib.sha256(content).hexdigest()
