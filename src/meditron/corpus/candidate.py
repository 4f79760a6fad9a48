"""The document type that the corpus passes process, and the base classes of a pass."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NewType

import numpy as np
import numpy.typing as npt

from meditron.corpus.config import CorpusConfig
from meditron.sources.document import Document
from meditron.store.corpus import SectionSpan
from meditron.store.identity import content_sha256

__all__ = ["Candidate", "CorpusPass", "DocumentTable", "DropReason", "SignaturePass"]

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

    @cached_property
    def content_sha256(self) -> str:
        """SHA-256 of the normalised text; documents with equal hashes have the same text."""
        return content_sha256(self.text)


@dataclass(frozen=True)
class DocumentTable:
    """All documents of all sources, sorted by source, file and position in the file."""

    index: npt.NDArray[Any]
    """Rows of type `dedup.INDEX`. Their `reason` is 0 if no earlier pass drops the document."""
    deleted_ids: npt.NDArray[np.uint64]
    """Hashes (`dedup.id_hash`) of the ids that a source declares deleted, shape (n, 2)."""
    signatures: npt.NDArray[Any] | None = None
    """One row for each document, from `SignaturePass.signature_row`; None for other passes."""


class CorpusPass:
    """Base class of the passes. A pass overrides the hooks that it needs.

    `process_document` is called for each document, in parallel. `compare_documents` is called once, with a
    table of all documents.
    """

    drop_reasons: tuple[DropReason, ...] = ()
    """All reasons for which this pass drops documents."""

    def __init__(self, config: CorpusConfig) -> None:
        self.config = config

    @property
    def name(self) -> str:
        """Name of the pass in errors and in the names of working files: its class name in lower case."""
        return type(self).__name__.lower()

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
