"""The pass that assigns each document to the training or held-out split, by the hash of its content."""

import hashlib
from dataclasses import replace

from meditron.corpus.candidate import Candidate, CorpusPass, DropReason

__all__ = ["Split", "is_heldout"]


class Split(CorpusPass):
    """A pass that assigns a share of the documents to the held-out split."""

    def process_document(self, candidate: Candidate) -> Candidate | DropReason:
        """Return the document with `heldout` set."""
        return replace(candidate, heldout=self._is_heldout(candidate.content_sha256))

    def _is_heldout(self, content_sha256: str) -> bool:
        return is_heldout(content_sha256, self.config.heldout, self.config.heldout_seed)


def is_heldout(content_sha256: str, share: float, seed: int = 0) -> bool:
    """Return True if the document with this content hash is held out.

    The first 64 bits of the hash (`store.identity.content_sha256`) are read as a number between 0 and 1. The
    document is held out if the number is below `share`. Texts with equal content are therefore in the same
    split, and a larger share holds out the same documents and more. A `seed` other than 0 replaces the hash
    by that of the seed and the hash, which gives an independent split.
    """
    if seed:
        content_sha256 = hashlib.sha256(f"{seed}/{content_sha256}".encode()).hexdigest()
    # SHA-256 is uniformly distributed, so this is a random choice that depends on the content alone.
    return int(content_sha256[:16], 16) / 2**64 < share
