"""The pass that splits documents into training and held-out text, by each document's content alone."""

from dataclasses import replace

from meditron.corpus.candidate import Candidate, CorpusPass, DropReason

__all__ = ["Split", "is_heldout"]


class Split(CorpusPass):
    """Assigns documents to the held-out split."""

    def examine(self, candidate: Candidate) -> Candidate | DropReason:
        """Return the document with its split."""
        return replace(candidate, heldout=is_heldout(candidate.content_sha256, self.config.heldout))


def is_heldout(content_sha256: str, share: float) -> bool:
    """Return true if the document with this content hash is held out.

    The first 64 bits of `store.identity.content_sha256` are read as a fraction of their range and compared
    with `share`. Equal texts are therefore in the same split, whatever their ids, files and sources, and a
    larger share only adds documents. Only the newest version of a citation is split (`dedup.decide`).
    """
    # SHA-256 is uniform, so this is a random choice that depends on nothing but the content.
    return int(content_sha256[:16], 16) / 2**64 < share
