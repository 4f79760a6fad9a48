"""The method `self-consistency`: several chains of thought vote (Wang et al. 2022, arXiv 2203.11171)."""

from typing import ClassVar, Literal

from meditron.evaluate.methods.generated import GeneratedMethod, GeneratedRow

__all__ = ["SelfConsistency", "SelfConsistencyRow"]


class SelfConsistencyRow(GeneratedRow):
    """The sampled texts for one question, and their votes."""

    method: Literal["self-consistency"]


class SelfConsistency(GeneratedMethod[SelfConsistencyRow]):
    """Several sampled texts per question; the option that most of them name is the answer."""

    name: ClassVar[str] = "self-consistency"
    description: ClassVar[str] = (
        "the model reasons several times, and the option that most texts name is the answer; texts that name "
        "none do not vote"
    )
    row_type = SelfConsistencyRow
    votes: ClassVar[bool] = True
    default_temperature: ClassVar[float] = 0.7  # as in the paper
