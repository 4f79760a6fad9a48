"""The list of corpus passes, and the pipeline that applies them.

To add a pass (near-duplicate detection, decontamination, removal of personal information), write one module
with a subclass of `CorpusPass` and add one line to PASSES.
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

# Clean is first: it renders the text that the other passes read. Split is last: it hashes the final text.
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
"""Reason code of documents that no pass drops."""


class PassPipeline:
    """The passes of one corpus. The index stores each drop reason as a number, its code."""

    def __init__(self, config: CorpusConfig, factories: Sequence[PassFactory] = PASSES) -> None:
        self.passes = tuple(factory(config) for factory in factories)
        # Two passes may use the same reason; their drops are then counted together.
        self.drop_reasons = tuple(
            dict.fromkeys(reason for step in self.passes for reason in step.drop_reasons)
        )
        self._codes = {reason: code for code, reason in enumerate(self.drop_reasons, start=KEPT + 1)}
        # A code is one byte in the index.
        if len(self.drop_reasons) > np.iinfo(np.uint8).max:
            raise ValueError(f"{len(self.drop_reasons)} drop reasons; the index can store at most 255")

    def reason_text(self, code: int) -> str:
        """Return the drop reason that a code stands for; `kept` for KEPT."""
        return "kept" if code == KEPT else self.drop_reasons[code - 1]

    def reason_codes(self, reasons: Sequence[DropReason]) -> list[int]:
        """Return the codes of the given reasons; reasons that no pass uses are left out."""
        return [self._codes[reason] for reason in reasons if reason in self._codes]

    def process_document(self, document: Document) -> tuple[Candidate, int]:
        """Apply the passes to one document, up to and including the first that drops it.

        Returns:
            The processed document, and the code of its drop reason or KEPT.
        """
        candidate = Candidate(document)
        for step in self.passes:
            result = step.process_document(candidate)
            # A dropped document is indexed too: a retracted newest version supersedes the older versions.
            if isinstance(result, str):
                return candidate, self._reason_code(step, result)
            candidate = result
        return candidate, KEPT

    def compare_documents(
        self,
        index: npt.NDArray[Any],
        deleted: npt.NDArray[np.uint64],
        signatures: Mapping[str, npt.NDArray[Any]],
    ) -> npt.NDArray[np.uint8]:
        """Let each pass compare all documents, and return the final reason code of each document.

        Args:
            index: Rows of type `dedup.INDEX`.
            deleted: Hashes of the ids that a source declares deleted (`DocumentTable.deleted_ids`).
            signatures: Name of a pass with signatures → its rows (`SignaturePass.signature_row`).
        """
        index = index.copy()  # updated below, so that each pass sees the reasons of the passes before it
        for step in self.passes:
            table = DocumentTable(index, deleted, signatures.get(step.name))
            for reason, rows in step.compare_documents(table).items():
                index["reason"][rows] = self._reason_code(step, reason)
        return np.ascontiguousarray(index["reason"])

    def _reason_code(self, step: CorpusPass, reason: DropReason) -> int:
        if reason not in step.drop_reasons:
            raise ValueError(
                f"the pass {step.name} drops a document for '{reason}', which is not in its drop_reasons"
            )
        return self._codes[reason]
