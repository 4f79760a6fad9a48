"""Compiled search of a document's words for the word sequences of a question index.

Words are 64-bit hashes here. A hit is therefore a candidate: `verify` compares the words themselves.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from meditron.search.kernels import compiled
from meditron.search.words import HASH_BASE, IGNORED, LETTER, WORD

__all__ = ["GRAM", "RUN", "distances", "fill_table", "gram_hashes", "scan_words", "word_hashes"]

GRAM = 5
"""Number of words of the sequences by which candidates are found."""
RUN = 13
"""Number of consecutive words of a question that a document must not contain."""

_BASE = np.uint64(HASH_BASE)
_GRAM_POWER = np.uint64(pow(HASH_BASE, GRAM, 1 << 64))
_ZERO, _ONE, _SHIFT = np.uint64(0), np.uint64(1), np.uint64(32)
_MIX = np.uint64(0xD6E8FEB86659FD93)
_LETTER, _IGNORED, _WORD = np.uint8(LETTER), np.uint8(IGNORED), np.uint8(WORD)

Array = npt.NDArray[Any]


@compiled()
def _mix(value: np.uint64) -> np.uint64:
    """Spread the bits of a hash, so that its low bits depend on all of it."""
    value = (value ^ (value >> _SHIFT)) * _MIX
    return value ^ (value >> _SHIFT)


@compiled()
def word_hashes(codes: Array, kinds: Array, factors: Array, terms: Array, out: Array) -> int:
    """Write the hashes of a text's normalized words to `out`, and return their number.

    Args:
        codes: Code points, uint32 (n).
        kinds: `CharacterTables.kinds`; code points beyond the tables separate words.
        factors: `CharacterTables.factors`.
        terms: `CharacterTables.terms`.
        out: uint64 (n + 1).
    """
    count = 0
    value = _ZERO
    inside = False
    known = len(kinds)
    for code in codes:
        kind = kinds[code] if code < known else np.uint8(0)
        if kind == _LETTER:
            value = value * factors[code] + terms[code]
            inside = True
        elif kind != _IGNORED:
            if inside:
                out[count] = _mix(value)
                count += 1
                value = _ZERO
                inside = False
            if kind == _WORD:
                out[count] = _mix(terms[code])
                count += 1
    if inside:
        out[count] = _mix(value)
        count += 1
    return count


@compiled()
def gram_hashes(words: Array, size: int) -> Array:
    """Return the hashes of all runs of `size` consecutive words, uint64 (max(0, n − size + 1))."""
    hashes = np.empty(max(0, len(words) - size + 1), np.uint64)
    for start in range(len(hashes)):
        value = _ZERO
        for word in words[start : start + size]:
            value = value * _BASE + word
        hashes[start] = _mix(value)
    return hashes


@compiled()
def _find(keys: Array, wanted: np.uint64) -> np.int64:
    """Return the row of a key in an open-addressing table whose free rows are 0; -1 if it has none."""
    mask = np.uint64(len(keys) - 1)
    row = wanted & mask
    while keys[row] != _ZERO:
        if keys[row] == wanted:
            return np.int64(row)
        row = (row + _ONE) & mask
    return np.int64(-1)


@compiled()
def distances(question: Array, words: Array, ends: Array) -> None:
    """Write, for each word, the fewest edits that turn a passage ending there into the question.

    An edit replaces, inserts or removes one word. Sellers 1980, "The theory and computation of evolutionary
    distances": edit distance whose passage may begin anywhere.

    Args:
        question: Word ids or hashes (m).
        words: Those of the document (n).
        ends: int32 (n), written.
    """
    column = np.arange(len(question) + 1).astype(np.int32)
    for position, word in enumerate(words):
        diagonal = column[0]  # 0: a passage may begin at any word
        for row in range(1, len(column)):
            changed = diagonal + (question[row - 1] != word)
            diagonal = column[row]
            column[row] = min(changed, diagonal + 1, column[row - 1] + 1)
        ends[position] = column[-1]


@compiled()
def _add_unit(unit: int, unit_found: Array, stamp: int, found: Array, count: int) -> int:
    """Append a unit to `found` unless it is there, and return the number of units found."""
    if unit_found[unit] == stamp:
        return count
    unit_found[unit] = stamp
    found[count] = unit
    return count + 1


@compiled()
def scan_words(
    words: Array, index: tuple[Array, ...], scratch: tuple[Array, ...], stamp: int, found: Array
) -> int:
    """Write the units of an index that a document may contain to `found`, and return their number.

    Args:
        words: Hashes of the document's words (n).
        index: The arrays of `QuestionIndex.arrays`.
        scratch: The arrays of `QuestionIndex.scratch`.
        stamp: A number that no earlier call with this scratch used, above 0.
        found: int32 (number of units); receives their numbers, in the order of discovery.
    """
    filter_bits, gram_keys, gram_rows, offsets, units, weights, needed = index[:7]
    run_keys, run_rows, run_offsets, run_units = index[7:]
    gram_seen, unit_seen, unit_counts, unit_found = scratch
    bits = np.uint64(len(filter_bits) * 8 - 1)
    count = 0
    hits_in_a_row = 0
    value = _ZERO
    for position in range(len(words)):
        value = value * _BASE + words[position]
        if position < GRAM - 1:
            continue
        if position >= GRAM:
            value -= words[position - GRAM] * _GRAM_POWER
        key = _mix(value)
        bit = (key >> _SHIFT) & bits
        # Most sequences of a document are in no question; one bit says so without a look at the table.
        if not (filter_bits[bit >> np.uint64(3)] >> np.uint8(bit & np.uint64(7))) & 1:
            hits_in_a_row = 0
            continue
        row = _find(gram_keys, key)
        if row < 0:
            hits_in_a_row = 0
            continue
        hits_in_a_row += 1
        gram = gram_rows[row]
        if gram_seen[gram] != stamp:
            gram_seen[gram] = stamp
            for entry in range(offsets[gram], offsets[gram + 1]):
                unit = units[entry]
                if unit_seen[unit] != stamp:
                    unit_seen[unit] = stamp
                    unit_counts[unit] = 0
                unit_counts[unit] += weights[entry]
                if unit_counts[unit] >= needed[unit]:
                    count = _add_unit(unit, unit_found, stamp, found, count)
        # A run of 13 known words has 9 known sequences of 5.
        if hits_in_a_row > RUN - GRAM:
            whole = _ZERO
            for word in words[position - RUN + 1 : position + 1]:
                whole = whole * _BASE + word
            run = _find(run_keys, _mix(whole))
            if run >= 0:
                for entry in range(run_offsets[run_rows[run]], run_offsets[run_rows[run] + 1]):
                    count = _add_unit(run_units[entry], unit_found, stamp, found, count)
    return count


@compiled()
def fill_table(hashes: Array, keys: Array, rows: Array, filter_bits: Array) -> None:
    """Insert distinct hashes into an open-addressing table, and set their bits in the filter.

    Args:
        hashes: uint64 (n).
        keys: uint64 (a power of two above n), all 0; written.
        rows: int32 (as long as `keys`); written: the number of each key's hash.
        filter_bits: uint8 (a power of two), one bit per residue of a hash; written.
    """
    mask = np.uint64(len(keys) - 1)
    bits = np.uint64(len(filter_bits) * 8 - 1)
    for number, key in enumerate(hashes):
        row = key & mask
        while keys[row] != _ZERO:
            row = (row + _ONE) & mask
        keys[row] = key
        rows[row] = number
        bit = (key >> _SHIFT) & bits
        filter_bits[bit >> np.uint64(3)] |= np.uint8(1) << np.uint8(bit & np.uint64(7))
