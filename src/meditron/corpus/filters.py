"""Passes that drop a document by its own properties: retracted, only a title, or too short."""

from meditron.corpus.candidate import Candidate, CorpusPass, DropReason

__all__ = ["Length", "Retraction", "TitleOnly"]

_RETRACTED = DropReason("retracted")
_TITLE_ONLY = DropReason("nothing but a title")
_SHORT = DropReason("too short")


class Retraction(CorpusPass):
    """A pass that drops documents that their source marks as retracted."""

    drop_reasons = (_RETRACTED,)

    def process_document(self, candidate: Candidate) -> Candidate | DropReason:
        """Return the document, or the reason to drop it if it is retracted."""
        return _RETRACTED if candidate.document.retracted else candidate


class TitleOnly(CorpusPass):
    """A pass that drops documents whose sections have no text."""

    drop_reasons = (_TITLE_ONLY,)

    def process_document(self, candidate: Candidate) -> Candidate | DropReason:
        """Return the document, or the reason to drop it if no section has text."""
        has_text = any(section.text.strip() for section in candidate.document.sections)
        return candidate if has_text else _TITLE_ONLY


class Length(CorpusPass):
    """A pass that drops documents whose cleaned text is shorter than `min_characters` of the config."""

    drop_reasons = (_SHORT,)

    def process_document(self, candidate: Candidate) -> Candidate | DropReason:
        """Return the document, or the reason to drop it if its text is too short."""
        return _SHORT if len(candidate.text) < self.config.min_characters else candidate
