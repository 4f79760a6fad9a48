"""The split into training and held-out text: decided by each document's content alone."""

__all__ = ["is_heldout"]


def is_heldout(content_sha256: str, share: float) -> bool:
    """Return true if the document of this content hash is held out.

    The first 64 bits of `store.identity.content_sha256`, as a fraction of their range, lie below `share`. So
    equal texts fall on one side, whatever their ids, files and sources, and a larger share only adds
    documents. Of the versions of a citation only the newest is split (`dedup.decide`).
    """
    return int(content_sha256[:16], 16) / 2**64 < share
