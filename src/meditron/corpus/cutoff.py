"""The pass that drops documents after the knowledge cut-off.

The cut-off is a promise about what the model cannot know, so only a document that is certainly not later is
kept: one dated `2023` may be of December 2023 and is dropped for `until = "2023-08"`, and so is one without a
date. A source whose documents have no date, such as a dump, states it in the recipe.
"""

from dataclasses import replace

from meditron.corpus.candidate import Candidate, CorpusPass, DropReason
from meditron.corpus.config import CorpusConfig
from meditron.sources.dates import earliest_day, latest_day
from meditron.sources.document import Document

__all__ = ["CutOff"]

_LATER = DropReason("later than the cut-off")
_MAYBE_LATER = DropReason("perhaps later than the cut-off: its date is not precise enough")
_UNDATED = DropReason("without a date, but there is a cut-off")


class CutOff(CorpusPass):
    """A pass that records each document's date, and drops those later than `until` of the config."""

    drop_reasons = (_LATER, _MAYBE_LATER, _UNDATED)

    def __init__(self, config: CorpusConfig) -> None:
        super().__init__(config)
        self._until = latest_day(config.until) if config.until else None

    def process_document(self, candidate: Candidate) -> Candidate | DropReason:
        """Return the document with the field `date`, or the reason to drop it."""
        source = self.config.sources.get(candidate.source)
        text = _document_date(candidate.document) or (source.date if source else None)
        if self._until is not None:
            if text is None:
                return _UNDATED
            earliest, latest = earliest_day(text), latest_day(text)
            if earliest is None or latest is None or latest > self._until:
                return _LATER if earliest and earliest > self._until else _MAYBE_LATER
        return replace(candidate, row_fields={**candidate.row_fields, "date": text}) if text else candidate


def _document_date(document: Document) -> str | None:
    """Return the date that a document states, in ISO 8601: its `meta.date`, or else its year."""
    stated = document.meta.get("date")
    if isinstance(stated, str) and latest_day(stated):
        return stated.strip()[:10]
    year = f"{document.year:04d}" if document.year else None
    return year if year and latest_day(year) else None
