"""The second half of the corpus stage: pieces to the shards of the splits.

A shard is a run of pieces with at most `shard_documents` documents together, whatever files they come from.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from meditron.corpus.dedup import unique_id
from meditron.corpus.passes import KEPT, PassPipeline
from meditron.corpus.pieces import MAX_CHARACTERS, SAMPLE_CHARACTERS, Piece, load_array
from meditron.store.files import write_json
from meditron.store.jsonl import JsonlWriter, read_jsonl

__all__ = ["DECISION", "Shard", "WriteShards", "plan_shards"]

DECISION = np.dtype([("reason", "u1"), ("occurrence", "<u4"), ("heldout", "?")])
"""A document's drop reason (`PassPipeline.text`), the number of its id's occurrence, and its split."""


@dataclass(frozen=True, slots=True)
class Shard:
    """Consecutive documents of a source that are written to one file per split."""

    source: str
    number: int
    pieces: tuple[Piece, ...]
    documents: int
    """Number of documents. Fewer than in the pieces if the source's limit cuts the last one."""
    work: Path

    @property
    def name(self) -> str:
        """The name of its files, without suffix; names sort in the documents' order."""
        return f"{self.number:06d}"

    def file(self, suffix: str) -> Path:
        """Return the working file `decisions.npy`, `drops.jsonl.zst` or `counts.json`."""
        return self.work / self.source / f"{self.name}.{suffix}"


def plan_shards(
    source: str, pieces: Sequence[tuple[Piece, int, int]], max_documents: int, work: Path
) -> Iterator[Shard]:
    """Group a source's pieces into shards.

    Two neighbouring shards have more than `max_documents` documents together (or MAX_CHARACTERS characters),
    so the number of shards follows from the number of documents and not from that of files.

    Args:
        source: The source's name.
        pieces: Each piece with its number of documents and characters.
        max_documents: Documents of a shard, at most.
        work: The work folder.
    """
    number = documents = characters = 0
    members: list[Piece] = []
    for piece, piece_documents, piece_characters in pieces:
        fits = documents + piece_documents <= max_documents
        # A piece is never split: a shard ends before the piece that would exceed a limit.
        if members and not (fits and characters + piece_characters <= MAX_CHARACTERS):
            yield Shard(source, number, tuple(members), documents, work)
            number, documents, characters, members = number + 1, 0, 0, []
        members.append(piece)
        documents += piece_documents
        characters += piece_characters
    if members:
        yield Shard(source, number, tuple(members), documents, work)


@dataclass(frozen=True, slots=True)
class WriteShards:
    """Task i writes the kept documents of shard i to the splits, and the dropped ones with their reasons."""

    pipeline: PassPipeline
    shards: tuple[Shard, ...]
    out: Path

    def __call__(self, task: int) -> None:
        """Write one shard's files, its counts last."""
        shard = self.shards[task]
        decisions = load_array(shard.file("decisions.npy"))
        pieces = (read_jsonl(piece.file("candidates.jsonl.zst")) for piece in shard.pieces)
        # One piece is open at a time. The limit can only cut the last piece of a source.
        rows = islice(chain.from_iterable(pieces), len(decisions))
        counts: Counter[str] = Counter({"read": len(decisions)})
        dropped: Counter[str] = Counter()
        # JsonlWriter renames its file at its end: none of them appears before every document is written.
        with ExitStack() as files:
            writers: dict[Path, JsonlWriter] = {}

            def write(path: Path, row: Mapping[str, Any]) -> None:
                if path not in writers:  # a split without documents gets no file
                    writers[path] = files.enter_context(JsonlWriter(path))
                writers[path].write(row)

            for row, (code, occurrence, heldout) in zip(rows, decisions, strict=True):
                row |= {"id": unique_id(row["id"], occurrence), "source": shard.source}
                if code == KEPT:
                    split = "heldout" if heldout else "train"
                    write(self.out / split / shard.source / f"{shard.name}.jsonl.zst", row)
                    counts.update({"kept": 1, split: 1, f"{split}_characters": len(row["text"])})
                else:
                    drop = {"id": row["id"], "source": shard.source, "reason": self.pipeline.text(code)}
                    write(shard.file("drops.jsonl.zst"), drop | {"sample": row["text"][:SAMPLE_CHARACTERS]})
                    dropped[drop["reason"]] += 1
        write_json(shard.file("counts.json"), dict(counts) | {"dropped": dict(sorted(dropped.items()))})
