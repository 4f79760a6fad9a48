"""Passes that drop a document by its own properties: retracted, no text, too short."""

from meditron.corpus.candidate import Candidate, CorpusPass, DropReason

__all__ = ["Length", "Retraction", "TitleOnly"]

_RETRACTED = DropReason("retracted")
_TITLE_ONLY = DropReason("nothing but a title")
_SHORT = DropReason("too short")


class Retraction(CorpusPass):
    """Drops documents that their source marks as retracted."""

    reasons = (_RETRACTED,)

    def examine(self, candidate: Candidate) -> Candidate | DropReason:
        """Return the document unless it is retracted."""
        return _RETRACTED if candidate.document.retracted else candidate


class TitleOnly(CorpusPass):
    """Drops documents whose sections have no text."""

    reasons = (_TITLE_ONLY,)

    def examine(self, candidate: Candidate) -> Candidate | DropReason:
        """Return the document if any section has text."""
        has_text = any(section.text.strip() for section in candidate.document.sections)
        return candidate if has_text else _TITLE_ONLY


class Length(CorpusPass):
    """Drops documents whose cleaned text is shorter than the config's `min_characters`."""

    reasons = (_SHORT,)

    def examine(self, candidate: Candidate) -> Candidate | DropReason:
        """Return the document if its text is long enough."""
        return _SHORT if len(candidate.text) < self.config.min_characters else candidate
