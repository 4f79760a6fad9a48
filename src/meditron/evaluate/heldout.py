"""Which held-out documents are scored, and that none of them was trained on."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from meditron.core.console import warn
from meditron.core.errors import InputError, MeditronError
from meditron.store.corpus import CorpusDocument, held_out, read_corpus

__all__ = ["choose", "data_digest", "distinct", "refuse_overlap"]


def choose(corpus: Path, documents: int) -> dict[str, list[CorpusDocument]]:
    """The held-out documents to score (see `distinct`).

    A source with fewer than two is left out, with a warning, for nothing can be said about how sure its
    figure would be.

    Raises:
        InputError: nothing is left, or the corpus is damaged.
    """
    chosen = distinct(corpus, documents)
    for source in [source for source, found in chosen.items() if len(found) < 2]:
        warn(f"{source}: {len(chosen.pop(source))} held-out document, too few for an interval; left out")
    if not chosen:
        raise InputError(corpus, "nothing held out to score", hint="raise corpus.heldout or corpus.limit")
    return chosen


def distinct(corpus: Path, documents: int) -> dict[str, list[CorpusDocument]]:
    """Choose held-out documents as `store.corpus.held_out` does, each content of a source once.

    A repeated text is left out with a warning: as a second observation it would make intervals too narrow.
    """
    chosen = {}
    for source, found in held_out(corpus, documents).items():
        by_content = {document.content_sha256: document for document in reversed(found)}
        if repeated := len(found) - len(by_content):
            warn(f"{source}: {repeated} of {len(found)} held-out documents repeat another's text; left out")
        chosen[source] = list(by_content.values())[::-1]
    return chosen


def data_digest(documents: Iterable[CorpusDocument]) -> str:
    """SHA-256 over ids and text hashes, in the ids' order: which texts a score was taken on."""
    lines = sorted(f"{document.id}\t{document.sha256}\n" for document in documents)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def refuse_overlap(corpus: Path, heldout: Mapping[str, Sequence[CorpusDocument]]) -> int:
    """Read every training document and refuse when a held-out one is among them, by id or by content.

    Returns:
        The number of training documents that were compared.

    Raises:
        MeditronError: a held-out document stands in a training file.
        InputError: a training file is damaged.
    """
    chosen = [document for documents in heldout.values() for document in documents]
    ids = {(document.source, document.id) for document in chosen}
    hashes = {document.content_sha256 for document in chosen}
    compared = 0
    for document in read_corpus(corpus, "train"):
        compared += 1
        if (document.source, document.id) in ids or document.content_sha256 in hashes:
            raise MeditronError(
                f"{document.file}: the training document {document.id} is held out as well",
                hint="a score on it would mean nothing: build the corpus again",
            )
    return compared
