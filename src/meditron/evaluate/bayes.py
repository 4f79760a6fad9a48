"""Naive Bayes on word counts: what a sentence's words alone give away, without a language model.

Multinomial, with one added to every count (Manning, Raghavan and Schütze, Introduction to Information
Retrieval, 2008, ch. 13). A language model that does not beat it has learned little of the task.
"""

import math
import re
from collections import Counter
from collections.abc import Sequence
from typing import Self

from meditron.tasks.question import Question

__all__ = ["NaiveBayes"]

_WORD = re.compile(r"\w+")


class NaiveBayes:
    """A classifier of questions whose options are the same classes for all."""

    def __init__(self, priors: dict[int, float], weights: dict[int, dict[str, float]]) -> None:
        self._priors = priors
        self._weights = weights
        """Class → word → log-probability."""

    @classmethod
    def train(cls, questions: Sequence[Question]) -> Self:
        """Learn from the gold answers. ValueError for no questions."""
        if not questions:
            raise ValueError("nothing to learn from")
        documents = Counter(question.gold for question in questions)
        counts: dict[int, Counter[str]] = {gold: Counter() for gold in documents}
        for question in questions:
            counts[question.gold].update(_words(question))
        vocabulary = {word for found in counts.values() for word in found}
        totals = {gold: math.log(max(1, found.total() + len(vocabulary))) for gold, found in counts.items()}
        weights = {
            gold: {word: math.log(found[word] + 1) - totals[gold] for word in vocabulary}
            for gold, found in counts.items()
        }
        return cls({gold: math.log(n / len(questions)) for gold, n in documents.items()}, weights)

    def predict(self, question: Question) -> int:
        """The likeliest class, the lowest of equals; words never learned from say nothing."""
        words = _words(question)

        def logp(gold: int) -> float:
            known = self._weights[gold]
            return self._priors[gold] + math.fsum(known[word] for word in words if word in known)

        return max(sorted(self._priors), key=logp)


def _words(question: Question) -> list[str]:
    return _WORD.findall(f"{question.context} {question.text}".lower())
