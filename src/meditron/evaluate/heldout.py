"""Which held-out documents are scored, and that none of them was trained on."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from meditron.ground.console import warn
from meditron.ground.errors import InputError, MeditronError
from meditron.store.corpus import Text, held_out, texts

__all__ = ["choose", "data_digest", "refuse_overlap"]


def choose(corpus: Path, documents: int) -> dict[str, list[Text]]:
    """The held-out documents to score (see `store.corpus.held_out`).

    A source with fewer than two is left out, with a warning, for nothing can be said about how sure its
    figure would be.

    Raises:
        InputError: nothing is left, or the corpus is damaged.
    """
    chosen = held_out(corpus, documents)
    for source in [source for source, found in chosen.items() if len(found) < 2]:
        warn(f"{source}: {len(chosen.pop(source))} held-out document, too few for an interval; left out")
    if not chosen:
        raise InputError(corpus, "nothing held out to score", hint="raise corpus.heldout or corpus.limit")
    return chosen


def data_digest(documents: Iterable[Text]) -> str:
    """SHA-256 over ids and text hashes, in the ids' order: which texts a score was taken on."""
    lines = sorted(f"{document.id}\t{document.sha256}\n" for document in documents)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def refuse_overlap(corpus: Path, heldout: Mapping[str, Sequence[Text]]) -> int:
    """Read every training document and refuse when a held-out one is among them, by id or by text.

    Returns:
        The number of training documents that were compared.

    Raises:
        MeditronError: a held-out document stands in a training file.
        InputError: a training file is damaged.
    """
    chosen = [document for documents in heldout.values() for document in documents]
    ids, hashes = {document.id for document in chosen}, {document.sha256 for document in chosen}
    compared = 0
    for document in texts(corpus, "train"):
        compared += 1
        if document.id in ids or document.sha256 in hashes:
            raise MeditronError(
                f"{document.file}: the training document {document.id} is held out as well",
                hint="a score on it would mean nothing: build the corpus again",
            )
    return compared
