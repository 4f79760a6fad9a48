"""Naive Bayes on word counts: a baseline without a language model.

The classifier is multinomial naive Bayes with add-one smoothing (Manning, Raghavan and Schütze, Introduction
to Information Retrieval, 2008, ch. 13). A language model that does not beat it has learned little of the
task.
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
    """A classifier for questions that all have the same options, the classes."""

    def __init__(self, priors: dict[int, float], weights: dict[int, dict[str, float]]) -> None:
        self._priors = priors
        self._weights = weights
        """Class → word → log-probability."""

    @classmethod
    def train(cls, questions: Sequence[Question]) -> Self:
        """Fit the classifier to the gold answers. ValueError if there are no questions."""
        if not questions:
            raise ValueError("no training questions")
        documents = Counter(question.gold for question in questions)
        word_counts: dict[int, Counter[str]] = {gold: Counter() for gold in documents}
        for question in questions:
            word_counts[question.gold].update(_words(question))
        vocabulary = {word for class_counts in word_counts.values() for word in class_counts}
        # max(1, …): if no text contains a word, the vocabulary is empty and the logarithm of 0 is undefined.
        totals = {
            gold: math.log(max(1, class_counts.total() + len(vocabulary)))
            for gold, class_counts in word_counts.items()
        }
        weights = {
            gold: {word: math.log(class_counts[word] + 1) - totals[gold] for word in vocabulary}
            for gold, class_counts in word_counts.items()
        }
        return cls({gold: math.log(n / len(questions)) for gold, n in documents.items()}, weights)

    def predict(self, question: Question) -> int:
        """Return the index of the most likely class, of equally likely ones the lowest.

        Words that do not occur in the training questions are ignored.
        """
        words = _words(question)

        def logp(gold: int) -> float:
            known = self._weights[gold]
            # fsum is exact, so the result does not depend on the order of the words.
            return self._priors[gold] + math.fsum(known[word] for word in words if word in known)

        return max(sorted(self._priors), key=logp)


def _words(question: Question) -> list[str]:
    return _WORD.findall(f"{question.context} {question.text}".lower())
