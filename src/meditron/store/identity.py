"""Content identity of documents and questions: equal after normalisation means the same.

An id is unique within its source and names a row; the content hash says whether two rows are the same text,
whatever their ids, files and sources. Splits, duplicates, overlap and trained-on checks use the hash.
"""

import hashlib
import unicodedata
from collections.abc import Iterable

__all__ = ["content_sha256", "normalize", "question_sha256", "short"]


def normalize(text: str) -> str:
    """Return the text in NFKC, case-folded, with every run of white space as one blank.

    Punctuation and signs stay: `< 5` and `> 5` differ.
    """
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def content_sha256(text: str) -> str:
    """Return the hexadecimal SHA-256 of the normalised text."""
    return hashlib.sha256(normalize(text).encode("utf-8", "surrogatepass")).hexdigest()


def question_sha256(text: str, options: Iterable[str]) -> str:
    """Return the hexadecimal SHA-256 of a question's normalised text and options, in any order of options."""
    parts = [normalize(text), *sorted(map(normalize, options))]
    return hashlib.sha256("\x1f".join(parts).encode("utf-8", "surrogatepass")).hexdigest()


def short(sha256: str) -> str:
    """Return the first 16 hexadecimal digits: two of 10^8 rows collide with a chance of 0.03 %."""
    return sha256[:16]
