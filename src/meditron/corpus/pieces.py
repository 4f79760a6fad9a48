"""The first half of the corpus stage: read the source files, apply the passes, write the result in pieces.

Files are read in groups: one large file or many small ones. A group's documents are written in pieces of at
most `shard_documents` documents, each with its index. Files are written atomically, so a resumed run can
keep the pieces that a killed run finished.
"""

from collections.abc import Iterator
from dataclasses import astuple, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from meditron.corpus.candidate import Candidate, SignaturePass, StoredSignaturePass
from meditron.corpus.config import CorpusConfig
from meditron.corpus.dedup import INDEX, id_hash, index_row
from meditron.corpus.files import FileGroup, GroupList, member_skip_rule
from meditron.corpus.passes import KEPT, PassPipeline
from meditron.corpus.personal_information import shown_beginning
from meditron.sources.document import Document, ReadLog
from meditron.sources.registry import find_source_format, open_source
from meditron.store.files import atomic_write, make_folder, read_json, write_json
from meditron.store.identity import short_hash
from meditron.store.jsonl import JsonlWriter

__all__ = ["MAX_CHARACTERS", "GroupResult", "Piece", "ReadGroupTask", "load_array", "save_array"]

MAX_CHARACTERS = 64 << 20
"""Maximum number of characters of a piece or shard; the document that exceeds it is still included. The
documents of one piece are in memory at the same time."""
SAMPLE_CHARACTERS = 300
"""Number of characters of a dropped document's text that are stored for reports."""
_TITLE_CHARACTERS = 120  # of the titles that reports show


@dataclass(frozen=True, slots=True)
class Piece:
    """Consecutive processed documents of a source, stored in the work folder."""

    source: str
    name: str
    work_folder: Path

    def working_file(self, suffix: str) -> Path:
        """Return the path of a working file.

        The files are `candidates.jsonl.zst`, `index.npy`, `names.json`, and `PASS.npy` or `PASS.ARRAY.npy` of
        a pass.
        """
        return self.work_folder / self.source / f"{self.name}.{suffix}"


@dataclass(frozen=True, slots=True)
class GroupResult:
    """Result of reading one group of files: its pieces, and its entries that are not documents."""

    source: str
    pieces: tuple[Piece, ...]
    piece_characters: tuple[int, ...]
    """Number of characters of each piece, in the order of `pieces`."""
    skipped: dict[str, int]
    """Reason → number of skipped entries."""
    deleted_ids: npt.NDArray[np.uint64]
    """Hashes (`dedup.id_hash`) of the ids that the files declare deleted or retracted, shape (n, 2)."""

    @classmethod
    def load(cls, group: FileGroup, work: Path) -> "GroupResult":
        """Read the result that `ReadGroupTask` wrote for a group."""
        result = read_json(_group_result_path(group, work))
        names = [_piece_name(group, number) for number in range(len(result["characters"]))]
        return cls(
            group.source,
            tuple(Piece(group.source, name, work) for name in names),
            tuple(result["characters"]),
            result["skipped"],
            np.array(list(map(id_hash, result["deleted"])), "<u8").reshape(-1, 2),
        )

    def count_documents(self) -> int:
        """Return the number of documents in the pieces."""
        return sum(len(np.load(piece.working_file("index.npy"), mmap_mode="r")) for piece in self.pieces)


@dataclass(frozen=True, slots=True)
class ReadGroupTask:
    """Task for `execute_tasks`: number i reads group i, applies the passes and writes the missing pieces."""

    config: CorpusConfig
    pipeline: PassPipeline
    groups: GroupList
    work_folder: Path

    def result_file(self, task: int) -> Path:
        """Return the file that marks a group as finished."""
        return _group_result_path(self.groups[task], self.work_folder)

    def __call__(self, task: int) -> None:
        """Read one group of files; InputError if one is damaged."""
        group = self.groups[task]
        make_folder(self.work_folder / group.source)
        log = ReadLog()
        characters = []
        # A resumed run parses the files again, but applies the passes to the missing pieces only.
        batches = _batch_documents(self._read_documents(group, log), self.config.shard_documents)
        for number, (documents, length) in enumerate(batches):
            piece = Piece(group.source, _piece_name(group, number), self.work_folder)
            if not piece.working_file("index.npy").exists():
                self._write_piece(piece, documents)
            characters.append(length)
        skipped = dict(sorted(log.skipped.items()))
        result = {"characters": characters, "skipped": skipped, "deleted": log.deleted + log.retracted}
        write_json(_group_result_path(group, self.work_folder), result)

    def _read_documents(self, group: FileGroup, log: ReadLog) -> Iterator[Document]:
        """Yield the documents of the group's files up to the limit, one open file at a time."""
        source = self.config.sources[group.source]
        remaining = self.config.limit
        for file in group.files:
            skip = member_skip_rule(source, file.name)
            documents = open_source(file.path, source.format, log, file.name, skip, source.reader_options())
            for document in islice(documents, remaining):
                yield document
                remaining = remaining and remaining - 1
            if remaining == 0:
                if not find_source_format(file.path, source.format, skip).declares_deletions:
                    return
                for _ in documents:  # read on: deletions are at the end of a file and apply to all files
                    pass

    def _write_piece(self, piece: Piece, documents: list[Document]) -> None:
        signing = [step for step in self.pipeline.passes if isinstance(step, SignaturePass)]
        # Dropped documents keep a row of zeros, so that row i of every array belongs to document i.
        signatures = {step.name: np.zeros(len(documents), step.signature_dtype) for step in signing}
        storing = [step for step in self.pipeline.passes if isinstance(step, StoredSignaturePass)]
        stored: dict[str, list[Any]] = {step.name: [None] * len(documents) for step in storing}
        rows = []
        names: dict[str, list[str]] = {"ids": [], "titles": []}
        with JsonlWriter(piece.working_file("candidates.jsonl.zst")) as writer:
            for number, document in enumerate(documents):
                candidate, code = self.pipeline.process_document(document, piece.source)
                rows.append(_index_row(candidate, code))
                writer.write(_candidate_row(candidate, self.config, kept=code == KEPT))
                names["ids"].append(candidate.document.id)
                names["titles"].append(self._short_title(candidate))
                for step in signing if code == KEPT else ():
                    signatures[step.name][number] = step.signature_row(candidate)
                for storing_step in storing if code == KEPT else ():
                    stored[storing_step.name][number] = storing_step.document_signature(candidate)
        for name, array in signatures.items():
            save_array(piece.working_file(f"{name}.npy"), array)
        for storing_step in storing:
            for name, array in storing_step.piece_arrays(stored[storing_step.name]).items():
                save_array(piece.working_file(f"{storing_step.name}.{name}.npy"), array)
        write_json(piece.working_file("names.json"), names)
        # Written last, because the existence of the index marks the piece as complete.
        save_array(piece.working_file("index.npy"), np.array(rows, dtype=INDEX))

    def _short_title(self, candidate: Candidate) -> str:
        """Return the beginning of a document's title, or of the text of an untitled one, for reports."""
        title = " ".join((candidate.document.title or candidate.text[:SAMPLE_CHARACTERS]).split())
        return shown_beginning(title, _TITLE_CHARACTERS, self.config.personal_information)


def _group_result_path(group: FileGroup, work: Path) -> Path:
    return work / group.source / f"{group.group_number:06d}.group.json"


def _piece_name(group: FileGroup, number: int) -> str:
    return f"{group.group_number:06d}-{number:06d}"


def _batch_documents(documents: Iterator[Document], size: int) -> Iterator[tuple[list[Document], int]]:
    """Yield batches of at most `size` documents, each with its number of characters.

    A batch ends early if it exceeds MAX_CHARACTERS.
    """
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
    # The index stores versions in 32 bits, which is enough for real ones; 0 means without version.
    version = document.version if document.version and 0 < document.version < 1 << 32 else 0
    return index_row(document.id, candidate.content_sha256, version, code, heldout=candidate.heldout)


def _candidate_row(candidate: Candidate, config: CorpusConfig, *, kept: bool) -> dict[str, Any]:
    document = candidate.document
    row: dict[str, Any] = {"id": document.id, "source": document.source}
    # Of a dropped document only the report shows the text, and only its beginning.
    row["text"] = (
        candidate.text
        if kept
        else shown_beginning(candidate.text, SAMPLE_CHARACTERS, config.personal_information)
    )
    if kept:
        row["content_hash"] = short_hash(candidate.content_sha256)
    if kept and candidate.section_spans:
        row["parts"] = [astuple(span) for span in candidate.section_spans]
    if kept:
        row |= candidate.row_fields
    if kept and candidate.benchmark_hits:
        row["benchmark_hits"] = [hit.to_json() for hit in candidate.benchmark_hits]
    meta: dict[str, Any] = {"title": document.title, "language": document.language, "year": document.year}
    if document.version is not None:
        meta["version"] = document.version
    return row | {"meta": meta | dict(document.meta)}


def save_array(path: Path, array: npt.NDArray[Any]) -> None:
    """Write an array as an `.npy` file, atomically."""
    with atomic_write(path) as file:
        np.save(file, array, allow_pickle=False)


def load_array(path: Path) -> npt.NDArray[Any]:
    """Read an array that `save_array` wrote."""
    return np.asarray(np.load(path, allow_pickle=False))
