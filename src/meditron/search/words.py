"""Normalized words, in which documents and questions are compared.

A character is decomposed (NFKD), case-folded and stripped of marks; the result is letters and digits. So
`É`, `é` and `e` with a combining accent are one letter, `ﬁ` is `fi` and `m²` is `m2`. All other characters
separate words, except invisible ones (soft hyphen, zero-width joiner) and the Arabic elongation mark, which
are left out. Digits of all scripts are those of ASCII, and Persian's kaf and yeh those of Arabic. In scripts
that are written without blanks, such as Chinese, each character is a word.

`split_words` is the definition. `character_tables` describes the same rule character by character, in arrays
that compiled code reads.
"""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

__all__ = [
    "HASH_BASE",
    "IGNORED",
    "LETTER",
    "SEPARATOR",
    "WITHOUT_BLANKS",
    "WORD",
    "CharacterTables",
    "character_tables",
    "split_words",
    "weighted_count",
]

SEPARATOR, LETTER, IGNORED, WORD = range(4)
"""Kinds of characters: between words, part of a word, left out, a word by itself."""
HASH_BASE = 0x9E3779B97F4A7C15
"""Base of the polynomial hash of a word's characters, modulo 2^64. It is odd: no character is shifted out."""

_LAST = 0x323B0
"""First code point after the last assigned letter. Later ones (tags, private use) separate words."""
WITHOUT_BLANKS = (
    *((0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF), (0x3400, 0x4DBF)),
    *((0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x323AF)),
)
"""First and last code points of the scripts that are written without blanks, in which each character is a
word: Thai to Myanmar, Khmer, kana, and Chinese characters with their extensions."""

_ELONGATION = "\u0640"
# Arabic and Persian keyboards write different code points for the same letters.
_VARIANTS = {"\u06a9": "\u0643", "\u06cc": "\u064a", "\u0649": "\u064a"}


@dataclass(frozen=True)
class CharacterTables:
    """Effect of each code point below `len(kinds)` on a word and on the word's hash."""

    kinds: npt.NDArray[np.uint8]
    """SEPARATOR, LETTER, IGNORED or WORD."""
    factors: npt.NDArray[np.uint64]
    """HASH_BASE ** (number of letters that the character becomes), modulo 2^64."""
    terms: npt.NDArray[np.uint64]
    """Hash of those letters: a word's hash becomes `hash * factor + term`, modulo 2^64."""


def split_words(text: str) -> list[str]:
    """Return the normalized words of a text."""
    return text.translate(_REPLACEMENTS).split()


def weighted_count(words: Sequence[str]) -> float:
    """Return the number of words, of which a character that is a word by itself counts half.

    Eight characters of Chinese say about as much as four or five English words.
    """
    return sum(0.5 if len(word) == 1 and _is_word(ord(word)) else 1 for word in words)


def _fold(character: str) -> str | None:
    """Return the letters that a character becomes, a blank for a separator, None for an ignored character."""
    if character == _ELONGATION:
        return None
    if character.isdecimal():
        return str(unicodedata.decimal(character))
    character = _VARIANTS.get(character, character)
    decomposed = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", character).casefold())
    if letters := "".join(filter(str.isalnum, decomposed)):
        return letters
    # Marks (M) and format characters (Cf) have no width of their own.
    invisible = unicodedata.category(character)[0] == "M" or unicodedata.category(character) == "Cf"
    return None if invisible else " "


def _is_word(code: int) -> bool:
    return any(first <= code <= last for first, last in WITHOUT_BLANKS)


class _Replacements(dict[int, str | None]):
    """Replacements for `str.translate`, computed when a character occurs for the first time."""

    def __missing__(self, code: int) -> str | None:
        letters = _fold(chr(code)) if code < _LAST else " "
        self[code] = f" {letters} " if letters and letters != " " and _is_word(code) else letters
        return self[code]


_REPLACEMENTS = _Replacements()


@lru_cache(maxsize=1)
def character_tables() -> CharacterTables:
    """Return the tables, which take a third of a second to compute and 3.5 MB."""
    kinds = np.zeros(_LAST, np.uint8)
    lengths = np.zeros(_LAST, np.uint8)
    terms = np.zeros(_LAST, np.uint64)
    modulus = 1 << 64
    for code in range(_LAST):
        letters = _fold(chr(code))
        if letters is None:
            kinds[code] = IGNORED
        elif letters != " ":
            kinds[code] = WORD if _is_word(code) else LETTER
            lengths[code] = len(letters)
            term = 0
            for letter in letters:
                term = (term * HASH_BASE + ord(letter)) % modulus
            terms[code] = term
    powers = np.array([pow(HASH_BASE, n, modulus) for n in range(256)], np.uint64)
    return CharacterTables(kinds, powers[lengths], terms)
