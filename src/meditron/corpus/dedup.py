"""The pass that keeps one document of each id and of each content, across all sources.

It reads an index with one row per document, sorted by source, file and position in the file. A row takes 38
bytes, so the index of all of PubMed fits in memory. Ids and contents are compared by 128 bits of their
SHA-256.
"""

import hashlib
import re
from collections.abc import Iterator
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
    "id_hash",
    "index_row",
    "occurrence_numbers",
    "rows_to_drop",
    "unique_id",
]

# 128 bits of a hash: among a billion documents the probability of any false match is below 1e-20.
INDEX = np.dtype(
    [("id", "<u8", 2), ("text", "<u8", 2), ("version", "<u4"), ("reason", "u1"), ("heldout", "?")],
    align=False,  # 38 bytes per row; alignment would make it 40
)
Index = npt.NDArray[Any]
Rows = npt.NDArray[np.integer[Any]]
_NUMBERED = re.compile(r"#[0-9]+$")
_PARTITION_BITS = 6
# Below this number of rows one partition is faster. Above it a row takes 250 bytes while its partition is
# compared, which is four bytes for each row of the index.
_UNPARTITIONED = 1 << 17
_BLOCK = 1 << 20  # rows of which a temporary array is made at once

SUPERSEDED = DropReason("superseded by a newer version")
COPY = DropReason("copy of another document")
DELETED = DropReason("deleted by its source")


class Deduplication(CorpusPass):
    """A pass that drops deleted documents, older versions of a document, and copies of another document."""

    drop_reasons = (DELETED, SUPERSEDED, COPY)

    def compare_documents(self, documents: DocumentTable) -> dict[DropReason, Rows]:
        """Return the row numbers of the documents to drop, by reason (see `rows_to_drop`)."""
        dropped = rows_to_drop(documents.index, documents.deleted_ids)
        if documents.originals is not None:
            _record_originals(documents.index, dropped, documents.originals)
        return dropped


def id_hash(identity: str) -> tuple[int, int]:
    """Return the first 128 bits of an id's SHA-256, as two 64-bit words."""
    return _hash_words(hashlib.sha256(identity.encode()).hexdigest())


def index_row(
    identity: str, content_sha256: str, version: int, reason: int, *, heldout: bool
) -> tuple[object, ...]:
    """Return a document's row of the index.

    Version 0 means that the source has no versions: documents with equal ids are then different documents.
    """
    return id_hash(identity), _hash_words(content_sha256), version, reason, heldout


def rows_to_drop(index: Index, deleted: npt.NDArray[np.uint64]) -> dict[DropReason, Rows]:
    """Return, for each reason, the row numbers of the documents to drop.

    1. A document whose id is declared deleted by any file is dropped.
    2. Of several versions of one id only the newest stays. If the newest version number occurs several times,
       the last document with it stays; if that document occurs several times unchanged, its first occurrence.
    3. Of the remaining documents with equal content the first stays.

    Rules 1 and 2 also replace the reason of documents that an earlier pass dropped. Equal contents are in the
    same split (`split.is_heldout`), so no training text is a copy of a held-out text.

    Args:
        index: Rows of type INDEX; `reason` is 0 for documents that no earlier pass drops.
        deleted: Hashes of the deleted ids (`id_hash`), shape (n, 2).
    """
    dropped: dict[DropReason, list[Rows]] = {SUPERSEDED: [], COPY: [], DELETED: []}
    # Copies are searched among the documents that stay: a dropped document must not cause its copies to be
    # dropped.
    alive = index["reason"] == 0
    for rows in _partitions(index["id"]):
        part = index[rows]
        superseded, copies = _find_older_versions(part)
        ids = part["id"]
        deleted_rows = np.isin(ids[:, 0], deleted[:, 0]) & np.isin(ids[:, 1], deleted[:, 1])
        for reason, of_part in ((SUPERSEDED, superseded), (COPY, copies), (DELETED, deleted_rows)):
            dropped[reason].append(rows[of_part])
            alive[rows[of_part]] = False
    texts = index["text"]
    for rows in _partitions(texts):
        candidates = rows[alive[rows]]
        candidates = candidates[_rows_of_repeated_keys(texts[candidates])]
        order = candidates[np.lexsort((texts[candidates, 1], texts[candidates, 0]))]
        dropped[COPY].append(order[1:][_equals_next_key(texts[order])])
    # If a row has several reasons, the last in this order is recorded.
    return {reason: np.concatenate(parts) for reason, parts in dropped.items()}


def _partitions(keys: npt.NDArray[np.uint64]) -> Iterator[npt.NDArray[np.int64]]:
    """Yield row numbers such that each row is in one partition, in order, and equal keys are in the same.

    Args:
        keys: Hashes, shape (n, 2).
    """
    if len(keys) <= _UNPARTITIONED:
        yield np.arange(len(keys))
        return
    partition = np.empty(len(keys), dtype=np.uint8)
    for start in range(0, len(keys), _BLOCK):
        words = keys[start : start + _BLOCK, 0]
        partition[start : start + _BLOCK] = words >> np.uint64(64 - _PARTITION_BITS)
    for number in range(1 << _PARTITION_BITS):
        yield np.flatnonzero(partition == number)


def _record_originals(
    index: Index, dropped: dict[DropReason, Rows], originals: npt.NDArray[np.uint32]
) -> None:
    """Set the originals of the copies to the kept documents with the same content."""
    alive = index["reason"] == 0
    for rows in dropped.values():
        alive[rows] = False
    is_copy = np.zeros(len(index), dtype=bool)
    is_copy[dropped[COPY]] = True
    for reason in (SUPERSEDED, DELETED):
        is_copy[dropped[reason]] = False
    texts = index["text"]
    for rows in _partitions(texts):
        copies = rows[is_copy[rows]]
        kept = rows[alive[rows]]
        kept = kept[np.isin(texts[kept, 0], texts[copies, 0])]
        kept = kept[np.argsort(texts[kept, 0], kind="stable")]
        # Every copy has an original: of equal contents, the first of those that stay is kept.
        places = np.searchsorted(texts[kept, 0], texts[copies, 0])
        equal = (texts[kept[places]] == texts[copies]).all(axis=1)
        originals[copies[equal]] = kept[places[equal]]


def _find_older_versions(index: Index) -> tuple[Rows, Rows]:
    """Return the row numbers of older versions of an id, and those of repeats of the same version."""
    # The last key of np.lexsort is the primary one; in this module it is always the first word of a hash.
    rows = _rows_of_repeated_keys(index["id"])
    index = index[rows]
    ids, texts, versions, reason = index["id"], index["text"], index["version"], index["reason"]
    # If one version occurs unchanged in several files, the first occurrence stays; its age is that of the
    # last.
    order = np.lexsort((reason, texts[:, 1], texts[:, 0], versions, ids[:, 1], ids[:, 0]))
    same = _equals_next_key(ids[order]) & _equals_next_key(texts[order]) & (versions[order[:-1]] > 0)
    same &= (np.diff(versions[order].astype(np.int64)) == 0) & (np.diff(reason[order].astype(int)) == 0)
    starts = np.concatenate([[True], ~same])[: len(order)]
    first = order[starts]
    latest = np.arange(len(order))
    if len(order):
        latest[first] = np.maximum.reduceat(order, np.flatnonzero(starts))
    repeats, original = order[~starts], first[np.cumsum(starts) - 1][~starts]
    order = first[np.lexsort((latest[first], versions[first], ids[first, 1], ids[first, 0]))]
    older = _equals_next_key(ids[order]) & (versions[order[:-1]] > 0)
    superseded = np.zeros(len(index), dtype=bool)
    superseded[order[:-1][older]] = True
    # A repeat of an older version is superseded as well, and not a copy.
    superseded[repeats[superseded[original]]] = True
    is_copy = np.zeros(len(index), dtype=bool)
    is_copy[repeats] = ~superseded[repeats] & (reason[repeats] == 0)
    return rows[superseded], rows[is_copy]


def occurrence_numbers(index: Index, counted_mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.uint32]:
    """Return for each document its number, from 1, among the documents with the same id in all sources.

    Args:
        index: Rows of type INDEX.
        counted_mask: True for the documents to number. Older versions and deleted documents are left out.
    """
    ids = index["id"]
    numbers = np.ones(len(index), dtype=np.uint32)
    for rows in _partitions(ids):
        counted = rows[counted_mask[rows]]
        counted = counted[_rows_of_repeated_keys(ids[counted])]
        order = counted[np.lexsort((ids[counted, 1], ids[counted, 0]))]
        starts = np.concatenate([[True], ~_equals_next_key(ids[order])])[: len(order)]
        # Equal ids are adjacent after sorting: a document's number is its distance from the first one.
        position = np.arange(len(order))
        numbers[order] = position - np.maximum.accumulate(np.where(starts, position, 0)) + 1
    return numbers


def unique_id(identity: str, occurrence: int) -> str:
    """Return an id that is unique in the corpus: for three documents with the id `7`, `7`, `7#2` and `7#3`.

    If the id itself ends in `#` and a number, the first document gets `#1`, so that different ids stay
    different.
    """
    return identity if occurrence == 1 and not _NUMBERED.search(identity) else f"{identity}#{occurrence}"


def _rows_of_repeated_keys(keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """Return the row numbers of the keys whose first 64-bit word occurs more than once."""
    # Sorting by one word is fast and leaves few rows, nearly all of them repeats; callers compare both words.
    words = keys[:, 0]
    order = np.argsort(words, kind="stable")
    same = words[order[:-1]] == words[order[1:]]
    return np.unique(np.concatenate([order[:-1][same], order[1:][same]]))


def _equals_next_key(keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """Return, for each key except the last, True if it equals the next key."""
    return np.asarray((keys[:-1] == keys[1:]).all(axis=1))


def _hash_words(sha256: str) -> tuple[int, int]:
    return int(sha256[:16], 16), int(sha256[16:32], 16)
