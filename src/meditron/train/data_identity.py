"""Identity of the data that a training read, for the model's ancestry record."""

import hashlib
import re
from collections.abc import Collection, Iterable, Iterator

from meditron.store.ancestry import Ancestry, of_base, read_ancestry
from meditron.store.artifact import Artifact
from meditron.store.identity import content_sha256, short
from meditron.store.models import resolve
from meditron.tasks.sentences import sentences
from meditron.tasks.task import Task

__all__ = ["base_ancestry", "hex_digest", "passages", "stem_hashes", "text_hashes"]

_MIN_WORDS = 4
"""Words of a line or sentence that can identify a question; shorter ones ("Which is true?") are in many."""
_STEM_WORDS = 12
"""Words of a question that tell it without its options."""
_LABEL = re.compile(r"^\s*\w+\s*[:.)]\s*")


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
    return of_base(name, hex_digest(base), seeded=files.kind == "init")


def hex_digest(artifact: Artifact) -> str:
    """Return 64 hexadecimal digits; an outside artifact's digest is `sha256:…` or its source's text."""
    digest = artifact.digest.removeprefix("sha256:")
    return digest if re.fullmatch("[0-9a-f]{64}", digest) else hashlib.sha256(digest.encode()).hexdigest()


def text_hashes(messages: Iterable[str]) -> tuple[str, ...]:
    """Return the sorted short content hashes of messages and of each of their `passages`."""
    return tuple(sorted({short(content_sha256(text)) for message in messages for text in passages(message)}))


def stem_hashes(task: Task, trained: Collection[str]) -> tuple[str, ...]:
    """Return the sorted short content hashes of the trained questions' texts that tell them by themselves.

    A set is published with four options and with five: the same question has another content there. Questions
    of a context share their text, and short texts ("Which of the following is true?") are in many questions.
    """
    asked = (question for question in task.rows("train") if question.id in trained and not question.context)
    texts = (question.text for question in asked if len(question.text.split()) >= _STEM_WORDS)
    return tuple(sorted({short(content_sha256(text)) for text in texts}))


def passages(message: str) -> Iterator[str]:
    """Yield the stretches of a message that may be a question by themselves.

    These are the whole message, and each line and each sentence of at least four words, with and without a
    label before it (`Question: …`, `1. …`).
    """
    yield message
    for line in message.splitlines():
        for text in {line, *sentences(line)}:
            for stretch in {text, _LABEL.sub("", text)}:
                if len(stretch.split()) >= _MIN_WORDS:
                    yield stretch
