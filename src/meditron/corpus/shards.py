"""The second half of the corpus stage: write the pieces' documents to the shards of the splits.

A shard consists of consecutive pieces of one source with at most `shard_documents` documents in total; the
pieces may come from different files.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from meditron.corpus.decontamination.outputs import hit_rows
from meditron.corpus.decontamination.step import CONTAMINATED
from meditron.corpus.dedup import unique_id
from meditron.corpus.passes import KEPT, PassPipeline
from meditron.corpus.personal_information import shown_beginning
from meditron.corpus.pieces import MAX_CHARACTERS, SAMPLE_CHARACTERS, Piece, load_array
from meditron.corpus.tally import ContentTally
from meditron.store.contamination import HITS_FILE, QUARANTINE_FILE
from meditron.store.files import read_json, write_json
from meditron.store.jsonl import JsonlWriter, read_jsonl

__all__ = ["DECISION", "Shard", "WriteShardTask", "contamination_files", "plan_shards"]

DECISION = np.dtype([("reason", "u1"), ("occurrence", "<u4"), ("heldout", "?")])
"""NumPy type of the decision about a document: the code of its drop reason (`PassPipeline.reason_text`), its
number among the documents with the same id (`dedup.unique_id`), and its split."""


@dataclass(frozen=True, slots=True)
class Shard:
    """Consecutive documents of a source; those of each split are written to one file."""

    source: str
    shard_number: int
    pieces: tuple[Piece, ...]
    document_count: int
    """Number of documents; fewer than the pieces contain if the limit ends within the last piece."""
    work_folder: Path

    @property
    def name(self) -> str:
        """File name without suffix. Sorting the names sorts the shards."""
        return f"{self.shard_number:06d}"

    def working_file(self, suffix: str) -> Path:
        """Return the path of `decisions.npy`, `originals.json`, `drops.jsonl.zst` or `counts.json`."""
        return self.work_folder / self.source / f"{self.name}.{suffix}"


def plan_shards(
    source: str, pieces: Sequence[tuple[Piece, int, int]], max_documents: int, work: Path
) -> Iterator[Shard]:
    """Group a source's pieces into shards.

    A piece is added to the current shard as long as the shard stays within `max_documents` documents and
    MAX_CHARACTERS characters. The number of shards therefore depends on the number of documents, not of
    files.

    Args:
        source: The source's name.
        pieces: Each piece with its number of documents and its number of characters.
        max_documents: Maximum number of documents of a shard.
        work: Folder of the working files.
    """
    number = documents = characters = 0
    shard_pieces: list[Piece] = []
    for piece, piece_documents, piece_characters in pieces:
        fits = documents + piece_documents <= max_documents
        if shard_pieces and not (fits and characters + piece_characters <= MAX_CHARACTERS):
            yield Shard(source, number, tuple(shard_pieces), documents, work)
            number, documents, characters, shard_pieces = number + 1, 0, 0, []
        shard_pieces.append(piece)
        documents += piece_documents
        characters += piece_characters
    if shard_pieces:
        yield Shard(source, number, tuple(shard_pieces), documents, work)


def contamination_files(shard: Shard) -> dict[str, Path]:
    """Return the working files of a shard's hits and quarantined documents, by the names of the outputs."""
    return {name: shard.working_file(name) for name in (HITS_FILE, QUARANTINE_FILE)}


@dataclass(frozen=True, slots=True)
class WriteShardTask:
    """Task for `execute_tasks`: number i writes the kept and the dropped documents of shard i."""

    pipeline: PassPipeline
    shards: tuple[Shard, ...]
    out: Path

    def result_file(self, task: int) -> Path:
        """Return the file that marks a shard as finished."""
        return self.shards[task].working_file("counts.json")

    def __call__(self, task: int) -> None:
        """Write the files of one shard; `counts.json`, which marks the shard as complete, is the last."""
        shard = self.shards[task]
        decisions = load_array(shard.working_file("decisions.npy"))
        originals = read_json(shard.working_file("originals.json"))
        pieces = (read_jsonl(piece.working_file("candidates.jsonl.zst")) for piece in shard.pieces)
        # Only the last piece of a source can have more documents than decisions, because of the limit.
        rows = islice(chain.from_iterable(pieces), len(decisions))
        document_counts: Counter[str] = Counter({"read": len(decisions)})
        dropped: Counter[str] = Counter()
        content = ContentTally()
        policy = self.pipeline.config.personal_information
        # JsonlWriter renames its file when it is closed: no file is visible before all documents are written.
        with ExitStack() as files:
            writers_by_path: dict[Path, JsonlWriter] = {}

            def write_row(path: Path, row: Mapping[str, Any]) -> None:
                # Opened on first use, so a split without documents has no file.
                if path not in writers_by_path:
                    writers_by_path[path] = files.enter_context(JsonlWriter(path))
                writers_by_path[path].write(row)

            for number, (row, (code, occurrence, heldout)) in enumerate(zip(rows, decisions, strict=True)):
                row |= {"id": unique_id(row["id"], occurrence), "source": shard.source}
                hits, split = row.pop("benchmark_hits", ()), None
                if code == KEPT:
                    split = "heldout" if heldout else "train"
                    write_row(self.out / split / shard.source / f"{shard.name}.jsonl.zst", row)
                    document_counts.update({"kept": 1, split: 1, f"{split}_characters": len(row["text"])})
                    content.add(row)
                else:
                    drop = {
                        "id": row["id"],
                        "source": shard.source,
                        "reason": self.pipeline.reason_text(code),
                    }
                    if original := originals.get(str(number)):
                        drop["of"] = original
                    # A document that is dropped because of another one, such as a copy, is not masked yet.
                    drop["sample"] = shown_beginning(row["text"], SAMPLE_CHARACTERS, policy)
                    write_row(shard.working_file("drops.jsonl.zst"), drop)
                    dropped[drop["reason"]] += 1
                    if drop["reason"] == CONTAMINATED:
                        split = "removed"
                        write_row(shard.working_file(QUARANTINE_FILE), row | {"benchmark_hits": hits})
                # Documents that are dropped for another reason, such as copies, are not listed.
                for hit in hit_rows(hits, row, split) if split else ():
                    write_row(shard.working_file(HITS_FILE), hit)
        write_json(
            shard.working_file("counts.json"),
            dict(document_counts) | {"dropped": dict(sorted(dropped.items())), "content": content.to_json()},
        )
