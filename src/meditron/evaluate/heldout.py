"""Choice of the held-out documents to score, and the check that none of them is in the training split."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from meditron.core.console import warn
from meditron.core.errors import InputError, MeditronError
from meditron.store.corpus import CorpusDocument, read_corpus, select_heldout

__all__ = ["choose_heldout", "data_digest", "distinct_heldout", "refuse_training_overlap"]


def choose_heldout(corpus: Path, documents: int) -> dict[str, list[CorpusDocument]]:
    """Choose the held-out documents to score, by source (see `distinct_heldout`).

    A source with fewer than two documents is left out with a warning, because one gives no interval.

    Raises:
        InputError: no source has two documents, or the corpus is damaged.
    """
    chosen = distinct_heldout(corpus, documents)
    for source in [source for source, texts in chosen.items() if len(texts) < 2]:
        warn(f"{source}: {len(chosen.pop(source))} held-out document, too few for an interval; left out")
    if not chosen:
        raise InputError(corpus, "nothing held out to score", hint="raise corpus.heldout or corpus.limit")
    return chosen


def distinct_heldout(corpus: Path, documents: int) -> dict[str, list[CorpusDocument]]:
    """Choose held-out documents by source, like `store.corpus.select_heldout`, without repeated texts.

    Repeated texts are left out with a warning: they are not independent and would make intervals too narrow.
    """
    chosen = {}
    for source, texts in select_heldout(corpus, documents).items():
        # Reversed twice: the first of several equal texts is kept, in its place.
        by_content = {document.content_sha256: document for document in reversed(texts)}
        if repeated := len(texts) - len(by_content):
            warn(f"{source}: {repeated} of {len(texts)} held-out documents repeat another's text; left out")
        chosen[source] = list(by_content.values())[::-1]
    return chosen


def data_digest(documents: Iterable[CorpusDocument]) -> str:
    """Return one SHA-256 of the documents' ids and texts, independent of their order."""
    lines = sorted(f"{document.id}\t{document.sha256}\n" for document in documents)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def refuse_training_overlap(corpus: Path, heldout: Mapping[str, Sequence[CorpusDocument]]) -> int:
    """Raise MeditronError if a held-out document is also in the training split, by id or by content.

    Returns:
        The number of training documents, all of which were read and compared.

    Raises:
        MeditronError: a held-out document is in the training split.
        InputError: a training file is damaged.
    """
    chosen = [document for documents in heldout.values() for document in documents]
    ids = {(document.source, document.id) for document in chosen}
    # Compared by content as well, because two sources can contain the same abstract under different ids.
    hashes = {document.content_sha256 for document in chosen}
    compared = 0
    for document in read_corpus(corpus, "train"):
        compared += 1
        if (document.source, document.id) in ids or document.content_sha256 in hashes:
            raise MeditronError(
                f"{document.file}: the training document {document.id} is also a held-out document",
                hint="a score on it would be meaningless: build the corpus again",
            )
    return compared
