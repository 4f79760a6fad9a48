"""The pass that identifies each document's licence, and drops those that the recipe does not allow.

A document's own statement (`meta.licence`) goes before that of its source. A statement that names no known
licence is no licence: under `licences = "commercial"` or a list, the document is dropped.
"""

from dataclasses import replace

from meditron.corpus.candidate import Candidate, CorpusPass, DropReason
from meditron.corpus.config import CorpusConfig
from meditron.sources.licences import COMMERCIAL, is_allowed, licence_id

__all__ = ["Licence"]

_NOT_STATED = DropReason("without a known licence")
_NOT_ALLOWED = DropReason("its licence is not allowed")


class Licence(CorpusPass):
    """A pass that records each document's licence, and drops those outside `licences` of the config."""

    drop_reasons = (_NOT_STATED, _NOT_ALLOWED)

    def __init__(self, config: CorpusConfig) -> None:
        super().__init__(config)
        chosen = config.allowed_licences
        self._allowed = (
            COMMERCIAL if chosen == "commercial" else None if chosen == "any" else frozenset(chosen)
        )

    def process_document(self, candidate: Candidate) -> Candidate | DropReason:
        """Return the document with the field `licence` if it is known, or the reason to drop it."""
        source = self.config.sources.get(candidate.source)
        statement = candidate.document.meta.get("licence")
        if not (isinstance(statement, str) and statement.strip()):
            statement = source.licence if source else None
        identifier = licence_id(statement)
        if self._allowed is not None:
            if identifier is None:
                return _NOT_STATED
            if not is_allowed(identifier, self._allowed):
                return _NOT_ALLOWED
        if identifier is None:
            return candidate
        return replace(candidate, row_fields={**candidate.row_fields, "licence": identifier})
