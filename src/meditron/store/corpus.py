"""A corpus artifact's documents: `train/<source>/*.jsonl.zst` and `heldout/<source>/*.jsonl.zst`."""

import hashlib
import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from meditron.ground.errors import InputError
from meditron.store.jsonl import read_jsonl

__all__ = ["Text", "held_out", "texts"]


@dataclass(frozen=True, slots=True)
class Text:
    """One document of a corpus."""

    id: str
    source: str
    text: str
    file: Path
    """Where it stands."""

    @property
    def sha256(self) -> str:
        """SHA-256 of the text."""
        return _sha256(self.text)


def texts(corpus: Path, split: Literal["train", "heldout"]) -> Iterator[Text]:
    """Every document of a split, source by source, in the files' order.

    Raises:
        InputError: a file is damaged, or one of its lines is no document.
    """
    for path in sorted((corpus / split).glob("*/*.jsonl.zst")):
        for number, line in enumerate(read_jsonl(path), start=1):
            yield _text(path, number, line)


def held_out(corpus: Path, documents: int) -> dict[str, list[Text]]:
    """Source → its held-out documents, at most `documents` of each, in the order of their ids' SHA-256.

    That order knows nothing of the text, so the choice is unbiased; and it stays when documents are added,
    but for those that are themselves chosen. Raises as `texts` does.
    """
    by_source: dict[str, list[Text]] = {}
    for text in texts(corpus, "heldout"):
        chosen = by_source.setdefault(text.source, [])
        chosen.append(text)
        if len(chosen) >= 2 * documents:
            by_source[text.source] = _first(chosen, documents)
    return {source: _first(chosen, documents) for source, chosen in by_source.items()}


def _first(texts: list[Text], documents: int) -> list[Text]:
    return heapq.nsmallest(documents, texts, key=lambda text: (_sha256(text.id), text.id))


def _text(path: Path, number: int, line: dict[str, Any]) -> Text:
    if not all(isinstance(line.get(key), str) for key in ("id", "text")):
        raise InputError(path, "no document with an id and a text", place=f"row {number}")
    return Text(line["id"], path.parent.name, line["text"], path)


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
