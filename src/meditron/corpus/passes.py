"""The passes of the corpus, in order.

A new pass (near-duplicates, decontamination, personal information) is one file with a `CorpusPass` and one
line in PASSES.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from meditron.corpus.candidate import Candidate, CorpusPass, DocumentTable, DropReason
from meditron.corpus.clean import Clean
from meditron.corpus.config import CorpusConfig
from meditron.corpus.dedup import Deduplication
from meditron.corpus.filters import Length, Retraction, TitleOnly
from meditron.corpus.languages import Language
from meditron.corpus.split import Split
from meditron.sources.document import Document

__all__ = ["KEPT", "PASSES", "PassFactory", "PassPipeline"]

PassFactory = Callable[[CorpusConfig], CorpusPass]

# Clean renders the text that all others read. Split is last: it reads the text that all others left.
PASSES: tuple[PassFactory, ...] = (
    Clean,
    Retraction,
    Language,
    TitleOnly,
    Length,
    Deduplication,
    Split,
)

KEPT = 0
"""Code of documents that no pass drops."""


class PassPipeline:
    """The passes of one corpus, and the numbers under which the index stores their drop reasons."""

    def __init__(self, config: CorpusConfig, factories: Sequence[PassFactory] = PASSES) -> None:
        self.passes = tuple(factory(config) for factory in factories)
        # Two passes may share a reason; both are then counted under it.
        self.reasons = tuple(dict.fromkeys(reason for step in self.passes for reason in step.reasons))
        self._codes = {reason: code for code, reason in enumerate(self.reasons, start=KEPT + 1)}
        # The index stores a code in one byte.
        if len(self.reasons) > np.iinfo(np.uint8).max:
            raise ValueError(f"{len(self.reasons)} drop reasons; the index has room for 255")

    def text(self, code: int) -> str:
        """Return the drop reason of a code; `kept` for KEPT."""
        return "kept" if code == KEPT else self.reasons[code - 1]

    def codes(self, reasons: Sequence[DropReason]) -> list[int]:
        """Return the codes of these reasons, without those that no pass has."""
        return [self._codes[reason] for reason in reasons if reason in self._codes]

    def examine(self, document: Document) -> tuple[Candidate, int]:
        """Apply the passes to one document, up to the first that drops it.

        Returns:
            The document as the passes left it, and the code of its drop reason, or KEPT.
        """
        candidate = Candidate(document)
        for step in self.passes:
            result = step.examine(candidate)
            # The candidate of a dropped document is still needed: its id, version and content are indexed,
            # because a retracted newest version supersedes the older ones.
            if isinstance(result, str):
                return candidate, self._code(step, result)
            candidate = result
        return candidate, KEPT

    def compare(
        self,
        index: npt.NDArray[Any],
        deleted: npt.NDArray[np.uint64],
        signatures: Mapping[str, npt.NDArray[Any]],
    ) -> npt.NDArray[np.uint8]:
        """Compare all documents, and return the final code of each.

        Args:
            index: Rows of `dedup.INDEX`.
            deleted: Ids that a source declares deleted, see `DocumentTable`.
            signatures: The rows of each pass that has signatures, by the pass's name.
        """
        index = index.copy()  # each pass sees the reasons of the passes before it
        for step in self.passes:
            table = DocumentTable(index, deleted, signatures.get(step.name))
            for reason, rows in step.compare(table).items():
                index["reason"][rows] = self._code(step, reason)
        return np.ascontiguousarray(index["reason"])

    def _code(self, step: CorpusPass, reason: DropReason) -> int:
        if reason not in step.reasons:
            raise ValueError(f"the pass {step.name} drops for '{reason}', which is not in its reasons")
        return self._codes[reason]
