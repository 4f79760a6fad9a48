"""The order of the questions and the sides of the answers for one rater.

Both follow from the review's secret seed and the rater's name by SHA-256, so they can be checked after the
review is closed, and a server that is restarted gives the same ones. Every rater gets each model equally
often on each side (the numbers differ by one if the number of questions is odd).
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Generic, TypeVar

__all__ = ["Pairing", "pair_answers"]

M = TypeVar("M")
Q = TypeVar("Q")


@dataclass(frozen=True, slots=True)
class Pairing(Generic[Q, M]):
    """Two answers to one question, side by side."""

    question: Q
    left: M
    right: M


def pair_answers(questions: Sequence[Q], models: Sequence[M], seed: int, rater: str) -> list[Pairing[Q, M]]:
    """Return what a rater compares, in the rater's order: every pair of models on every question."""

    def draw(*parts: object) -> bytes:
        return hashlib.sha256("\0".join(map(str, (seed, rater, *parts))).encode()).digest()

    pairings = []
    for number, (first, second) in enumerate(combinations(models, 2)):
        digests = [draw("side", number, place) for place in range(len(questions))]
        shuffled = sorted(range(len(questions)), key=digests.__getitem__)
        # For an odd number of questions the rater decides which model is on the left once more.
        swapped = set(shuffled[: (len(questions) + draw("odd", number)[0] % 2) // 2])
        pairings += [
            Pairing(question, second, first) if place in swapped else Pairing(question, first, second)
            for place, question in enumerate(questions)
        ]
    order = sorted(range(len(pairings)), key=lambda place: draw("order", place))
    return [pairings[place] for place in order]
