r"""Statistics of a text that tell prose from tables, debris and repetition.

A word is a maximal run of letters, digits and underscores (`\w+`), because medical text is full of numbers,
units and signs: rules that split at blanks and count `=`, `95%` and `(p` as words drop a third of all
abstracts.
"""

import re
import unicodedata
from collections import Counter
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["TextStatistics", "text_statistics"]

_WORD = re.compile(r"\w+")
_NGRAM = 8  # words; shorter repeats are phrases such as "the confidence interval of the odds ratio was"
_MAX_WORDS = 50_000  # words of a longer text that are counted; 98 % of all papers are shorter
# The most frequent function words of English; one of them is in almost every sentence.
_STOP_WORDS = frozenset(
    """
    a an and are as at be been but by can did do for from had has have he her his if in into is it its
    may more no not of on or our she should such than that the their these they this those to was we
    were when which who will with you your
    """.split()  # noqa: SIM905
)
# A character that is no letter, digit or blank and belongs neither to prose nor to the notation of medicine.
_SYMBOL = re.compile(r"[^\w\s.,;:!?'\"()\[\]{}\-–—‐‑/%‰’‘“”…°·•*<>=≤≥±×−+~≈&#′″†‡§$€£@]")


@dataclass(frozen=True, slots=True)
class TextStatistics:
    """Counts and shares of one text; a share of an empty text is 0."""

    words: int
    """Number of words; at most 50,000 are counted."""
    letter_words: float
    """Share of the words that contain a letter."""
    stop_words: float
    """Share of the words that are frequent function words of English."""
    distinct_words: float
    """Number of distinct words divided by the number of words, among the first 200 words."""
    mean_word_length: float
    """Mean length of a word, in characters."""
    symbols: float
    """Share of the characters that are neither letters, digits, blanks nor signs of prose and statistics."""
    repeated_lines: float
    """Share of the characters that are in lines equal to an earlier line."""
    repeated_ngrams: float
    """Share of the runs of 8 words that occurred earlier in the text."""


def text_statistics(text: str) -> TextStatistics:
    """Return the statistics of a cleaned text."""
    words = _WORD.findall(text.lower())[:_MAX_WORDS]
    count = len(words)
    # Distinct words are few, so each property is looked up once a distinct word instead of once a word.
    ids: dict[str, int] = {}
    numbers = np.fromiter((ids.setdefault(word, len(ids)) for word in words), np.int64, count)
    occurrences = np.bincount(numbers, minlength=len(ids))
    lengths = np.fromiter(map(len, ids), np.int64, len(ids))
    with_letter = np.fromiter((not word.isdecimal() for word in ids), np.bool_, len(ids))
    function = np.fromiter((word in _STOP_WORDS for word in ids), np.bool_, len(ids))
    first = words[:200]
    return TextStatistics(
        words=count,
        letter_words=float(occurrences @ with_letter) / max(1, count),
        stop_words=float(occurrences @ function) / max(1, count),
        distinct_words=len(set(first)) / max(1, len(first)),
        mean_word_length=float(occurrences @ lengths) / max(1, count),
        symbols=_count_symbols(text) / max(1, len(text)),
        repeated_lines=_repeated_line_share(text),
        repeated_ngrams=_repeated_ngram_share(numbers),
    )


def _count_symbols(text: str) -> int:
    counts = Counter(_SYMBOL.findall(text))
    return sum(count for character, count in counts.items() if not _is_of_another_script(character))


def _is_of_another_script(character: str) -> bool:
    """Return True for vowel signs, joiners and punctuation, of which Hindi or Chinese prose is full."""
    category = unicodedata.category(character)
    return not character.isascii() and (category[0] in "MP" or category == "Cf")


def _repeated_line_share(text: str) -> float:
    lines = Counter(line for line in text.split("\n") if line)
    repeated = sum(len(line) * (count - 1) for line, count in lines.items())
    return repeated / max(1, len(text))


def _repeated_ngram_share(numbers: npt.NDArray[np.int64]) -> float:
    """Return the share of n-grams that are equal to an earlier one, by 64-bit hashes."""
    if len(numbers) < 2 * _NGRAM:
        return 0.0
    # A multiplicative hash of each word's number, then a polynomial over the n words; overflow is intended.
    hashed = (numbers.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    hashed ^= hashed >> np.uint64(29)
    grams = np.zeros(len(numbers) - _NGRAM + 1, np.uint64)
    for offset in range(_NGRAM):
        grams = grams * np.uint64(0x100000001B3) + hashed[offset : offset + len(grams)]
    grams.sort()
    return float(np.count_nonzero(grams[1:] == grams[:-1])) / len(grams)
