"""Content hashes of documents and questions, and an order by hash.

An id is unique within its source and names a row. The content hash compares texts: two rows with equal
hashes have the same text after normalization, whatever their ids, files and sources. Splits, deduplication
and the search for trained questions use the content hash.
"""

import hashlib
import unicodedata
from collections.abc import Iterable

__all__ = ["content_sha256", "hash_order_key", "normalize_text", "question_sha256", "short_hash"]


def normalize_text(text: str) -> str:
    """Return the text in NFKC, case-folded, with runs of white space as single blanks.

    Punctuation and signs stay: `< 5` and `> 5` differ.
    """
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def content_sha256(text: str) -> str:
    """Return the hexadecimal SHA-256 of the normalized text."""
    return hashlib.sha256(normalize_text(text).encode("utf-8", "surrogatepass")).hexdigest()


def question_sha256(text: str, options: Iterable[str]) -> str:
    """Return the hexadecimal SHA-256 of a question's normalized text and options, in any order of options."""
    parts = [normalize_text(text), *sorted(map(normalize_text, options))]
    # The unit separator cannot occur in normalized text, so that ("ab", "c") and ("a", "bc") differ.
    return hashlib.sha256("\x1f".join(parts).encode("utf-8", "surrogatepass")).hexdigest()


def short_hash(sha256: str) -> str:
    """Return the first 16 hexadecimal digits; among 10^8 rows a collision has a probability of 0.03 %."""
    return sha256[:16]


def hash_order_key(identity: str) -> tuple[bytes, str]:
    """Return the sort key of a pseudo-random order that depends on the id (or text) alone.

    Sorting by it shuffles without a seed: the position of an item is independent of its content and of the
    other items, so any prefix of the order is an unbiased sample.
    """
    return hashlib.sha256(identity.encode("utf-8", "replace")).digest(), identity
