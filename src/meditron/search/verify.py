"""Exact comparison of a document with the questions that the compiled search found in it."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from meditron.search.question_index import (
    IndexedQuestion,
    QuestionIndex,
    needed_context_grams,
    word_runs,
)
from meditron.search.scan import GRAM, RUN, distances
from meditron.search.words import split_words
from meditron.store.contamination import BenchmarkHit, HitKind

__all__ = ["find_questions"]

_ALONE = 8
"""Minimum length of a question that counts as contained without its options. Shorter ones are common
phrases: `the pyruvate dehydrogenase complex`."""
_PART = 0.3
"""Minimum share of a question's words that distinctive runs of 13 words must cover."""
_OPTION_GAP = 30
"""Maximum number of words between a short question and its options, beyond the options and their labels."""


def find_questions(index: QuestionIndex, text: str) -> tuple[BenchmarkHit, ...]:
    """Return the questions that a document contains, in the order of the index, each once."""
    candidates = index.candidates(text)
    if not len(candidates):
        return ()
    document = _DocumentWords(split_words(text))
    hits: dict[int, BenchmarkHit] = {}
    for unit in candidates.tolist():
        question = index.questions[unit // 2]
        # The text comes before the context: of a question found by both, the kind is that of the text.
        kind = _compare_context(question, document) if unit % 2 else _compare_text(question, document, index)
        if kind is not None:
            hit = BenchmarkHit(question.benchmark, question.id, question.content_sha256, kind)
            hits.setdefault(unit // 2, hit)
    return tuple(hits.values())


@dataclass(frozen=True)
class _DocumentWords:
    """The normalized words of a document, and their sequences."""

    words: Sequence[str]

    @cached_property
    def ids(self) -> dict[str, int]:
        """Number of each different word."""
        return {word: number for number, word in enumerate(dict.fromkeys(self.words))}

    @cached_property
    def numbers(self) -> npt.NDArray[np.int64]:
        """The words as numbers, int64 (n)."""
        return np.array([self.ids[word] for word in self.words], np.int64)

    @cached_property
    def grams(self) -> set[tuple[str, ...]]:
        """All runs of 5 words."""
        return set(word_runs(self.words, GRAM))

    @cached_property
    def runs(self) -> set[tuple[str, ...]]:
        """All runs of 13 words."""
        return set(word_runs(self.words, RUN))


def _compare_text(
    question: IndexedQuestion, document: _DocumentWords, index: QuestionIndex
) -> HitKind | None:
    """Return what a document contains of a question's text; None if nothing that identifies the question."""
    length = len(question.text)
    # Words that the document lacks get a number that none of its words has.
    text = np.array([document.ids.get(word, -1) for word in question.text], np.int64)
    edits = np.empty(len(document.words), np.int32)
    distances(text, document.numbers, edits)
    if question.length >= _ALONE and (edits == 0).any():
        return "question"
    if not question.is_short:
        if (edits <= length // 5).any():
            return "edited question"
        return "part of the question" if _contains_part(question, document, index) else None
    ends = [
        end
        for end in np.flatnonzero(edits <= length // 10).tolist()
        if _options_follow(question, document, end)
    ]
    if not ends:
        return None
    return "edited question" if edits[ends].min() else "question"


def _contains_part(question: IndexedQuestion, document: _DocumentWords, index: QuestionIndex) -> bool:
    """Return True if runs of 13 words in the document, and in no other question, cover 30 % of a question."""
    # Without the share, "a … man comes to the physician because of a 2-week history of" would be a question.
    covered: set[int] = set()
    for start, run in enumerate(word_runs(question.text, RUN)):
        if run in document.runs and run not in index.common_runs:
            covered.update(range(start, start + RUN))
    return len(covered) >= _PART * len(question.text)


def _compare_context(question: IndexedQuestion, document: _DocumentWords) -> HitKind | None:
    """Return "context" if a document contains at least half of the 5-word runs of a question's context."""
    counts = Counter(word_runs(question.context, GRAM))
    contained = sum(count for gram, count in counts.items() if gram in document.grams)
    return "context" if contained >= needed_context_grams(len(question.context)) else None


def _options_follow(question: IndexedQuestion, document: _DocumentWords, end: int) -> bool:
    """Return True if at least half of a question's options, and two of them, follow a word of a document."""
    span = sum(len(option) + 3 for option in question.options) + _OPTION_GAP
    passage = f" {' '.join(document.words[end + 1 : end + 1 + span])} "
    present = sum(f" {' '.join(option)} " in passage for option in question.options if option)
    return present >= max(2, len(question.options) / 2)
