r"""MinHash signatures of texts, for the search of near-duplicates (Broder 1997; Leskovec et al., ch. 3).

A text's words are the matches of `\w+` in its lower-case NFKC form; in scripts that are written without
blanks, such as Chinese, each character is a word. Its shingles are the hashes of every five consecutive
words. A text of fewer words has one shingle, of all of them; a text without words has none.
The signature has, for each of `hashes` random permutations of the 32-bit integers, the smallest permuted
shingle. Two texts agree in each value with a probability of their Jaccard similarity: the number of common
shingles divided by the number of all their shingles. Each band of `rows = hashes / bands` values is hashed to
one key. Texts of similarity s have at least one key in common with probability 1 - (1 - s^rows)^bands.
"""

import re
import unicodedata
from functools import cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from meditron.search.kernels import compiled
from meditron.search.words import WITHOUT_BLANKS

__all__ = ["SHINGLE_WORDS", "SKETCH_SIZE", "MinHash", "Signature", "shingle_hashes"]

SHINGLE_WORDS = 5
"""Number of words of a shingle."""
SKETCH_SIZE = 2_048
"""Maximum number of shingles that a sketch contains: all of an abstract, a sample of a long paper."""

_CODE_POINTS = 0x110000
_SURROGATES = range(0xD800, 0xE000)
# Latin, Greek and Cyrillic letters; punctuation, arrows and mathematical signs.
_SIMPLE_RANGES = (range(0x0300), range(0x0370, 0x0530), range(0x1E00, 0x2C00))
_TABLE_SIZE = 0x2C00
_COMPLEX = np.uint32(0xFFFFFFFF)
_ALONE = np.uint32(0x80000000)
"""Bit of the table entries of characters that are words by themselves."""
# Odd constants: of the golden ratio (Knuth's multiplicative hash), and FNV-1a's prime and offset.
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_FNV_PRIME = np.uint64(0x100000001B3)
_FNV_OFFSET = np.uint64(0xCBF29CE484222325)


class Signature(NamedTuple):
    """The hashes by which a text is compared with others."""

    keys: npt.NDArray[np.uint64]
    """One key for each band, shape (bands,); all 0 if the text has no word. Other keys are never 0."""
    sketch: npt.NDArray[np.uint32]
    """The shingles; of a text with more than SKETCH_SIZE different ones, the smallest, sorted."""
    shingle_count: int
    """Number of shingles, with repeats."""


class MinHash:
    """A family of permutations of the shingles. It is the same for equal `hashes` and `bands`."""

    def __init__(self, hashes: int = 112, bands: int = 14) -> None:
        """Choose the permutations.

        Args:
            hashes: Number of permutations; a multiple of `bands`.
            bands: Number of keys of a signature.
        """
        if bands < 1 or hashes < bands or hashes % bands:
            raise ValueError(f"hashes must be a multiple of bands, got {hashes} hashes and {bands} bands")
        # x → a x + b mod 2^32 is a permutation for odd a.
        random = _splitmix64(2 * hashes)
        self._factors = (random[:hashes] >> np.uint64(32)).astype(np.uint32) | np.uint32(1)
        self._offsets = (random[hashes:] >> np.uint64(32)).astype(np.uint32)
        self._bands = bands

    def sign(self, text: str) -> Signature:
        """Return the signature of a text."""
        shingles = shingle_hashes(text)
        keys = _band_keys(shingles, self._factors, self._offsets, self._bands)
        sketch = shingles
        if len(shingles) > SKETCH_SIZE:
            sketch = np.unique(shingles)[:SKETCH_SIZE]
        return Signature(keys, sketch, len(shingles))


def shingle_hashes(text: str) -> npt.NDArray[np.uint32]:
    """Return the 32-bit hashes of a text's shingles, in order and with repeats."""
    # Code points, not UTF-8: whether a byte above 127 belongs to a word depends on its neighbours.
    shingles = _shingles(_code_points(text), _simple_characters())
    if len(shingles) or not text:
        return shingles
    return _shingles(_code_points(unicodedata.normalize("NFKC", text).lower()), _word_characters())


def _code_points(text: str) -> npt.NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype=np.uint32)


@cache
def _word_characters() -> npt.NDArray[np.uint32]:
    r"""Return each code point that the regular expression `\w` matches, and 0 for all others.

    Characters that are words by themselves have the bit _ALONE.
    """
    before, after = range(_SURROGATES.start), range(_SURROGATES.stop, _CODE_POINTS)
    characters = "".join(map(chr, before)) + " " * len(_SURROGATES) + "".join(map(chr, after))
    table = np.zeros(_CODE_POINTS, dtype=np.uint32)
    for match in re.finditer(r"\w+", characters):
        table[match.start() : match.end()] = np.arange(match.start(), match.end())
    for first, last in WITHOUT_BLANKS:
        script = table[first : last + 1]
        script[script > 0] |= _ALONE
    return table


@cache
def _simple_characters() -> npt.NDArray[np.uint32]:
    """Return the lower-case NFKC form of each code point below _TABLE_SIZE, 0, or _COMPLEX.

    Looking up each character is several times faster than normalizing the text. The entry is 0 if the form
    belongs to no word. A character is complex if its form is longer, or depends on its neighbours: marks,
    letters that compose with others, and the Greek capital sigma.
    """
    table = np.full(_TABLE_SIZE, _COMPLEX, dtype=np.uint32)
    for code in (code for part in _SIMPLE_RANGES for code in part):
        form = unicodedata.normalize("NFKC", chr(code)).lower()
        if len(form) == 1 and not unicodedata.combining(chr(code)) and chr(code) != "Σ":
            table[code] = _word_characters()[ord(form)]
    return table


def _splitmix64(count: int) -> npt.NDArray[np.uint64]:
    """Return the first values of the generator SplitMix64 with seed 0 (Steele et al. 2014).

    NumPy may change the values of its own generators, and with them every corpus.
    """
    state = np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(state ^ (state >> np.uint64(31)))


@compiled("uint64(uint64)")
def _mix(value: np.uint64) -> np.uint64:
    """Return MurmurHash3's 64-bit finalizer: each bit of the input changes half of the output's bits."""
    value ^= value >> np.uint64(33)
    value *= np.uint64(0xFF51AFD7ED558CCD)
    value ^= value >> np.uint64(33)
    value *= np.uint64(0xC4CEB9FE1A85EC53)
    return value ^ (value >> np.uint64(33))


# A read-only array (of `np.frombuffer`) is another type to numba.
@compiled("uint32[::1](Array(uint32, 1, 'C', readonly=True), uint32[::1])")
def _shingles(codes: npt.NDArray[np.uint32], table: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    """Return the hashes of the shingles; none if a character is complex (`_simple_characters`)."""
    shingles = np.empty(len(codes) + 1, np.uint32)
    first = second = third = fourth = fifth = np.uint64(0)  # hashes of the last five words
    words = count = 0
    inside = False
    word = _FNV_OFFSET
    for position in range(len(codes) + 1):
        code = np.uint32(0)  # the end of the text ends the last word
        if position < len(codes):
            code = table[codes[position]] if codes[position] < len(table) else _COMPLEX
        if code == _COMPLEX:
            return shingles[:0]
        alone = bool(code >= _ALONE)
        if code and not alone:
            if not inside:
                inside, word = True, _FNV_OFFSET
            word = (word ^ np.uint64(code)) * _FNV_PRIME
            continue
        while inside or alone:  # the word before this character ends, and then the character is a word
            if not inside:
                alone, word = False, (_FNV_OFFSET ^ np.uint64(code)) * _FNV_PRIME
            inside = False
            words += 1
            first, second, third, fourth, fifth = second, third, fourth, fifth, _mix(word)
            if words >= SHINGLE_WORDS:
                shingle = (((first * _GOLDEN + second) * _GOLDEN + third) * _GOLDEN + fourth) * _GOLDEN
                shingles[count] = _mix(shingle + fifth) >> np.uint64(32)
                count += 1
    if 0 < words < SHINGLE_WORDS:
        shingle = (((first * _GOLDEN + second) * _GOLDEN + third) * _GOLDEN + fourth) * _GOLDEN
        shingles[0] = _mix(shingle + fifth + np.uint64(words)) >> np.uint64(32)
        count = 1
    return shingles[:count]


@compiled("uint64[::1](uint32[::1], uint32[::1], uint32[::1], int64)")
def _band_keys(
    shingles: npt.NDArray[np.uint32],
    factors: npt.NDArray[np.uint32],
    offsets: npt.NDArray[np.uint32],
    bands: int,
) -> npt.NDArray[np.uint64]:
    keys = np.zeros(bands, np.uint64)
    if len(shingles) == 0:
        return keys
    minima = np.full(len(factors), np.uint32(0xFFFFFFFF))
    # Four shingles at once: the compiler vectorizes the inner loop, and loads and stores each minimum once.
    whole = len(shingles) - len(shingles) % 4
    for start in range(0, whole, 4):
        a, b, c, d = shingles[start], shingles[start + 1], shingles[start + 2], shingles[start + 3]
        for i in range(len(factors)):
            factor, offset = factors[i], offsets[i]
            left = min(np.uint32(factor * a + offset), np.uint32(factor * b + offset))
            right = min(np.uint32(factor * c + offset), np.uint32(factor * d + offset))
            minima[i] = min(minima[i], min(left, right))
    for start in range(whole, len(shingles)):
        for i in range(len(factors)):
            minima[i] = min(minima[i], np.uint32(factors[i] * shingles[start] + offsets[i]))
    rows = len(factors) // bands
    for band in range(bands):
        key = np.uint64(band)
        for i in range(band * rows, (band + 1) * rows):
            key = _mix((key ^ np.uint64(minima[i])) * _GOLDEN)
        # 0 stands for a text without words.
        keys[band] = max(key, np.uint64(1))
    return keys
