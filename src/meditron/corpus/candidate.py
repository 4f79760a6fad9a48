"""The document type that the corpus passes process, and the base classes of a pass."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NewType

import numpy as np
import numpy.typing as npt

from meditron.corpus.config import CorpusConfig
from meditron.corpus.document_files import DocumentFiles
from meditron.corpus.text_statistics import TextStatistics, text_statistics
from meditron.sources.document import Document
from meditron.store.contamination import BenchmarkHit
from meditron.store.corpus import SectionSpan
from meditron.store.identity import content_sha256
from meditron.store.manifest import Artifact

__all__ = ["Candidate", "CorpusPass", "DocumentTable", "DropReason", "SignaturePass", "StoredSignaturePass"]

DropReason = NewType("DropReason", str)
"""Reason for dropping a document, in the words of reports and of `drops.jsonl.zst`: `too short`."""


@dataclass(frozen=True)
class Candidate:
    """A document while the passes process it."""

    document: Document
    text: str = ""
    """The cleaned text; empty until the pass `Clean` has rendered it."""
    section_spans: tuple[SectionSpan, ...] = ()
    """Positions of the labelled sections in `text`."""
    heldout: bool = False
    """True if the document belongs to the held-out split."""
    source: str = ""
    """Name of the document's source in the recipe."""
    row_fields: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of the document's row in the corpus, as JSON values, that passes add: `licence`."""
    benchmark_hits: tuple[BenchmarkHit, ...] = ()
    """Benchmark questions that the text contains."""

    @cached_property
    def content_sha256(self) -> str:
        """SHA-256 of the normalised text; documents with equal hashes have the same text."""
        return content_sha256(self.text)

    @cached_property
    def statistics(self) -> TextStatistics:
        """Shares of words, lines and characters of the text, which filters compare with their thresholds."""
        return text_statistics(self.text)


@dataclass(frozen=True)
class DocumentTable:
    """All documents of all sources, sorted by source, file and position in the file."""

    index: npt.NDArray[Any]
    """Rows of type `dedup.INDEX`. Their `reason` is 0 if no earlier pass drops the document."""
    deleted_ids: npt.NDArray[np.uint64]
    """Hashes (`dedup.id_hash`) of the ids that a source declares deleted, shape (n, 2)."""
    signatures: npt.NDArray[Any] | None = None
    """One row for each document, from `SignaturePass.signature_row`; None for other passes."""
    files: DocumentFiles = field(default_factory=DocumentFiles)
    """The documents' working files, with the arrays of each `StoredSignaturePass`."""
    originals: npt.NDArray[np.uint32] | None = None
    """For each row its own number, or that of the document that it duplicates. A pass changes the rows of the
    duplicates that it drops; the id of the other document is then written to `drops.jsonl.zst`."""
    metrics: dict[str, Any] = field(default_factory=dict)
    """Metrics of the comparison; a pass adds its own, under one key."""


class CorpusPass:
    """Base class of the passes. A pass overrides the hooks that it needs.

    `process_document` is called for each document, in parallel. `compare_documents` is called once, with a
    table of all documents.
    """

    drop_reasons: tuple[DropReason, ...] = ()
    """All reasons for which this pass drops documents."""

    work_folder: Path | None = None
    """Folder of the working files, in every process; None if there are none, as in a test of one document."""

    def __init__(self, config: CorpusConfig) -> None:
        self.config = config

    @property
    def name(self) -> str:
        """Name of the pass in errors and in the names of working files: its class name in lower case."""
        return type(self).__name__.lower()

    def prepare(self, inputs: Mapping[str, Artifact], work: Path) -> None:
        """Write files that `process_document` reads to the folder `work`; called once, before all workers.

        Args:
            inputs: The stage's inputs by name.
            work: The folder of the working files, which a killed run leaves behind for the next one.
        """

    def process_document(self, candidate: Candidate) -> Candidate | DropReason:
        """Return the document, changed or unchanged, or the reason to drop it."""
        return candidate

    def compare_documents(
        self, documents: DocumentTable
    ) -> Mapping[DropReason, npt.NDArray[np.integer[Any]]]:
        """Return, for each reason, the row numbers of the documents to drop.

        If a document has several reasons, from this pass or from earlier ones, the last one is recorded.
        """
        return {}


class SignaturePass(CorpusPass, ABC):
    """Base class of passes that compare more than ids and contents, such as near-duplicate detection.

    The signatures are computed in parallel, stored beside the index, and passed to `compare_documents`.
    """

    signature_dtype: npt.DTypeLike
    """NumPy type of the rows that `signature_row` returns."""

    @abstractmethod
    def signature_row(self, candidate: Candidate) -> tuple[object, ...]:
        """Return the signature of a document that `process_document` kept."""


class StoredSignaturePass(CorpusPass, ABC):
    """Base class of passes whose signatures are too large for memory, or differ in length.

    The signatures are computed in parallel and stored as arrays, piece by piece. `compare_documents` reads
    them from the disk (`DocumentTable.files`).
    """

    @abstractmethod
    def document_signature(self, candidate: Candidate) -> object:
        """Return the signature of a document that `process_document` kept."""

    @abstractmethod
    def piece_arrays(self, signatures: Sequence[Any]) -> Mapping[str, npt.NDArray[Any]]:
        """Return the arrays to store for a piece: name → array.

        Args:
            signatures: The signature of each document of the piece; None for documents that are dropped.
        """
