"""Choice of the held-out documents to score, and the check that none of them was trained on."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from meditron.core.console import warn
from meditron.core.errors import InputError, MeditronError
from meditron.store.corpus import CorpusDocument, read_corpus, select_heldout

__all__ = ["choose", "data_digest", "distinct", "refuse_overlap"]


def choose(corpus: Path, documents: int) -> dict[str, list[CorpusDocument]]:
    """Choose the held-out documents to score (see `distinct`).

    A source with fewer than two is left out with a warning: one document gives no interval.

    Raises:
        InputError: nothing is left, or the corpus is damaged.
    """
    chosen = distinct(corpus, documents)
    for source in [source for source, texts in chosen.items() if len(texts) < 2]:
        warn(f"{source}: {len(chosen.pop(source))} held-out document, too few for an interval; left out")
    if not chosen:
        raise InputError(corpus, "nothing held out to score", hint="raise corpus.heldout or corpus.limit")
    return chosen


def distinct(corpus: Path, documents: int) -> dict[str, list[CorpusDocument]]:
    """Choose held-out documents as `store.corpus.held_out` does, each content of a source once.

    Repeated texts are left out with a warning: as second observations they would make intervals too narrow.
    """
    chosen = {}
    for source, texts in select_heldout(corpus, documents).items():
        # Reversed twice: of equal texts the first document stays, in its place.
        by_content = {document.content_sha256: document for document in reversed(texts)}
        if repeated := len(texts) - len(by_content):
            warn(f"{source}: {repeated} of {len(texts)} held-out documents repeat another's text; left out")
        chosen[source] = list(by_content.values())[::-1]
    return chosen


def data_digest(documents: Iterable[CorpusDocument]) -> str:
    """Hash ids and text hashes, in the ids' order: the identity of the texts behind a score."""
    # Sorted: the digest identifies a set of texts, in whatever order they were scored.
    lines = sorted(f"{document.id}\t{document.sha256}\n" for document in documents)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def refuse_overlap(corpus: Path, heldout: Mapping[str, Sequence[CorpusDocument]]) -> int:
    """Read every training document, and raise if a held-out one is among them, by id or by content.

    Returns:
        The number of training documents that were compared.

    Raises:
        MeditronError: a held-out document is in a training file.
        InputError: a training file is damaged.
    """
    chosen = [document for documents in heldout.values() for document in documents]
    ids = {(document.source, document.id) for document in chosen}
    # Content as well as id: the same abstract can come from two sources under two ids.
    hashes = {document.content_sha256 for document in chosen}
    compared = 0
    for document in read_corpus(corpus, "train"):
        compared += 1
        if (document.source, document.id) in ids or document.content_sha256 in hashes:
            raise MeditronError(
                f"{document.file}: the training document {document.id} is held out as well",
                hint="a score on it would be meaningless: build the corpus again",
            )
    return compared
