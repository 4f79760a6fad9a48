"""The pass that keeps one document of each id and content, over all sources at once, from a small index.

The index has one row per document, in the order of the sources, their files and their documents: 38 bytes, so
that all of PubMed fits in memory. Ids and contents are compared by 128 bits of their SHA-256.
"""

import hashlib
import re
from typing import Any

import numpy as np
import numpy.typing as npt

from meditron.corpus.candidate import CorpusPass, DocumentTable, DropReason

__all__ = [
    "COPY",
    "DELETED",
    "INDEX",
    "SUPERSEDED",
    "Deduplication",
    "decide",
    "id_key",
    "index_row",
    "occurrences",
    "unique_id",
]

# 128 bits of a hash: among a billion documents the probability of any false match is below 1e-20.
INDEX = np.dtype(
    [("id", "<u8", 2), ("text", "<u8", 2), ("version", "<u4"), ("reason", "u1"), ("heldout", "?")],
    align=False,  # 38 bytes instead of 40
)
Index = npt.NDArray[Any]
Rows = npt.NDArray[np.integer[Any]]
_NUMBERED = re.compile(r"#[0-9]+$")

SUPERSEDED = DropReason("superseded by a newer version")
COPY = DropReason("copy of another document")
DELETED = DropReason("deleted by its source")


class Deduplication(CorpusPass):
    """Drops deleted documents, older versions of an id, and copies of a content."""

    reasons = (DELETED, SUPERSEDED, COPY)

    def compare(self, documents: DocumentTable) -> dict[DropReason, Rows]:
        """Return the rows to drop, see `decide`."""
        return decide(documents.index, documents.deleted)


def id_key(identity: str) -> tuple[int, int]:
    """Return the 128 bits that stand for an id."""
    return _key(hashlib.sha256(identity.encode()).hexdigest())


def index_row(
    identity: str, content_sha256: str, version: int, reason: int, *, heldout: bool
) -> tuple[object, ...]:
    """Return a document's row. Version 0: the source has no versions; equal ids are different documents."""
    return id_key(identity), _key(content_sha256), version, reason, heldout


def decide(index: Index, deleted: npt.NDArray[np.uint64]) -> dict[DropReason, Rows]:
    """Return the rows to drop by reason.

    A deleted id is dropped, whichever file declares it. Of the versions of one id the newest stays; of equal
    versions the last, or of several with its content the first. These two hold also for documents that have
    another reason already. Of equal contents among the remaining documents the first stays. Equal contents
    are in the same split (`split.is_heldout`), so no training text is a copy of a held-out one.

    Args:
        index: Rows of INDEX; `reason` is 0 for documents kept so far.
        deleted: Ids, shape (n, 2), from `id_key`.
    """
    ids, texts = index["id"], index["text"]
    superseded, copies = _older_versions(index)
    deleted_rows = np.flatnonzero(np.isin(ids[:, 0], deleted[:, 0]) & np.isin(ids[:, 1], deleted[:, 1]))

    # Only a document that stays can be the original of a copy; another would take its copies with it.
    alive = index["reason"] == 0
    for rows in (superseded, copies, deleted_rows):
        alive[rows] = False
    candidates = np.flatnonzero(alive)
    candidates = candidates[_repeated(texts[candidates])]
    order = candidates[np.lexsort((texts[candidates, 1], texts[candidates, 0]))]
    copies = np.concatenate([copies, order[1:][_same(texts[order])]])
    # The last reason of a row counts: a deleted id is deleted, whatever else it is.
    return {SUPERSEDED: superseded, COPY: copies, DELETED: deleted_rows}


def _older_versions(index: Index) -> tuple[Rows, Rows]:
    """Return the rows of older versions of an id, and those of repeats of the same version."""
    # np.lexsort sorts by its last key first; in all calls here that is the first word of a hash.
    rows = _repeated(index["id"])
    index = index[rows]
    ids, texts, versions, reason = index["id"], index["text"], index["version"], index["reason"]
    # The same row in several files: the first one stays, but it is as new as the last one.
    order = np.lexsort((reason, texts[:, 1], texts[:, 0], versions, ids[:, 1], ids[:, 0]))
    same = _same(ids[order]) & _same(texts[order]) & (versions[order[:-1]] > 0)
    same &= (np.diff(versions[order].astype(np.int64)) == 0) & (np.diff(reason[order].astype(int)) == 0)
    starts = np.concatenate([[True], ~same])[: len(order)]
    first = order[starts]
    latest = np.arange(len(order))
    if len(order):
        latest[first] = np.maximum.reduceat(order, np.flatnonzero(starts))
    repeats, original = order[~starts], first[np.cumsum(starts) - 1][~starts]
    order = first[np.lexsort((latest[first], versions[first], ids[first, 1], ids[first, 0]))]
    older = _same(ids[order]) & (versions[order[:-1]] > 0)
    superseded = np.zeros(len(index), dtype=bool)
    superseded[order[:-1][older]] = True
    # A repeat of an older version is superseded too; it would otherwise count as a copy.
    superseded[repeats[superseded[original]]] = True
    is_copy = np.zeros(len(index), dtype=bool)
    is_copy[repeats] = ~superseded[repeats] & (reason[repeats] == 0)
    return rows[superseded], rows[is_copy]


def occurrences(index: Index, counted_mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint32]:
    """Return for each document the number of its id's occurrence in all sources, from 1.

    Args:
        index: Rows of INDEX.
        counted_mask: True for the documents that count: all but older versions of an id and deleted ids.
    """
    counted = np.flatnonzero(counted_mask)
    ids = index["id"]
    counted = counted[_repeated(ids[counted])]
    order = counted[np.lexsort((ids[counted, 1], ids[counted, 0]))]
    starts = np.concatenate([[True], ~_same(ids[order])])[: len(order)]
    # Equal ids are neighbours now: a row's number is its distance from the first of its run.
    position = np.arange(len(order))
    numbers = np.ones(len(index), dtype=np.uint32)
    numbers[order] = position - np.maximum.accumulate(np.where(starts, position, 0)) + 1
    return numbers


def unique_id(identity: str, occurrence: int) -> str:
    """Return the id of this occurrence in the corpus: `7`, then `7#2`, `7#3`.

    An id that itself ends in `#` and a number is numbered from `#1`: two different ids never become equal.
    """
    return identity if occurrence == 1 and not _NUMBERED.search(identity) else f"{identity}#{occurrence}"


def _repeated(keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """Return the rows of keys whose first word occurs more than once; among millions these are few."""
    # Sorting by one 64-bit word finds nearly only repeated keys; both words are then compared for these few.
    words = keys[:, 0]
    order = np.argsort(words, kind="stable")
    same = words[order[:-1]] == words[order[1:]]
    return np.unique(np.concatenate([order[:-1][same], order[1:][same]]))


def _same(keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """Compare each key but the last with the next."""
    return np.asarray((keys[:-1] == keys[1:]).all(axis=1))


def _key(sha256: str) -> tuple[int, int]:
    return int(sha256[:16], 16), int(sha256[16:32], 16)
