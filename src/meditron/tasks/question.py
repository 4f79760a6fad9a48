"""One question with its options."""

from dataclasses import dataclass

__all__ = ["Question"]


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
