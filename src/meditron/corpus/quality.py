"""The pass that gives each document a quality score between 0 and 1.

The score is the mean of five parts, each between 0 and 1 and linear between its ends. It compares texts of
one kind; it says nothing of the truth of a text or of its evidence.

| Part | 0 | 1 |
|---|---|---|
| length | 0 words | 200 words and more |
| prose: share of function words | 0.10 | 0.30 |
| words: share of words that have a letter | 0.60 | 0.95 |
| sentences: mean number of words | 0, or 80 and more | 10 to 30 |
| novelty: share of runs of 8 words that are repeats | 0.30 and more | 0.05 |

A document that brings its own score (`meta.quality`, a number from 0 to 1) keeps it.
"""

import re
from dataclasses import replace

from meditron.core.errors import SourceError
from meditron.corpus.candidate import Candidate, CorpusPass, DropReason
from meditron.corpus.text_statistics import TextStatistics

__all__ = ["Quality", "quality_score"]

# A sign that ends a sentence, followed by a blank; the point of `1.5` and of `e.g.,` is none.
# Signs of other scripts need no blank after them.
_SENTENCE_END = re.compile(r"[.!?](?=[\s)\]\"”’]|$)|[。！？।؟۔]|\n")


class Quality(CorpusPass):
    """A pass that adds the field `quality` if the config asks for it."""

    def process_document(self, candidate: Candidate) -> Candidate | DropReason:
        """Return the document with its score.

        Raises:
            SourceError: Its own score is not a number from 0 to 1.
        """
        if not self.config.quality:
            return candidate
        score = candidate.document.meta.get("quality")
        if score is None:
            score = quality_score(candidate.text, candidate.statistics)
        elif isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score <= 1:
            raise SourceError(
                f"document {candidate.document.id} of source '{candidate.source}': meta.quality must be a "
                f"number from 0 to 1, got {score!r}"
            )
        return replace(candidate, row_fields={**candidate.row_fields, "quality": round(float(score), 4)})


def quality_score(text: str, statistics: TextStatistics) -> float:
    """Return the score of a text, from 0 to 1."""
    if not statistics.words:
        return 0.0
    sentence = statistics.words / max(1, len(_SENTENCE_END.findall(text)))
    parts = (
        _ramp(statistics.words, 0, 200),
        _ramp(statistics.stop_words, 0.10, 0.30),
        _ramp(statistics.letter_words, 0.60, 0.95),
        min(_ramp(sentence, 0, 10), _ramp(sentence, 80, 30)),
        _ramp(max(statistics.repeated_ngrams, statistics.repeated_lines), 0.30, 0.05),
    )
    return sum(parts) / len(parts)


def _ramp(value: float, zero: float, one: float) -> float:
    """Return 0 at `zero`, 1 at `one`, and the linear interpolation between them, within 0 and 1."""
    return min(1.0, max(0.0, (value - zero) / (one - zero)))
