"""What stays and what goes: decided over all documents of all sources at once, from a small index of them.

The index has a row a document, in the order of the sources, their files and their documents: 38 bytes, so
that all of PubMed fits in memory. Ids and texts are known by 128 bits of their SHA-256.
"""

import hashlib
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from meditron.corpus.clean import normalised

__all__ = ["INDEX", "Reason", "decide", "id_key", "index_row"]

INDEX = np.dtype(
    [("id", "<u8", 2), ("text", "<u8", 2), ("version", "<u4"), ("reason", "u1"), ("heldout", "?")],
    align=False,
)
Index = npt.NDArray[Any]


class Reason(IntEnum):
    """Why a document is not in the corpus; `KEPT` where it is."""

    KEPT = 0
    DELETED = 1
    SUPERSEDED = 2
    RETRACTED = 3
    LANGUAGE = 4
    TITLE_ONLY = 5
    SHORT = 6
    COPY = 7
    COPY_OF_HELDOUT = 8

    @property
    def text(self) -> str:
        """The reason as reports and `drops.jsonl.zst` give it."""
        return _TEXTS[self]


_TEXTS = {
    Reason.KEPT: "kept",
    Reason.DELETED: "deleted by its source",
    Reason.SUPERSEDED: "superseded by a newer version",
    Reason.RETRACTED: "retracted",
    Reason.LANGUAGE: "another language",
    Reason.TITLE_ONLY: "nothing but a title",
    Reason.SHORT: "too short",
    Reason.COPY: "copy of another document",
    Reason.COPY_OF_HELDOUT: "copy of a held-out document",
}


def id_key(identity: str) -> tuple[int, int]:
    """The 128 bits by which an id is known."""
    return _key(identity.encode())


def index_row(identity: str, text: str, version: int, reason: Reason, *, heldout: bool) -> tuple[object, ...]:
    """A document's row. A version of 0 says that its source knows none: then equal ids mean nothing."""
    return id_key(identity), _key(normalised(text).encode()), version, reason, heldout


def decide(index: Index, deleted: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint8]:
    """Each document's Reason.

    A deleted id goes, whichever file says so. Of the versions of one id the newest stays; of equal versions
    the last. Then the newest's own reason (retracted, …) holds. Of equal texts among what is left the first
    stays, but a held-out one before any for training: no training text is a copy of a held-out one.

    Args:
        index: rows of INDEX.
        deleted: ids, shape (n, 2), as `id_key` gives them.
    """
    reason = index["reason"].copy()
    ids, texts = index["id"], index["text"]
    order = np.lexsort((index["version"], ids[:, 1], ids[:, 0]))
    older = _same(ids[order]) & (index["version"][order[:-1]] > 0)
    reason[order[:-1][older]] = Reason.SUPERSEDED
    gone = np.isin(ids[:, 0], deleted[:, 0]) & np.isin(ids[:, 1], deleted[:, 1])
    reason[gone] = Reason.DELETED

    alive = np.flatnonzero(reason == Reason.KEPT)
    order = alive[np.lexsort((~index["heldout"][alive], texts[alive, 1], texts[alive, 0]))]
    copies = np.concatenate([[False], _same(texts[order])])[: len(order)]
    first = np.maximum.accumulate(np.where(copies, 0, np.arange(len(order))))
    of_heldout = index["heldout"][order[first]] & ~index["heldout"][order]
    reason[order[copies]] = Reason.COPY
    reason[order[copies & of_heldout]] = Reason.COPY_OF_HELDOUT
    return reason


def _same(keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """Whether each key but the last equals the next."""
    return np.asarray((keys[:-1] == keys[1:]).all(axis=1))


def _key(data: bytes) -> tuple[int, int]:
    digest = hashlib.sha256(data).digest()
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:16], "little")
