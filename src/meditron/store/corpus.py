"""A corpus artifact's documents: `train/<source>/*.jsonl.zst` and `heldout/<source>/*.jsonl.zst`."""

import hashlib
import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import StrictInt, StrictStr, TypeAdapter, ValidationError

from meditron.ground.errors import InputError, SourceError
from meditron.store.jsonl import read_jsonl

__all__ = ["Part", "Text", "held_out", "texts"]

_PARTS = TypeAdapter(list[tuple[StrictInt, StrictInt, StrictStr | None, StrictStr | None]])


@dataclass(frozen=True, slots=True)
class Part:
    """Where the text of one labelled section stands in its document's text."""

    start: int
    """Of the section's text, its label not included; in characters."""
    end: int
    label: str | None
    """As printed."""
    category: str | None
    """NLM's own name for what the section is (`METHODS`), where one is given."""


@dataclass(frozen=True, slots=True)
class Text:
    """One document of a corpus."""

    id: str
    source: str
    text: str
    file: Path
    """Where it stands."""
    parts: tuple[Part, ...] = ()
    """Its labelled sections, in order."""

    @property
    def sha256(self) -> str:
        """SHA-256 of the text."""
        return _sha256(self.text)


def texts(corpus: Path, split: Literal["train", "heldout"]) -> Iterator[Text]:
    """Every document of a split, source by source, in the files' order.

    Raises:
        SourceError: there is no such folder.
        InputError: a file is damaged, or one of its lines is no document.
    """
    if not corpus.is_dir():
        raise SourceError(f"{corpus}: no such folder", hint="a corpus stage's folder, as runs/RECIPE/corpus")
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
    try:
        parts = _PARTS.validate_python(line.get("parts", []))
    except ValidationError as error:
        raise InputError(
            path, f"its parts are no parts: {error.errors()[0]['msg']}", place=f"row {number}"
        ) from error
    ends = [0, *(end for part in parts for end in part[:2]), len(line["text"])]
    if ends != sorted(ends):
        raise InputError(path, "its parts do not follow each other within the text", place=f"row {number}")
    return Text(line["id"], path.parent.name, line["text"], path, tuple(Part(*part) for part in parts))


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
