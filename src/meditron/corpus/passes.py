"""The list of corpus passes, and the pipeline that applies them.

To add a pass, write one module with a subclass of `CorpusPass` and add one line to PASSES.
"""

import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from meditron.corpus.candidate import Candidate, CorpusPass, DocumentTable, DropReason
from meditron.corpus.clean import Clean
from meditron.corpus.config import CorpusConfig
from meditron.corpus.cutoff import CutOff
from meditron.corpus.decontamination.step import Decontamination
from meditron.corpus.dedup import Deduplication
from meditron.corpus.document_files import DocumentFiles
from meditron.corpus.filters import Length, Retraction, TitleOnly
from meditron.corpus.languages import Language
from meditron.corpus.licences import Licence
from meditron.corpus.personal_information import PersonalInformation
from meditron.corpus.quality import Quality
from meditron.corpus.split import Split
from meditron.corpus.task import importable_name
from meditron.corpus.text_filters import ErrorPage, TextFilters
from meditron.sources.document import Document

__all__ = ["KEPT", "PASSES", "Comparison", "PassFactory", "PassPipeline"]

PassFactory = Callable[[CorpusConfig], CorpusPass]


def _near_duplicates(config: CorpusConfig) -> CorpusPass:
    """Return the pass that drops near-duplicates; a pass that does nothing if the config has none."""
    if config.near_dedup is None:
        return CorpusPass(config)
    # Importing numba and compiling its kernels takes seconds.
    from meditron.corpus.near_dedup import NearDuplicates

    return NearDuplicates(config)


# Clean is first: it renders the text that the other passes read. The cheap passes precede those that read the
# whole text. Deduplication and Split are last, because they hash the final text, after masking.
PASSES: tuple[PassFactory, ...] = (
    Clean,
    Retraction,
    CutOff,
    Licence,
    Language,
    TitleOnly,
    Length,
    ErrorPage,
    TextFilters,
    PersonalInformation,
    Quality,
    Decontamination,
    Deduplication,
    _near_duplicates,
    Split,
)

KEPT = 0
"""Reason code of documents that no pass drops."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Result of comparing all documents."""

    reasons: npt.NDArray[np.uint8]
    """Reason code of each document."""
    originals: npt.NDArray[np.uint32]
    """Row of the document that each document duplicates (`DocumentTable.originals`)."""
    metrics: dict[str, Any]
    """Metrics of the passes."""


class PassPipeline:
    """The passes of one corpus. The index stores each drop reason as a number, its code."""

    def __init__(
        self, config: CorpusConfig, factories: Sequence[PassFactory] = PASSES, work: Path | None = None
    ) -> None:
        """Make the passes; `work` is the folder of the files that their `prepare` writes."""
        self.config, self._factories, self._work = config, tuple(factories), work
        self.passes = tuple(factory(config) for factory in self._factories)
        for step in self.passes:
            step.work_folder = work
        # Two passes may use the same reason; their drops are then counted together.
        self.drop_reasons = tuple(
            dict.fromkeys(reason for step in self.passes for reason in step.drop_reasons)
        )
        self._codes = {reason: code for code, reason in enumerate(self.drop_reasons, start=KEPT + 1)}
        # A code is one byte in the index.
        if len(self.drop_reasons) > np.iinfo(np.uint8).max:
            raise ValueError(f"{len(self.drop_reasons)} drop reasons; the index can store at most 255")

    def to_json(self) -> dict[str, Any]:
        """Return the config and the names of the passes, from which `from_json` builds an equal pipeline.

        Raises:
            UsageError: The class of a pass cannot be imported by its name.
        """
        passes = [importable_name(factory) for factory in self._factories]
        config = self.config.model_dump(mode="json", by_alias=True)
        return {
            "config": config,
            "passes": passes,
            "work": str(self._work.absolute()) if self._work else None,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Build the pipeline that `to_json` described."""
        config = CorpusConfig.model_validate(value["config"])
        work = Path(value["work"]) if value["work"] else None
        return cls(config, [pkgutil.resolve_name(name) for name in value["passes"]], work)

    def reason_text(self, code: int) -> str:
        """Return the drop reason that a code stands for; `kept` for KEPT."""
        return "kept" if code == KEPT else self.drop_reasons[code - 1]

    def reason_codes(self, reasons: Sequence[DropReason]) -> list[int]:
        """Return the codes of the given reasons; reasons that no pass uses are left out."""
        return [self._codes[reason] for reason in reasons if reason in self._codes]

    def process_document(self, document: Document, source: str = "") -> tuple[Candidate, int]:
        """Apply the passes to one document, up to and including the first that drops it.

        Args:
            document: The document.
            source: Name of its source in the recipe.

        Returns:
            The processed document, and the code of its drop reason or KEPT.
        """
        candidate = Candidate(document, source=source)
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
        files: DocumentFiles,
    ) -> Comparison:
        """Let each pass compare all documents.

        Args:
            index: Rows of type `dedup.INDEX`. Their reasons are updated in place: the index of a large corpus
                should be in memory once.
            deleted: Hashes of the ids that a source declares deleted (`DocumentTable.deleted_ids`).
            signatures: Name of a pass with signatures → its rows (`SignaturePass.signature_row`).
            files: The documents' working files.
        """
        originals = np.arange(len(index), dtype=np.uint32)
        metrics: dict[str, Any] = {}
        for step in self.passes:
            own_signatures = signatures.get(step.name)
            table = DocumentTable(index, deleted, own_signatures, files, originals, metrics)
            for reason, rows in step.compare_documents(table).items():
                # Each pass sees the reasons of the passes before it.
                index["reason"][rows] = self._reason_code(step, reason)
        _follow_originals(originals)
        return Comparison(np.ascontiguousarray(index["reason"]), originals, metrics)

    def _reason_code(self, step: CorpusPass, reason: DropReason) -> int:
        if reason not in step.drop_reasons:
            raise ValueError(
                f"the pass {step.name} drops a document for '{reason}', which is not in its drop_reasons"
            )
        return self._codes[reason]


def _follow_originals(originals: npt.NDArray[np.uint32]) -> None:
    """Replace originals that are duplicates themselves: of a near-duplicate's copy, for example."""
    duplicates = np.flatnonzero(originals != np.arange(len(originals), dtype=np.uint32))
    while not np.array_equal(originals[originals[duplicates]], originals[duplicates]):
        originals[duplicates] = originals[originals[duplicates]]
