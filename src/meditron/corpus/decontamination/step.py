"""The corpus pass that finds the documents with questions of the benchmarks."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from meditron.corpus.candidate import Candidate, DocumentTable, DropReason, SignaturePass
from meditron.corpus.config import CorpusConfig
from meditron.corpus.decontamination.outputs import INDEX_FILE
from meditron.store.manifest import Artifact

# The search imports numba, which takes half a second in every worker; most corpora need none of it.
if TYPE_CHECKING:
    from meditron.search.question_index import QuestionIndex

__all__ = ["CONTAMINATED", "Decontamination"]

CONTAMINATED = DropReason("contains a benchmark question")


class Decontamination(SignaturePass):
    """A pass that drops the documents that contain questions of the benchmarks in `corpus.decontaminate`.

    The hits of a document stay with it until the shards are written. It is dropped when all documents are
    compared, so that its copies are compared as well.
    """

    drop_reasons = (CONTAMINATED,)
    signature_dtype = np.dtype([("contaminated", "?")])

    def __init__(self, config: CorpusConfig) -> None:
        super().__init__(config)
        self._index: QuestionIndex | None = None

    def prepare(self, inputs: Mapping[str, Artifact], work: Path) -> None:
        """Write the index of the benchmarks' questions, unless an earlier run did."""
        if self.config.decontaminate and not (work / INDEX_FILE).exists():
            from meditron.corpus.decontamination.benchmarks import index_benchmarks

            index_benchmarks({spec: inputs[spec].path for spec in self.config.decontaminate}, work)

    def process_document(self, candidate: Candidate) -> Candidate | DropReason:
        """Return the document with the benchmark questions that its text contains."""
        if not self.config.decontaminate:
            return candidate
        from meditron.search.question_index import QuestionIndex
        from meditron.search.verify import find_questions

        if self._index is None:
            assert self.work_folder is not None  # noqa: S101
            self._index = QuestionIndex.load(self.work_folder / INDEX_FILE)
        return replace(candidate, benchmark_hits=find_questions(self._index, candidate.text))

    def signature_row(self, candidate: Candidate) -> tuple[object, ...]:
        """Return True for a document with hits."""
        return (bool(candidate.benchmark_hits),)

    def compare_documents(
        self, documents: DocumentTable
    ) -> Mapping[DropReason, npt.NDArray[np.integer[Any]]]:
        """Return the documents with hits, unless they are to be kept."""
        assert documents.signatures is not None  # noqa: S101
        if self.config.contaminated == "keep":
            return {}
        return {CONTAMINATED: np.flatnonzero(documents.signatures["contaminated"])}
