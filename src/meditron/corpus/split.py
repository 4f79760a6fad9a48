"""Which documents are held out: decided by each document's own id alone, before and whatever else happens."""

import hashlib

__all__ = ["is_heldout"]


def is_heldout(identity: str, share: float) -> bool:
    """Whether the document of this id is held out.

    The first eight bytes of the id's SHA-256, as a fraction of their range, lie below `share`. A PMID's id
    names no version, so all versions of a citation fall to one side; a larger share only adds documents.
    """
    fraction = int.from_bytes(hashlib.sha256(identity.encode()).digest()[:8], "big") / 2**64
    return fraction < share
