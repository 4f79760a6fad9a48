"""The first half of the corpus stage: source files to examined documents, in pieces.

Files are read in groups: one large file, or many small ones. A group's documents are written in pieces of at
most `shard_documents`, each with its index. Every file appears whole, so a killed run keeps finished pieces.
"""

from collections.abc import Iterator
from dataclasses import astuple, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from meditron.corpus.candidate import Candidate
from meditron.corpus.config import CorpusConfig
from meditron.corpus.dedup import INDEX, index_row
from meditron.corpus.files import FileGroup, skip_rule
from meditron.corpus.passes import KEPT, PassPipeline
from meditron.sources.document import Document, ReadLog
from meditron.sources.registry import find_source, open_source
from meditron.store.files import atomic_write, make_folder, read_json, write_json
from meditron.store.jsonl import JsonlWriter

__all__ = ["MAX_CHARACTERS", "GroupResult", "Piece", "ReadFiles", "load_array", "save_array"]

MAX_CHARACTERS = 64 << 20
"""Characters of a piece or a shard, at most one document more. A piece's documents are in memory at once."""
SAMPLE_CHARACTERS = 300
"""Characters of a dropped document that are kept, for reports."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Consecutive documents of a source, examined, in the work folder."""

    source: str
    name: str
    work: Path

    def file(self, suffix: str) -> Path:
        """Return the path of `candidates.jsonl.zst`, `index.npy` or the signatures `PASS.npy`."""
        return self.work / self.source / f"{self.name}.{suffix}"


@dataclass(frozen=True, slots=True)
class GroupResult:
    """A finished group: its pieces in order, and the entries of its files that are not documents."""

    source: str
    pieces: tuple[Piece, ...]
    characters: tuple[int, ...]
    """Characters of each piece."""
    skipped: dict[str, int]
    deleted: tuple[str, ...]

    @classmethod
    def load(cls, group: FileGroup, work: Path) -> "GroupResult":
        """Read the result that `ReadFiles` wrote for a group."""
        result = read_json(_result_path(group, work))
        names = [_piece_name(group, number) for number in range(len(result["characters"]))]
        return cls(
            group.source,
            tuple(Piece(group.source, name, work) for name in names),
            tuple(result["characters"]),
            result["skipped"],
            tuple(result["deleted"]),
        )


@dataclass(frozen=True, slots=True)
class ReadFiles:
    """Task i reads group i, examines its documents and writes the pieces that do not exist yet."""

    config: CorpusConfig
    pipeline: PassPipeline
    groups: tuple[FileGroup, ...]
    work: Path

    def __call__(self, task: int) -> None:
        """Read one group of files; InputError if one is damaged."""
        group = self.groups[task]
        make_folder(self.work / group.source)
        log = ReadLog()
        characters = []
        # A resumed run reads the files again but writes only the missing pieces.
        batches = _batches(self._documents(group, log), self.config.shard_documents)
        for number, (documents, length) in enumerate(batches):
            piece = Piece(group.source, _piece_name(group, number), self.work)
            if not piece.file("index.npy").exists():
                self._write(piece, documents)
            characters.append(length)
        skipped = dict(sorted(log.skipped.items()))
        result = {"characters": characters, "skipped": skipped, "deleted": log.deleted}
        write_json(_result_path(group, self.work), result)

    def _documents(self, group: FileGroup, log: ReadLog) -> Iterator[Document]:
        """Yield the documents of the group's files up to the limit, one open file at a time."""
        source = self.config.sources[group.source]
        remaining = self.config.limit
        for file in group.files:
            skip = skip_rule(source, file.name)
            documents = open_source(file.path, source.format, log, file.name, skip)
            for document in islice(documents, remaining):
                yield document
                remaining = remaining and remaining - 1
            if remaining == 0 and find_source(file.path, source.format, skip).declares_deletions:
                for _ in documents:  # deletions are at the end of a file, and hold for other files too
                    pass

    def _write(self, piece: Piece, documents: list[Document]) -> None:
        signing = [step for step in self.pipeline.passes if step.signature is not None]
        # Rows of zeros for dropped documents: row i of every array is document i.
        signatures = {step.name: np.zeros(len(documents), step.signature) for step in signing}
        rows = []
        with JsonlWriter(piece.file("candidates.jsonl.zst")) as writer:
            for number, document in enumerate(documents):
                candidate, code = self.pipeline.examine(document)
                rows.append(_index_row(candidate, code))
                writer.write(_candidate_row(candidate, kept=code == KEPT))
                for step in signing if code == KEPT else ():
                    signatures[step.name][number] = step.sign(candidate)
        for name, array in signatures.items():
            save_array(piece.file(f"{name}.npy"), array)
        # The index is last: it marks the piece as complete.
        save_array(piece.file("index.npy"), np.array(rows, dtype=INDEX))


def _result_path(group: FileGroup, work: Path) -> Path:
    return work / group.source / f"{group.number:06d}.group.json"


def _piece_name(group: FileGroup, number: int) -> str:
    return f"{group.number:06d}-{number:06d}"


def _batches(documents: Iterator[Document], size: int) -> Iterator[tuple[list[Document], int]]:
    """Yield documents in batches of `size`, fewer if they are long, with the characters of each batch."""
    batch: list[Document] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += sum(len(section.text) for section in document.sections)
        if len(batch) == size or characters > MAX_CHARACTERS:
            yield batch, characters
            batch, characters = [], 0
    if batch:
        yield batch, characters


def _index_row(candidate: Candidate, code: int) -> tuple[object, ...]:
    document = candidate.document
    # The index stores 32 bits; no real version is larger, and 0 stands for a source without versions.
    version = document.version if document.version and 0 < document.version < 1 << 32 else 0
    return index_row(document.id, candidate.content_sha256, version, code, heldout=candidate.heldout)


def _candidate_row(candidate: Candidate, *, kept: bool) -> dict[str, Any]:
    document = candidate.document
    row: dict[str, Any] = {"id": document.id, "source": document.source}
    # A dropped text is read again for the report alone.
    row["text"] = candidate.text if kept else candidate.text[:SAMPLE_CHARACTERS]
    if kept and candidate.spans:
        row["parts"] = [astuple(span) for span in candidate.spans]
    meta: dict[str, Any] = {"title": document.title, "language": document.language, "year": document.year}
    if document.version is not None:
        meta["version"] = document.version
    return row | {"meta": meta | dict(document.meta)}


def save_array(path: Path, array: npt.NDArray[Any]) -> None:
    """Write an array as `.npy`, whole or not at all."""
    with atomic_write(path) as file:
        np.save(file, array, allow_pickle=False)


def load_array(path: Path) -> npt.NDArray[Any]:
    """Read an array that `save_array` wrote."""
    return np.asarray(np.load(path, allow_pickle=False))
