"""The method `cot`, chain of thought: the model reasons, and the option that its text names is the answer."""

from typing import ClassVar, Literal, Self

from meditron.evaluate.config import EvalOptions
from meditron.evaluate.methods.generated import GeneratedMethod, GeneratedRow

__all__ = ["ChainOfThought", "ChainOfThoughtRow"]


class ChainOfThoughtRow(GeneratedRow):
    """The generated text for one question, and the option that it names."""

    method: Literal["cot"]


class ChainOfThought(GeneratedMethod[ChainOfThoughtRow]):
    """One generated text per question, greedy by default."""

    name: ClassVar[str] = "cot"
    description: ClassVar[str] = (
        "the model reasons, and the option that its text names last is the answer; a text that names none is "
        "wrong"
    )
    row_type = ChainOfThoughtRow

    @classmethod
    def from_options(cls, options: EvalOptions, seed: int) -> Self:
        """Create the method: one sample, greedy unless the options give a temperature."""
        return cls(
            samples=1,
            temperature=options.temperature or 0.0,
            max_tokens=options.max_tokens,
            extraction=options.extraction,
            seed=seed,
        )
