"""Comparison of documents by their sketches: the hashes of their shingles (`minhash.Signature`)."""

import numpy as np
import numpy.typing as npt

from meditron.corpus.document_files import DocumentFiles
from meditron.corpus.minhash import SKETCH_SIZE
from meditron.search.kernels import compiled

__all__ = ["FACTS", "MAX_COMPARED", "join_similar", "read_sketches", "select_in_groups"]

Rows = npt.NDArray[np.int64]
Shingles = npt.NDArray[np.uint32]

FACTS = np.dtype([("year", "<i2"), ("shingles", "<u4"), ("sketch_end", "<i8")])
"""NumPy type of a document's row in a piece's array `facts`: its year or 0, its number of shingles, and the
position after its sketch in the array `sketches`."""

MAX_COMPARED = 1_024
"""Maximum number of selected documents of a group with which the others are compared."""
# A bucket of documents that share a key but are not similar would need a comparison of all pairs.
_MAX_REPRESENTATIVES = 64


def read_sketches(files: DocumentFiles, name: str, rows: Rows) -> tuple[Shingles, Rows]:
    """Return the sketches of documents, each sorted and without repeats, and the position after each."""
    sketches: list[Shingles] = [np.empty(0, np.uint32)] * len(rows)
    for piece, positions, places in files.split_by_piece(rows):
        ends = files.array(piece, f"{name}.facts")["sketch_end"]
        values = files.array(piece, f"{name}.sketches")
        starts = np.where(places > 0, ends[places - 1], 0)
        for position, start, end in zip(positions, starts, ends[places], strict=True):
            sketches[position] = np.sort(values[start:end])  # vectorized, unlike numba's
    ends = np.cumsum([len(sketch) for sketch in sketches], dtype=np.int64)
    joined = np.concatenate([np.empty(0, np.uint32), *sketches])
    return joined, _remove_repeats(joined, ends)


@compiled("int64[::1](uint32[::1], int64[::1])")
def _remove_repeats(values: Shingles, ends: Rows) -> Rows:
    """Remove the repeats in each sorted sketch, and close the gaps; return the position after each."""
    new_ends = np.empty_like(ends)
    start = count = 0
    for i in range(len(ends)):
        first = count
        for position in range(start, ends[i]):
            if count == first or values[count - 1] != values[position]:
                values[count] = values[position]
                count += 1
        start = ends[i]
        new_ends[i] = count
    return new_ends


@compiled("float64(uint32[::1], int64[::1], int64, int64, boolean)")
def _similarity(values: Shingles, ends: Rows, one: int, other: int, containment: bool) -> float:
    """Return the Jaccard similarity of two sketches, or the share of `other` that `one` contains.

    The smallest values of a random order are a random sample of a set (Broder 1997). If a sketch is cut off,
    both are compared up to the smaller of their largest values; otherwise the result is exact.
    """
    i = ends[one - 1] if one else 0
    j = ends[other - 1] if other else 0
    end, other_end = ends[one], ends[other]
    if i == end or j == other_end:
        return 0.0
    limit = np.uint32(0xFFFFFFFF)
    if end - i == SKETCH_SIZE:
        limit = min(limit, values[end - 1])
    if other_end - j == SKETCH_SIZE:
        limit = min(limit, values[other_end - 1])
    common = only_one = only_other = 0
    while True:
        in_one, in_other = i < end and values[i] <= limit, j < other_end and values[j] <= limit
        if not (in_one or in_other):
            break
        if in_one and in_other and values[i] == values[j]:
            common, i, j = common + 1, i + 1, j + 1
        elif in_one and (not in_other or values[i] < values[j]):
            only_one, i = only_one + 1, i + 1
        else:
            only_other, j = only_other + 1, j + 1
    whole = common + only_other if containment else common + only_one + only_other
    return common / whole if whole else 0.0


@compiled("int64(uint32[::1], int64)")
def _root(parents: npt.NDArray[np.uint32], row: int) -> int:
    while parents[row] != row:
        parents[row] = parents[parents[row]]  # halves the path for the next search
        row = np.int64(parents[row])  # type: ignore[assignment]  # numba needs one type
    return row


@compiled("UniTuple(int64, 2)(int64[::1], int64[::1], uint32[::1], int64[::1], uint32[::1], float64)")
def join_similar(
    rows: Rows,
    ends: Rows,
    values: Shingles,
    sketch_ends: Rows,
    parents: npt.NDArray[np.uint32],
    threshold: float,
) -> tuple[int, int]:
    """Join the components of similar documents of each bucket; return the numbers of pairs and of matches.

    Each document is compared with the bucket's representatives: those that are like none before them.
    """
    representatives = np.empty(_MAX_REPRESENTATIVES, np.int64)
    compared = similar = start = 0
    for end in ends:
        count = 0
        for place in range(start, end):
            matched = False
            for i in range(count):
                root, other_root = _root(parents, rows[place]), _root(parents, rows[representatives[i]])
                if root == other_root:
                    matched = True
                    continue
                compared += 1
                if _similarity(values, sketch_ends, representatives[i], place, False) >= threshold:
                    matched = True
                    similar += 1
                    # The smaller row is the root: the result is the same for any order of joins.
                    parents[max(root, other_root)] = min(root, other_root)
            if not matched and count < _MAX_REPRESENTATIVES:
                representatives[count] = place
                count += 1
        start = end
    return compared, similar


@compiled("int64[::1](int64[::1], boolean[::1], uint32[::1], int64[::1], float64, boolean, int64)")
def select_in_groups(
    ends: Rows,
    heldout: npt.NDArray[np.bool_],
    values: Shingles,
    sketch_ends: Rows,
    threshold: float,
    containment: bool,
    known: int,
) -> Rows:
    """Return for each document the position of the kept document that it duplicates, or -1.

    The first `known` documents are kept without a comparison.
    """
    originals = np.full(len(heldout), np.int64(-1))
    kept = np.empty(MAX_COMPARED, np.int64)
    start = 0
    for end in ends:
        count = 0
        for place in range(start, end):
            leaves = heldout[start] and not heldout[place]  # whatever its similarity
            best, original = -1.0, np.int64(-1)
            for i in range(count if place >= known else 0):
                similarity = _similarity(values, sketch_ends, kept[i], place, containment)
                if similarity > best and (leaves or similarity >= threshold):
                    best, original = similarity, kept[i]
            originals[place] = original
            if original < 0 and count < MAX_COMPARED:
                kept[count] = place
                count += 1
        start = end
    return originals
