"""Documents of a corpus artifact: `train/<source>/*.jsonl.zst` and `heldout/<source>/*.jsonl.zst`."""

import hashlib
import heapq
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import StrictInt, StrictStr, TypeAdapter, ValidationError

from meditron.core.config import first_problem
from meditron.core.errors import InputError, SourceError
from meditron.store.identity import content_sha256
from meditron.store.jsonl import read_jsonl

__all__ = ["CorpusDocument", "SectionSpan", "read_corpus", "select_heldout"]

_PARTS = TypeAdapter(list[tuple[StrictInt, StrictInt, StrictStr | None, StrictStr | None]])


@dataclass(frozen=True, slots=True)
class SectionSpan:
    """The span of one labelled section in its document's text."""

    start: int
    """Offset of the section's text, without its label; in characters."""
    end: int
    label: str | None
    """The label in the document: `Materials and Methods`."""
    category: str | None
    """NLM's category of the section, such as `METHODS`, if there is one."""


@dataclass(frozen=True, slots=True)
class CorpusDocument:
    """One document of a corpus."""

    id: str
    source: str
    text: str
    file: Path
    """The shard that contains the document."""
    sections: tuple[SectionSpan, ...] = ()
    """Labelled sections, in order."""

    @property
    def sha256(self) -> str:
        """SHA-256 of the text."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def content_sha256(self) -> str:
        """SHA-256 of the normalized text."""
        return content_sha256(self.text)


def read_corpus(corpus: Path, split: Literal["train", "heldout"]) -> Iterator[CorpusDocument]:
    """Yield every document of a split, source by source, in the order of the files.

    Raises:
        SourceError: there is no such folder.
        InputError: a file is damaged, a row is not a document, or an id occurs twice in a file.
    """
    if not corpus.is_dir():
        raise SourceError(
            f"{corpus}: no such folder", hint="expected a corpus stage's folder, such as runs/RECIPE/corpus"
        )
    for path in sorted((corpus / split).glob("*/*.jsonl.zst")):
        ids: set[str] = set()
        for number, line in enumerate(read_jsonl(path), start=1):
            document = _parse_document(path, number, line)
            if document.id in ids:
                raise InputError(path, f"the id {document.id} occurs twice", place=f"row {number}")
            ids.add(document.id)
            yield document


def select_heldout(corpus: Path, documents: int) -> dict[str, list[CorpusDocument]]:
    """Select the held-out documents for training and evaluation, at most `documents` of each source.

    Documents are ordered by their content hashes, and the first ones are selected. The order depends on
    nothing else, so the selection is unbiased, and a larger `documents` only adds documents to it. Raises the
    errors of `read_corpus`.

    Returns:
        Source → its selected documents, in the order of their content hashes.
    """
    documents_by_source: dict[str, list[CorpusDocument]] = {}
    for document in read_corpus(corpus, "heldout"):
        selected = documents_by_source.setdefault(document.source, [])
        selected.append(document)
        # The list is shortened whenever it has twice the needed length: that bounds memory, and sorting is
        # rare.
        if len(selected) >= 2 * documents:
            documents_by_source[document.source] = _documents_with_smallest_hashes(selected, documents)
    return {
        source: _documents_with_smallest_hashes(selected, documents)
        for source, selected in documents_by_source.items()
    }


def _documents_with_smallest_hashes(documents: list[CorpusDocument], count: int) -> list[CorpusDocument]:
    return heapq.nsmallest(count, documents, key=lambda document: (document.content_sha256, document.id))


def _parse_document(path: Path, number: int, line: dict[str, Any]) -> CorpusDocument:
    if not all(isinstance(line.get(key), str) for key in ("id", "text")):
        raise InputError(path, "the row needs a text `id` and a text `text`", place=f"row {number}")
    try:
        parts = _PARTS.validate_python(line.get("parts", []))
    except ValidationError as error:
        problem = first_problem(error)[1]
        raise InputError(path, f"invalid `parts`: {problem}", place=f"row {number}") from error
    ends = [0, *(end for part in parts for end in part[:2]), len(line["text"])]
    if ends != sorted(ends):
        raise InputError(
            path,
            "`parts` must be in order, within the text, and not overlap",
            place=f"row {number}",
        )
    return CorpusDocument(
        line["id"], path.parent.name, line["text"], path, tuple(SectionSpan(*part) for part in parts)
    )
