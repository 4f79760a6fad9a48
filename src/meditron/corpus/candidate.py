"""The datum of the corpus passes, and the base class of a pass."""

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

__all__ = ["Candidate", "CorpusPass", "DocumentTable", "DropReason"]

DropReason = NewType("DropReason", str)
"""Why a document is not in the corpus, as reports and `drops.jsonl.zst` print it: `too short`."""


@dataclass(frozen=True)
class Candidate:
    """A document on its way through the passes."""

    document: Document
    text: str = ""
    """The cleaned text; empty before the pass that renders it."""
    spans: tuple[SectionSpan, ...] = ()
    """The labelled sections in `text`."""
    heldout: bool = False

    @cached_property
    def content_sha256(self) -> str:
        """SHA-256 of the normalised text: equal for equal content."""
        return content_sha256(self.text)


@dataclass(frozen=True)
class DocumentTable:
    """All documents of all sources, in the order of the sources, their files and their documents."""

    index: npt.NDArray[Any]
    """Rows of `dedup.INDEX`. `reason` is 0 for documents that the passes so far keep."""
    deleted: npt.NDArray[np.uint64]
    """Ids that a source declares deleted, shape (n, 2), see `dedup.id_key`."""
    signature: npt.NDArray[Any] | None = None
    """The pass's own rows, see `CorpusPass.signature`."""


class CorpusPass:
    """One pass over the documents, with two hooks; a pass overrides the ones it needs.

    `examine` sees one document at a time, in parallel. `compare` sees the table of all documents, once. A
    pass that compares more than ids and contents sets `signature` and overrides `sign`: the result is stored
    beside the index and handed to `compare`.
    """

    reasons: tuple[DropReason, ...] = ()
    """All reasons for which the pass drops documents."""

    signature: npt.DTypeLike | None = None
    """Type of the array row that `compare` needs of each document; None for a pass without signatures."""

    def __init__(self, config: CorpusConfig) -> None:
        self.config = config

    @property
    def name(self) -> str:
        """The pass's name in errors and in the names of working files."""
        return type(self).__name__.lower()

    def examine(self, candidate: Candidate) -> Candidate | DropReason:
        """Return the document, changed or not, or the reason to drop it."""
        return candidate

    def sign(self, candidate: Candidate) -> tuple[object, ...]:
        """Return the row of `signature` for a document that `examine` kept."""
        raise NotImplementedError

    def compare(self, documents: DocumentTable) -> Mapping[DropReason, npt.NDArray[np.integer[Any]]]:
        """Return the row numbers of the documents to drop by reason.

        If a row has several reasons, also from an earlier pass, the last one counts.
        """
        return {}
