"""The method `self-consistency`: several chains of thought vote (Wang et al. 2022, arXiv 2203.11171)."""

from typing import ClassVar, Literal, Self

from meditron.evaluate.config import EvalOptions
from meditron.evaluate.methods.generated import GeneratedMethod, GeneratedRow

__all__ = ["SelfConsistency", "SelfConsistencyRow"]

_TEMPERATURE = 0.7  # as in the paper


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

    @classmethod
    def from_options(cls, options: EvalOptions, seed: int) -> Self:
        """Create the method with the options' samples, at temperature 0.7 unless the options give another."""
        return cls(
            samples=options.samples,
            temperature=_TEMPERATURE if options.temperature is None else options.temperature,
            max_tokens=options.max_tokens,
            extraction=options.extraction,
            early_stop=options.early_stop,
            seed=seed,
        )
