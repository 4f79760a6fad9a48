"""One question with its options."""

from dataclasses import dataclass
from hashlib import sha256

from meditron.store.identity import question_sha256

__all__ = ["Question", "place"]


@dataclass(frozen=True, slots=True)
class Question:
    """One multiple-choice question, its texts as the source has them."""

    id: str
    """Unique within its split."""
    text: str
    options: tuple[str, ...]
    """Two at least, all different."""
    gold: int
    """The right option's index."""
    context: str = ""
    """What is to be read first: an abstract."""
    group: str | None = None
    """The source's own division: a subject, a category."""
    explanation: str = ""
    """Why the gold option is right, in the source's words."""
    document: str = ""
    """`content_sha256` of the document that the question is made from; empty if it is from none."""

    @property
    def content_sha256(self) -> str:
        """Hexadecimal SHA-256 of the question's content, whatever its id, its file and its options' order.

        The content is the text with its context before it, and the options. The context is included because
        some sets ask one text of many contexts ("Does the abstract support the claim?"). Gold answer, group
        and explanation are excluded.
        """
        return question_sha256(f"{self.context} {self.text}", self.options)


def place(identity: str) -> tuple[bytes, str]:
    """Where the question, or the document, of this id stands in an order that knows nothing of its text."""
    return sha256(identity.encode()).digest(), identity
