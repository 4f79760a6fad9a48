"""The decisions about the documents, which the tasks that write the shards read."""

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from meditron.corpus.dedup import unique_id
from meditron.corpus.document_files import DocumentFiles
from meditron.corpus.passes import KEPT, Comparison
from meditron.corpus.pieces import save_array
from meditron.corpus.shards import DECISION, Shard
from meditron.store.files import write_json

__all__ = ["write_decisions"]

_BLOCK = 1 << 20  # documents, or ids of documents, that are in memory at once


def write_decisions(
    shards: Sequence[Shard],
    comparison: Comparison,
    occurrences: npt.NDArray[np.uint32],
    heldout: npt.NDArray[np.bool_],
    files: DocumentFiles,
) -> None:
    """Write `decisions.npy` and `originals.json` of each shard.

    Args:
        shards: The shards of all sources, in order.
        comparison: The result of comparing all documents.
        occurrences: Number of each document among those with the same id (`dedup.occurrence_numbers`).
        heldout: True for each document of the held-out split.
        files: The documents' working files.
    """
    ends = np.cumsum([shard.document_count for shard in shards]).tolist()
    # Decisions depend on the inputs alone, so the files that a killed run wrote, in this order, are valid.
    written = [shard.working_file("decisions.npy").exists() for shard in shards]
    first = written.index(False) if False in written else len(shards)
    end = ends[first - 1] if first else 0
    originals = _original_ids(comparison, occurrences, files, end)
    following = next(originals, None)
    for shard, shard_end in zip(shards[first:], ends[first:], strict=True):
        start, end = end, shard_end
        of_shard: dict[str, str] = {}
        while following is not None and following[0] < end:
            of_shard[str(following[0] - start)] = following[1]
            following = next(originals, None)
        decisions = np.empty(shard.document_count, DECISION)
        decisions["reason"] = comparison.reasons[start:end]
        decisions["occurrence"] = occurrences[start:end]
        decisions["heldout"] = heldout[start:end]
        write_json(shard.working_file("originals.json"), of_shard)
        save_array(shard.working_file("decisions.npy"), decisions)


def _original_ids(
    comparison: Comparison, occurrences: npt.NDArray[np.uint32], files: DocumentFiles, start: int
) -> Iterator[tuple[int, str]]:
    """Yield each row from `start` that duplicates another one, in order, with the final id of the other."""
    duplicates: list[npt.NDArray[np.int64]] = []
    for block in range(start, len(occurrences), _BLOCK):
        originals = comparison.originals[block : block + _BLOCK]
        dropped = comparison.reasons[block : block + _BLOCK] != KEPT
        own = np.arange(block, block + len(originals), dtype=np.uint32)
        duplicates.append(block + np.flatnonzero((originals != own) & dropped))
        # Their ids are in files all over the corpus: each of these is opened once for many duplicates.
        if sum(map(len, duplicates)) >= _BLOCK or block + _BLOCK >= len(occurrences):
            places, duplicates = np.concatenate(duplicates), []
            rows = comparison.originals[places].astype(np.int64)
            for place, identity, row in zip(places.tolist(), files.ids(rows), rows, strict=True):
                yield place, unique_id(identity, int(occurrences[row]))
