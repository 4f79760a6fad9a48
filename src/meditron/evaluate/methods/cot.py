"""The method `cot`, chain of thought: the model reasons, and the option that its text names is the answer."""

from typing import ClassVar, Literal

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
