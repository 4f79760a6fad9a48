"""Clusters of documents with similar shingles: candidates by their keys, verified by their sketches.

Memory is 4 bytes a document (the union-find array) and 1 byte (its mask), plus a constant: keys are sorted
part by part, and sketches are read in batches. The result does not depend on the sizes of parts and batches,
except for buckets and clusters of more than MAX_BATCH documents.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from tempfile import TemporaryFile
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from meditron.corpus.document_files import DocumentFiles
from meditron.corpus.sketches import MAX_COMPARED, join_similar, read_sketches, select_in_groups

__all__ = ["Buckets", "Clusters", "KeyColumns", "find_clusters", "select_documents"]

Rows = npt.NDArray[np.int64]

MAX_BATCH = 8_192
"""Maximum number of documents whose sketches are in memory at once, at most 64 MiB."""
_PART = 1 << 21  # keys that are sorted at once


class Buckets(NamedTuple):
    """Groups of at least two documents."""

    rows: Rows
    """Row numbers, bucket after bucket, ascending within each."""
    ends: Rows
    """Position in `rows` after each bucket."""


class KeyColumns(AbstractContextManager["KeyColumns"]):
    """The keys of all documents in a temporary file, one column after the other."""

    def __init__(self, files: DocumentFiles, name: str) -> None:
        """Copy the keys.

        Args:
            files: The pieces' files.
            name: Name of the pieces' arrays, of shape (columns, documents).
        """
        self._documents = int(files.ends[-1]) if len(files.ends) else 0
        # The file has no name, so nothing is left behind by a killed run.
        self._file = TemporaryFile(dir=files.folder)  # noqa: SIM115  # closed in __exit__
        for piece in range(len(files.pieces)):
            rows = files.rows(piece)
            for column, keys in enumerate(files.array(piece, name)[:, : len(rows)]):
                self._file.seek(8 * (column * self._documents + rows.start))
                self._file.write(keys.tobytes())

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def buckets(self, column: int, mask: npt.NDArray[np.bool_]) -> Iterator[Buckets]:
        """Yield the documents that share a key in a column; key 0 is no key.

        Args:
            column: Number of the column.
            mask: True for the documents to include.
        """
        parts = max(1, -(-self._documents // _PART))
        for part in range(parts):
            keys, rows = self._read_part(column, mask, part, parts)
            if not len(keys):
                continue
            order = np.argsort(keys)
            keys, rows = keys[order], rows[order]
            same = keys[1:] == keys[:-1]
            repeated = np.concatenate([same, [False]]) | np.concatenate([[False], same])
            keys, rows = keys[repeated], rows[repeated]
            order = np.lexsort((rows, keys))
            keys, rows = keys[order], rows[order]
            ends = np.append(np.flatnonzero(np.diff(keys)) + 1, len(keys))
            if len(rows):
                yield Buckets(rows.astype(np.int64), ends.astype(np.int64))

    def _read_part(
        self, column: int, mask: npt.NDArray[np.bool_], part: int, parts: int
    ) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint32]]:
        """Return the keys of a column in one of `parts` equal intervals of keys, and their row numbers."""
        found_keys, found_rows = [], []
        for start in range(0, self._documents, _PART):
            stop = min(start + _PART, self._documents)
            self._file.seek(8 * (column * self._documents + start))
            keys = np.frombuffer(self._file.read(8 * (stop - start)), dtype="<u8")
            chosen = mask[start:stop] & (keys != 0)
            if parts > 1:
                chosen &= ((keys >> np.uint64(32)) * np.uint64(parts)) >> np.uint64(32) == part
            places = np.flatnonzero(chosen)
            found_keys.append(keys[places])
            found_rows.append((places + start).astype(np.uint32))
        return np.concatenate(found_keys or [np.empty(0, "<u8")]), np.concatenate(
            found_rows or [np.empty(0, np.uint32)]
        )


class Clusters(NamedTuple):
    """The connected components of similar documents, and the number of comparisons."""

    parents: npt.NDArray[np.uint32]
    """A document's row number, or a smaller one of its component; its own only in the component's first."""
    compared: int
    """Number of pairs whose sketches were compared."""
    similar: int
    """Number of those that are similar, and joined two components."""

    def members(self) -> Buckets:
        """Return the components of at least two documents."""
        # In slices: the row numbers of all documents would need 8 bytes each.
        joined = [
            start + np.flatnonzero(part != np.arange(start, start + len(part)))
            for start, part in _slices(self.parents)
        ]
        rows = np.concatenate([np.empty(0, np.int64), *joined])
        firsts = _find_roots(self.parents, rows)
        rows = np.concatenate([rows, np.unique(firsts)])
        firsts = np.concatenate([firsts, np.unique(firsts)])
        order = np.lexsort((rows, firsts))
        ends = np.flatnonzero(np.diff(firsts[order])) + 1
        return Buckets(rows[order], np.append(ends, len(order)).astype(np.int64) if len(order) else ends)


def find_clusters(
    files: DocumentFiles,
    name: str,
    keys: KeyColumns,
    columns: Sequence[int],
    mask: npt.NDArray[np.bool_],
    threshold: float,
) -> Clusters:
    """Join the documents that share a key and have a Jaccard similarity of at least `threshold`.

    Args:
        files: The pieces' files.
        name: Name of the pass whose arrays `facts` and `sketches` are read.
        keys: The keys.
        columns: Columns of the keys, one per band.
        mask: True for the documents to compare.
        threshold: Jaccard similarity of the sketches.
    """
    parents = np.arange(len(mask), dtype=np.uint32)
    compared = similar = 0
    for column in columns:
        for buckets in keys.buckets(column, mask):
            # Most pairs share several keys; joined by the first, they need no sketches for the others.
            for batch in _batches(_of_several_components(buckets, parents)):
                sketches, sketch_ends = read_sketches(files, name, batch.rows)
                counts = join_similar(batch.rows, batch.ends, sketches, sketch_ends, parents, threshold)
                compared, similar = compared + counts[0], similar + counts[1]
    return Clusters(parents, compared, similar)


def select_documents(
    files: DocumentFiles,
    name: str,
    groups: Buckets,
    heldout: npt.NDArray[np.bool_],
    threshold: float,
    *,
    containment: bool = False,
) -> Rows:
    """Select the documents of each group to keep: those that are not similar to one selected before.

    If the first document of a group is held out, all documents of the group that are not held out are
    dropped, with the most similar selected one as their original.

    Args:
        files: The pieces' files.
        name: Name of the pass whose arrays are read.
        groups: The documents, the best of each group first.
        heldout: True for each position of `groups.rows` whose document is held out.
        threshold: Minimum similarity of a document to drop.
        containment: Compare by the share of a document's shingles that the selected one contains, instead of
            the Jaccard similarity.

    Returns:
        For each position of `groups.rows` the row number of the selected document that the document
        duplicates; -1 for selected documents.
    """
    originals = np.full(len(groups.rows), -1, dtype=np.int64)
    for start, stop, ends in _runs(groups.ends):
        kept: Rows = np.empty(0, np.int64)  # positions; of an earlier batch of a group that is too long
        for first in range(start, stop, MAX_BATCH):
            last = min(first + MAX_BATCH, stop)
            places = np.concatenate([kept, np.arange(first, last)])
            sketches, sketch_ends = read_sketches(files, name, groups.rows[places])
            if stop - start > MAX_BATCH:
                ends = np.array([len(places)])
            found = select_in_groups(
                ends, heldout[places], sketches, sketch_ends, threshold, containment, len(kept)
            )
            dropped = found >= 0
            originals[places[dropped]] = groups.rows[places[found[dropped]]]
            kept = places[~dropped][:MAX_COMPARED]
    return originals


def _runs(ends: Rows) -> Iterator[tuple[int, int, Rows]]:
    """Yield slices of whole groups with at most MAX_BATCH documents; a longer group is one by itself.

    Yields:
        The first position of the slice, the position after it, and the ends of its groups in the slice.
    """
    group = start = 0
    while group < len(ends):
        after = max(group + 1, int(np.searchsorted(ends, start + MAX_BATCH, side="right")))
        yield start, int(ends[after - 1]), ends[group:after] - start
        group, start = after, int(ends[after - 1])


def _batches(buckets: Buckets) -> Iterator[Buckets]:
    """Yield the buckets in batches of at most MAX_BATCH documents; longer buckets are cut.

    Every part of a longer bucket begins with the bucket's first document.
    """
    for start, stop, ends in _runs(buckets.ends):
        if stop - start <= MAX_BATCH:
            yield Buckets(buckets.rows[start:stop], ends)
            continue
        for first in range(start + 1, stop, MAX_BATCH - 1):
            rows = buckets.rows[first : min(first + MAX_BATCH - 1, stop)]
            rows = np.concatenate([buckets.rows[start : start + 1], rows])
            yield Buckets(rows, np.array([len(rows)]))


def _of_several_components(buckets: Buckets, parents: npt.NDArray[np.uint32]) -> Buckets:
    """Return the buckets whose documents are not all in one component yet."""
    roots = _find_roots(parents, buckets.rows)
    starts = np.concatenate([[0], buckets.ends[:-1]])
    several = np.minimum.reduceat(roots, starts) < np.maximum.reduceat(roots, starts)
    sizes = np.diff(buckets.ends, prepend=0)
    return Buckets(buckets.rows[np.repeat(several, sizes)], np.cumsum(sizes[several]))


def _find_roots(parents: npt.NDArray[np.uint32], rows: Rows) -> Rows:
    roots = parents[rows]
    while True:
        above = parents[roots]
        if np.array_equal(above, roots):
            return roots.astype(np.int64)
        roots = above


def _slices(values: npt.NDArray[np.uint32]) -> Iterator[tuple[int, npt.NDArray[np.uint32]]]:
    for start in range(0, len(values), _PART):
        yield start, values[start : start + _PART]
