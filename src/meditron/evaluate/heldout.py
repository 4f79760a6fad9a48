"""Which held-out documents are scored, and that none of them was trained on."""

import hashlib
import heapq
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from meditron.ground.console import warn
from meditron.ground.errors import InputError, MeditronError
from meditron.store.jsonl import read_jsonl

__all__ = ["HeldOut", "data_digest", "held_out", "refuse_overlap"]


@dataclass(frozen=True, slots=True)
class HeldOut:
    """One held-out document as it will be scored."""

    id: str
    source: str
    text: str
    text_sha256: str


def held_out(corpus: Path, documents: int) -> dict[str, tuple[HeldOut, ...]]:
    """Source → its held-out documents, at most `documents` of each, in the order of their ids' SHA-256.

    The order knows nothing of the text, so the choice is unbiased; it does not move when documents are
    added, except by those that are themselves chosen. A source with fewer than two is left out, with a
    warning, for nothing can be said about how sure its figure is.

    Raises:
        InputError: the corpus has nothing held out, or a line of its files is no document.
    """
    chosen = {folder.name: _first(folder, documents) for folder in _folders(corpus / "heldout")}
    for source in [source for source, found in chosen.items() if len(found) < 2]:
        warn(f"{source}: {len(chosen.pop(source))} held-out documents, too few for an interval; left out")
    if not chosen:
        raise InputError(corpus, "nothing held out to score", hint="raise corpus.heldout or corpus.limit")
    return chosen


def data_digest(documents: Iterable[HeldOut]) -> str:
    """SHA-256 over ids and text hashes, in the ids' order: which texts a score was taken on."""
    lines = sorted(f"{document.id}\t{document.text_sha256}\n" for document in documents)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def refuse_overlap(corpus: Path, heldout: Mapping[str, Sequence[HeldOut]]) -> int:
    """Read every training document and refuse when a held-out one is among them, by id or by text.

    Returns:
        The number of training documents that were compared.

    Raises:
        MeditronError: a held-out document stands in a training file.
    """
    chosen = [document for documents in heldout.values() for document in documents]
    ids, texts = {document.id for document in chosen}, {document.text_sha256 for document in chosen}
    compared = 0
    for folder in _folders(corpus / "train"):
        for path, line in _lines(folder):
            compared += 1
            if line["id"] in ids or _sha256(line["text"]) in texts:
                raise MeditronError(
                    f"{path}: the training document {line['id']} is held out as well",
                    hint="a score on it would mean nothing: build the corpus again",
                )
    return compared


def _first(folder: Path, documents: int) -> tuple[HeldOut, ...]:
    lines = (line for _, line in _lines(folder))
    first = heapq.nsmallest(documents, lines, key=lambda line: (_sha256(line["id"]), line["id"]))
    return tuple(HeldOut(line["id"], folder.name, line["text"], _sha256(line["text"])) for line in first)


def _lines(folder: Path) -> Iterator[tuple[Path, dict[str, str]]]:
    """Every document of a source, with the file it stands in."""
    for path in sorted(folder.glob("*.jsonl.zst")):
        for number, line in enumerate(read_jsonl(path), start=1):
            if not all(isinstance(line.get(key), str) for key in ("id", "text")):
                raise InputError(path, "no document with an id and a text", place=f"row {number}")
            yield path, line


def _folders(parent: Path) -> list[Path]:
    return sorted(path for path in parent.iterdir() if path.is_dir()) if parent.is_dir() else []


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
