"""A corpus artifact's documents: `train/<source>/*.jsonl.zst` and `heldout/<source>/*.jsonl.zst`."""

import hashlib
import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import StrictInt, StrictStr, TypeAdapter, ValidationError

from meditron.core.errors import InputError, SourceError
from meditron.store.identity import content_sha256
from meditron.store.jsonl import read_jsonl

__all__ = ["CorpusDocument", "SectionSpan", "held_out", "read_corpus"]

_PARTS = TypeAdapter(list[tuple[StrictInt, StrictInt, StrictStr | None, StrictStr | None]])


@dataclass(frozen=True, slots=True)
class SectionSpan:
    """Where the text of one labelled section stands in its document's text."""

    start: int
    """Of the section's text, its label not included; in characters."""
    end: int
    label: str | None
    """As printed."""
    category: str | None
    """NLM's own name for what the section is (`METHODS`), where one is given."""


@dataclass(frozen=True, slots=True)
class CorpusDocument:
    """One document of a corpus."""

    id: str
    source: str
    text: str
    file: Path
    """Where it stands."""
    parts: tuple[SectionSpan, ...] = ()
    """Its labelled sections, in order."""

    @property
    def sha256(self) -> str:
        """SHA-256 of the text."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def content_sha256(self) -> str:
        """SHA-256 of the normalised text: equal for equal content."""
        return content_sha256(self.text)


def read_corpus(corpus: Path, split: Literal["train", "heldout"]) -> Iterator[CorpusDocument]:
    """Every document of a split, source by source, in the files' order.

    Raises:
        SourceError: there is no such folder.
        InputError: a file is damaged, one of its lines is no document, or two have one id.
    """
    if not corpus.is_dir():
        raise SourceError(f"{corpus}: no such folder", hint="a corpus stage's folder, as runs/RECIPE/corpus")
    for path in sorted((corpus / split).glob("*/*.jsonl.zst")):
        ids: set[str] = set()
        for number, line in enumerate(read_jsonl(path), start=1):
            text = _text(path, number, line)
            if text.id in ids:
                raise InputError(path, f"a second document of the id {text.id}", place=f"row {number}")
            ids.add(text.id)
            yield text


def held_out(corpus: Path, documents: int) -> dict[str, list[CorpusDocument]]:
    """Source → its held-out documents, at most `documents` of each, in the order of their content's hash.

    The order depends on nothing else, so the choice is unbiased, and adding documents only adds them to it.
    Raises as `texts` does.
    """
    by_source: dict[str, list[CorpusDocument]] = {}
    for text in read_corpus(corpus, "heldout"):
        chosen = by_source.setdefault(text.source, [])
        chosen.append(text)
        if len(chosen) >= 2 * documents:
            by_source[text.source] = _first(chosen, documents)
    return {source: _first(chosen, documents) for source, chosen in by_source.items()}


def _first(read_corpus: list[CorpusDocument], documents: int) -> list[CorpusDocument]:
    return heapq.nsmallest(documents, read_corpus, key=lambda text: (text.content_sha256, text.id))


def _text(path: Path, number: int, line: dict[str, Any]) -> CorpusDocument:
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
    return CorpusDocument(
        line["id"], path.parent.name, line["text"], path, tuple(SectionSpan(*part) for part in parts)
    )
