"""One question with its options."""

from dataclasses import dataclass

from meditron.store.identity import question_sha256

__all__ = ["Question"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One multiple-choice question; its texts are unchanged from the source."""

    id: str
    """Unique within its split."""
    text: str
    options: tuple[str, ...]
    """At least two, all different."""
    gold: int
    """Index of the right option."""
    context: str = ""
    """Text to read before the question, such as an abstract."""
    group: str | None = None
    """The source's own division: a subject, a category."""
    explanation: str = ""
    """The source's explanation of the gold option."""
    document: str = ""
    """`content_sha256` of the document that the question is made from; empty if it is from none."""

    @property
    def content_sha256(self) -> str:
        """Hexadecimal SHA-256 of the question's content, whatever its id, its file and its options' order.

        The content is the text with its context before it, and the options. The context is included because
        some sets ask one text about many contexts ("Does the abstract support the claim?"). Gold answer,
        group and explanation are excluded.
        """
        return question_sha256(f"{self.context} {self.text}", self.options)
