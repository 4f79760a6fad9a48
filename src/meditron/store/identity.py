"""Content hashes of documents and questions, and an order by hash.

An id names a row and is unique within its source. A content hash identifies a text: two rows with equal
content hashes have the same text after normalization, whatever their ids, files and sources. Splits,
deduplication and the search for evaluation questions in training data use the content hash.
"""

import hashlib
import unicodedata
from collections.abc import Iterable

__all__ = [
    "content_sha256",
    "hash_order_key",
    "normalize_text",
    "question_sha256",
    "sha256_of_hashes",
    "short_hash",
]

# All characters for which `str.isspace` is true in NFKC, which turns the others into blanks.
_OTHER_SPACES = "\t\n\x0b\x0c\r\x1c\x1d\x1e\x1f\x85\u1680\u2028\u2029"


def normalize_text(text: str) -> str:
    """Return the text in Unicode form NFKC, case-folded, with each run of white space replaced by one blank.

    Punctuation and signs are kept, so that `< 5` and `> 5` differ.
    """
    text = unicodedata.normalize("NFKC", text).casefold()
    # The result is that of " ".join(text.split()), which creates an object for each word and takes three
    # times as long: texts have few kinds of white space, and `replace` returns at once if one is absent.
    for space in _OTHER_SPACES:
        text = text.replace(space, " ")
    while "  " in text:
        text = text.replace("  ", " ")
    return text.strip(" ")


def content_sha256(text: str) -> str:
    """Return the hexadecimal SHA-256 of the normalized text."""
    return hashlib.sha256(normalize_text(text).encode("utf-8", "surrogatepass")).hexdigest()


def question_sha256(text: str, options: Iterable[str]) -> str:
    """Return the hexadecimal SHA-256 of a question's normalized text and options, in any order of options."""
    parts = [normalize_text(text), *sorted(map(normalize_text, options))]
    # The unit separator cannot occur in normalized text, so that ("ab", "c") and ("a", "bc") differ.
    return hashlib.sha256("\x1f".join(parts).encode("utf-8", "surrogatepass")).hexdigest()


def sha256_of_hashes(hashes: Iterable[str]) -> str:
    """Return one hexadecimal SHA-256 over hashes, in order."""
    return hashlib.sha256("".join(f"{digest}\n" for digest in hashes).encode()).hexdigest()


def short_hash(sha256: str) -> str:
    """Return the first 16 hexadecimal digits; two of 10^8 rows have equal ones with probability 0.03 %."""
    return sha256[:16]


def hash_order_key(identity: str) -> tuple[bytes, str]:
    """Return an item's sort key for a pseudo-random order that depends on the items' ids (or texts) alone.

    Sorting by this key shuffles without a seed. An item's position depends neither on its content nor on the
    other items, so the first items of the order are an unbiased sample.
    """
    return hashlib.sha256(identity.encode("utf-8", "replace")).digest(), identity
