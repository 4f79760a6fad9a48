"""The passes that drop texts which are no prose: tables of numbers, debris, repetition and error pages.

The thresholds are made for medicine. General rules drop 29 % of abstracts and half of all papers, because
they take `95% CI 1.1–2.3` for debris; those of `FilterConfig` drop less than 0.1 % of either
(`benchmarks/filters.py`).
"""

import re

from meditron.corpus.candidate import Candidate, CorpusPass, DropReason
from meditron.corpus.languages import is_english

__all__ = ["ErrorPage", "TextFilters"]

_FEW_LETTERS = DropReason("few words with letters")
_FEW_STOP_WORDS = DropReason("few function words")
_SYMBOLS = DropReason("many symbols")
_REPEATED_LINES = DropReason("repeated lines")
_REPEATED_NGRAMS = DropReason("repeated word sequences")
_ERROR_PAGE = DropReason("error page")

_MIN_WORDS = 50  # shares of fewer words vary too much
_MIN_WORDS_REPEATED = 100  # a short text that repeats itself adds little to a corpus, and harms little
_LONGEST_ERROR_PAGE = 2_000  # characters; an error page says little else
_CODE = r"(?:4(?:00|01|03|04|10|29)|50[0234])"
# A code counts with the words that belong to it, or with `error` on a line of its own: abstracts write "a
# total of 400 errors" and "403 unauthorized absences".
_ERROR = re.compile(
    r"\b(?:400[\s:–-]{1,3}bad request|404[\s:–-]{1,3}(?:(?:page|file) )?not found"
    r"|429[\s:–-]{1,3}too many requests|500[\s:–-]{1,3}internal server error|502[\s:–-]{1,3}bad gateway"
    r"|503[\s:–-]{1,3}service (?:temporarily )?unavailable|504[\s:–-]{1,3}gateway time-?out)\b"
    r"|\b(?:401[\s:–-]{1,3}unauthorized|403[\s:–-]{1,3}forbidden|410[\s:–-]{1,3}gone)\b(?! (?-i:[a-z]))"
    rf"|^[^\w\n]*(?:http )?(?:error[ :–-]{{1,3}}{_CODE}|{_CODE}[ :–-]{{1,3}}error)[^\w\n]*$"
    r"|\bpage (?:you (?:requested|are looking for)|(?:was|could)? ?not (?:be )?found)\b"
    r"|\bthe requested url\b"
    r"|\b(?:please )?(?:enable|turn on) (?:javascript|cookies)\b|\bjavascript (?:is|must be) (?:disabled"
    r"|enabled|required)"
    r"|\b(?:verify|confirm) (?:that )?you(?:'re| are) (?:a )?(?:not a )?(?:human|robot)\b"
    r"|\bcomplete the captcha\b"
    r"|\bunusual traffic from your\b|\byour session has expired\b|\bchecking your browser before\b"
    r"|\baccess (?:to this (?:page|resource) )?(?:is |has been )?denied\b[^|]{0,80}\b(?:server|permission"
    r"|reference)\b"
    r"|\blorem ipsum dolor\b",
    re.IGNORECASE | re.MULTILINE,
)


class TextFilters(CorpusPass):
    """A pass that compares the statistics of each text with the thresholds of its source."""

    drop_reasons = (_FEW_LETTERS, _FEW_STOP_WORDS, _SYMBOLS, _REPEATED_LINES, _REPEATED_NGRAMS)

    def process_document(self, candidate: Candidate) -> Candidate | DropReason:
        """Return the document, or the first reason to drop it."""
        limits, statistics = self.config.filters_of(candidate.source), candidate.statistics
        if statistics.words < _MIN_WORDS:
            return candidate
        # The function words are English: they do not apply to a text in another allowed language.
        languages = (candidate.document.language,) if candidate.document.language else self.config.languages
        english = bool(languages) and all(map(is_english, languages))
        long = statistics.words >= _MIN_WORDS_REPEATED
        failed = {
            _FEW_LETTERS: statistics.letter_words < limits.min_letter_words,
            _FEW_STOP_WORDS: english and statistics.stop_words < limits.min_stop_words,
            _SYMBOLS: statistics.symbols > limits.max_symbols,
            _REPEATED_LINES: long and statistics.repeated_lines > limits.max_repeated_lines,
            _REPEATED_NGRAMS: long and statistics.repeated_ngrams > limits.max_repeated_ngrams,
        }
        return next((reason for reason, true in failed.items() if true), candidate)


class ErrorPage(CorpusPass):
    """A pass that drops short texts that are a web server's error or a page that a script was shown."""

    drop_reasons = (_ERROR_PAGE,)

    def process_document(self, candidate: Candidate) -> Candidate | DropReason:
        """Return the document, or the reason to drop it."""
        if (
            not self.config.filters_of(candidate.source).error_pages
            or len(candidate.text) > _LONGEST_ERROR_PAGE
        ):
            return candidate
        return _ERROR_PAGE if _ERROR.search(candidate.text) else candidate
