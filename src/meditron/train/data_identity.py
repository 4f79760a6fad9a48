"""Identity of the data that a training read, for the model's ancestry record."""

import hashlib
import re
from collections.abc import Iterable

from meditron.store.ancestry import MAX_PASSAGES, Ancestry, read_ancestry, untrained_ancestry
from meditron.store.identity import content_sha256, short_hash
from meditron.store.manifest import Artifact
from meditron.store.models import resolve_model
from meditron.tasks.overlap import message_passages

__all__ = ["base_ancestry", "hex_digest", "passage_hashes"]


def base_ancestry(base: Artifact) -> Ancestry:
    """Read the ancestry of the model that is trained further; a base without one is recorded by its name.

    Raises:
        InputError: The ancestry record of the base model is damaged.
    """
    files = resolve_model(base.spec)
    if ancestry := read_ancestry(files):
        return ancestry
    # A stage is recorded by its name and an external model by its file's name, because the path is private.
    name = base.name if base.manifest else base.path.name
    name = f"{name}:{base.selector}" if base.selector else name
    return untrained_ancestry(name, hex_digest(base))


def hex_digest(artifact: Artifact) -> str:
    """Return an artifact's digest as 64 hexadecimal digits; a digest of another form is hashed."""
    # The ancestry record accepts hexadecimal digests only. Other forms (an external source's text) are
    # hashed.
    digest = artifact.digest.removeprefix("sha256:")
    return digest if re.fullmatch("[0-9a-f]{64}", digest) else hashlib.sha256(digest.encode()).hexdigest()


def passage_hashes(messages: Iterable[str]) -> tuple[str, ...] | None:
    """Return the sorted short content hashes of the messages' passages; None if there are too many."""
    hashes: set[str] = set()
    for message in messages:
        hashes |= {short_hash(content_sha256(text)) for text in message_passages(message)}
        # The limit is checked after each message, so that a large file does not fill memory with hashes that
        # are discarded.
        if len(hashes) > MAX_PASSAGES:
            return None
    return tuple(sorted(hashes))
