"""Identity of the data that a training read, for the model's ancestry record."""

import hashlib
import re
from collections.abc import Iterable

from meditron.store.ancestry import MAX_PASSAGES, Ancestry, read_ancestry, untrained_ancestry
from meditron.store.identity import content_sha256, short_hash
from meditron.store.manifest import Artifact
from meditron.store.models import resolve_model
from meditron.tasks.overlap import message_passages

__all__ = ["base_ancestry", "hex_digest", "text_hashes"]


def base_ancestry(base: Artifact) -> Ancestry:
    """Read the ancestry of the model that is trained further; a base without one is recorded by its name.

    Raises:
        InputError: The base's record is damaged.
    """
    files = resolve_model(base.spec)
    if ancestry := read_ancestry(files):
        return ancestry
    # A stage is recorded by its name, an outside model by its file's name: its path is private to the user.
    name = base.name if base.manifest else base.path.name
    name = f"{name}:{base.selector}" if base.selector else name
    return untrained_ancestry(name, hex_digest(base))


def hex_digest(artifact: Artifact) -> str:
    """Return 64 hexadecimal digits; an outside artifact's digest may be `sha256:…` or its source's text."""
    # The ancestry record has one form of digest; other forms are hashed once more.
    digest = artifact.digest.removeprefix("sha256:")
    return digest if re.fullmatch("[0-9a-f]{64}", digest) else hashlib.sha256(digest.encode()).hexdigest()


def text_hashes(messages: Iterable[str]) -> tuple[str, ...] | None:
    """Return the sorted short content hashes of messages' passages; None if there are too many to list."""
    hashes: set[str] = set()
    for message in messages:
        hashes |= {short_hash(content_sha256(text)) for text in message_passages(message)}
        # Checked per message, so that a large file does not fill memory with hashes that are dropped.
        if len(hashes) > MAX_PASSAGES:
            return None
    return tuple(sorted(hashes))
