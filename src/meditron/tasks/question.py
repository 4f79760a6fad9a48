"""The type of a multiple-choice question."""

from dataclasses import dataclass

from meditron.store.identity import question_sha256

__all__ = ["Question"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One multiple-choice question. Its texts are the source's, unchanged."""

    id: str
    """Id of the question, unique within its split."""
    text: str
    options: tuple[str, ...]
    """The options: at least two, all different."""
    gold: int
    """Index of the right option."""
    context: str = ""
    """Text to read before the question, such as an abstract."""
    group: str | None = None
    """Group of the question in the source, such as a subject or a category."""
    explanation: str = ""
    """The source's explanation of the gold option."""
    option_order: tuple[int, ...] = ()
    """For a question with permuted options: the index in the source of each option; else empty."""
    document_sha256: str = ""
    """`content_sha256` of the document that the question was made from; empty if there is no such
    document."""

    @property
    def content_sha256(self) -> str:
        """Hexadecimal SHA-256 of the question's content: context, text and options in any order.

        The context is included because some datasets ask the same question about many contexts ("Does the
        abstract support the claim?"). Id, gold answer, group and explanation do not change the hash.
        """
        return question_sha256(f"{self.context} {self.text}", self.options)
