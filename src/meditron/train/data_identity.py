"""Identity of the data that a training read, for the model's ancestry record."""

import hashlib
import re
from collections.abc import Iterable

from meditron.store.ancestry import MAX_TEXTS, Ancestry, of_base, read_ancestry
from meditron.store.artifact import Artifact
from meditron.store.identity import content_sha256, short
from meditron.store.models import resolve
from meditron.tasks.overlap import passages

__all__ = ["base_ancestry", "hex_digest", "text_hashes"]


def base_ancestry(base: Artifact) -> Ancestry:
    """Read the ancestry of the model that is trained further; a base without one is recorded by its name.

    Raises:
        InputError: the base's record is damaged.
    """
    files = resolve(base.spec)
    if known := read_ancestry(files):
        return known
    # A stage is known by its name; an outside model by its file's name, as its path is the user's own.
    name = base.name if base.manifest else base.path.name
    name = f"{name}:{base.selector}" if base.selector else name
    return of_base(name, hex_digest(base))


def hex_digest(artifact: Artifact) -> str:
    """Return 64 hexadecimal digits; an outside artifact's digest is `sha256:…` or its source's text."""
    digest = artifact.digest.removeprefix("sha256:")
    return digest if re.fullmatch("[0-9a-f]{64}", digest) else hashlib.sha256(digest.encode()).hexdigest()


def text_hashes(messages: Iterable[str]) -> tuple[str, ...] | None:
    """Return the sorted short content hashes of messages' passages; None if there are too many to list."""
    found: set[str] = set()
    for message in messages:
        found |= {short(content_sha256(text)) for text in passages(message)}
        if len(found) > MAX_TEXTS:
            return None
    return tuple(sorted(found))
