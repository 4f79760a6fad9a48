"""Naive Bayes on word counts: a baseline without a language model.

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
        """Fit the classifier to the gold answers. ValueError for no questions."""
        if not questions:
            raise ValueError("no training questions")
        documents = Counter(question.gold for question in questions)
        counts: dict[int, Counter[str]] = {gold: Counter() for gold in documents}
        for question in questions:
            counts[question.gold].update(_words(question))
        vocabulary = {word for class_counts in counts.values() for word in class_counts}
        # At least 1: texts without a single word give an empty vocabulary.
        totals = {
            gold: math.log(max(1, class_counts.total() + len(vocabulary)))
            for gold, class_counts in counts.items()
        }
        weights = {
            gold: {word: math.log(class_counts[word] + 1) - totals[gold] for word in vocabulary}
            for gold, class_counts in counts.items()
        }
        return cls({gold: math.log(n / len(questions)) for gold, n in documents.items()}, weights)

    def predict(self, question: Question) -> int:
        """Return the most likely class, the lowest of equals; unknown words are ignored."""
        words = _words(question)

        def logp(gold: int) -> float:
            known = self._weights[gold]
            # fsum: the result must not depend on the order of the words.
            return self._priors[gold] + math.fsum(known[word] for word in words if word in known)

        return max(sorted(self._priors), key=logp)


def _words(question: Question) -> list[str]:
    return _WORD.findall(f"{question.context} {question.text}".lower())
