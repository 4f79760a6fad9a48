"""Selection of the documents to keep, over all documents of all sources at once, from a small index.

The index has one row per document, in the order of the sources, their files and their documents: 38 bytes, so
that all of PubMed fits in memory. Ids and contents are known by 128 bits of their SHA-256.
"""

import hashlib
import re
from enum import IntEnum
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["INDEX", "Reason", "decide", "id_key", "index_row", "occurrences", "unique_id"]

INDEX = np.dtype(
    [("id", "<u8", 2), ("text", "<u8", 2), ("version", "<u4"), ("reason", "u1"), ("heldout", "?")],
    align=False,
)
Index = npt.NDArray[Any]
_NUMBERED = re.compile(r"#[0-9]+$")


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
}


def id_key(identity: str) -> tuple[int, int]:
    """The 128 bits by which an id is known."""
    return _key(hashlib.sha256(identity.encode()).hexdigest())


def index_row(
    identity: str, content_sha256: str, version: int, reason: Reason, *, heldout: bool
) -> tuple[object, ...]:
    """Return a document's row. Version 0 means that its source has no versions: equal ids are no versions."""
    return id_key(identity), _key(content_sha256), version, reason, heldout


def decide(index: Index, deleted: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint8]:
    """Return each document's Reason.

    A deleted id goes, whichever file says so. Of the versions of one id the newest stays; of equal versions
    the last, or of several with its content the first. Then its own reason (retracted, …) holds. Of equal
    contents among those left the first stays. Equal contents have one side of the split (`split.is_heldout`),
    so no training text is a copy of a held-out one.

    Args:
        index: rows of INDEX.
        deleted: ids, shape (n, 2), as `id_key` gives them.
    """
    reason = index["reason"].copy()
    ids, texts = index["id"], index["text"]
    rows = _repeated(ids)
    reason[rows] = _of_versions(index[rows])
    gone = np.isin(ids[:, 0], deleted[:, 0]) & np.isin(ids[:, 1], deleted[:, 1])
    reason[gone] = Reason.DELETED

    alive = np.flatnonzero(reason == Reason.KEPT)
    alive = alive[_repeated(texts[alive])]
    order = alive[np.lexsort((texts[alive, 1], texts[alive, 0]))]
    reason[order[1:][_same(texts[order])]] = Reason.COPY
    return reason


def _of_versions(index: Index) -> npt.NDArray[np.uint8]:
    """Return the reasons of documents whose ids others have: older versions and repeats of the same row."""
    reason = index["reason"].copy()
    ids, texts, versions = index["id"], index["text"], index["version"]
    # The same row in several files: the first one stays, but it is as new as the last one.
    order = np.lexsort((reason, texts[:, 1], texts[:, 0], versions, ids[:, 1], ids[:, 0]))
    same = _same(ids[order]) & _same(texts[order]) & (versions[order[:-1]] > 0)
    same &= (np.diff(versions[order].astype(np.int64)) == 0) & (np.diff(reason[order].astype(int)) == 0)
    starts = np.concatenate([[True], ~same])[: len(order)]
    first = order[starts]
    latest = np.arange(len(order))
    if len(order):
        latest[first] = np.maximum.reduceat(order, np.flatnonzero(starts))
    again, original = order[~starts], first[np.cumsum(starts) - 1][~starts]
    order = first[np.lexsort((latest[first], versions[first], ids[first, 1], ids[first, 0]))]
    older = _same(ids[order]) & (versions[order[:-1]] > 0)
    reason[order[:-1][older]] = Reason.SUPERSEDED
    reason[again[reason[original] == Reason.SUPERSEDED]] = Reason.SUPERSEDED
    reason[again[reason[again] == Reason.KEPT]] = Reason.COPY
    return reason


def occurrences(index: Index, reasons: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint32]:
    """Return for each document the number of its id's occurrence among all sources, from 1.

    Older versions of an id and deleted ids do not count.

    Args:
        index: rows of INDEX.
        reasons: the result of `decide`.
    """
    counted = np.flatnonzero((reasons != Reason.SUPERSEDED) & (reasons != Reason.DELETED))
    ids = index["id"]
    counted = counted[_repeated(ids[counted])]
    order = counted[np.lexsort((ids[counted, 1], ids[counted, 0]))]
    starts = np.concatenate([[True], ~_same(ids[order])])[: len(order)]
    position = np.arange(len(order))
    numbers = np.ones(len(index), dtype=np.uint32)
    numbers[order] = position - np.maximum.accumulate(np.where(starts, position, 0)) + 1
    return numbers


def unique_id(identity: str, occurrence: int) -> str:
    """Return the id under which this occurrence stands in the corpus: `7`, then `7#2`, `7#3`.

    An id that itself ends so is numbered from `#1`, so two different ids never become one.
    """
    return identity if occurrence == 1 and not _NUMBERED.search(identity) else f"{identity}#{occurrence}"


def _repeated(keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """Return the places of the keys whose first word another key shares; among millions these are few."""
    words = keys[:, 0]
    order = np.argsort(words, kind="stable")
    same = words[order[:-1]] == words[order[1:]]
    return np.unique(np.concatenate([order[:-1][same], order[1:][same]]))


def _same(keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """Whether each key but the last equals the next."""
    return np.asarray((keys[:-1] == keys[1:]).all(axis=1))


def _key(sha256: str) -> tuple[int, int]:
    return int(sha256[:16], 16), int(sha256[16:32], 16)
