"""The two passes over the documents, shard by shard; each file appears whole, so a killed run keeps it.

`ReadFiles` turns each source file into shards of candidates, their index written last. When all is indexed
and decided, `WriteShards` turns candidates into training and held-out files and drops, their counts last.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from meditron.corpus.clean import compose
from meditron.corpus.config import CorpusConfig
from meditron.corpus.dedup import INDEX, Reason, index_row, unique_id
from meditron.corpus.languages import passes
from meditron.corpus.split import is_heldout
from meditron.sources.document import Document
from meditron.sources.registry import find_source
from meditron.store.corpus import SectionSpan
from meditron.store.files import atomic, make_folder, write_json
from meditron.store.identity import content_sha256
from meditron.store.jsonl import JsonlWriter, read_jsonl

__all__ = ["DECISION", "ReadFiles", "Shard", "SourceFile", "WriteShards", "load_array", "save_array"]

_SAMPLE = 300  # characters of a dropped document that are kept for the eye
_SHARD_CHARACTERS = 64 << 20  # of a shard's documents together, which are in memory at once; one more ends it

DECISION = np.dtype([("reason", "u1"), ("occurrence", "<u4")])
"""A document's `dedup.Reason` and the number of its id's occurrence."""


@dataclass(frozen=True, slots=True)
class SourceFile:
    """One file of a source, and where it stands among the source's files."""

    source: str
    format: str | None
    path: Path
    number: int
    name: str
    """Its path below the source's `from`, as text; it names documents that have no id of their own."""


@dataclass(frozen=True, slots=True)
class Shard:
    """One shard of a source, below the work folder."""

    source: str
    name: str
    work: Path

    def file(self, suffix: str) -> Path:
        """`candidates.jsonl.zst`, `index.npy`, `decisions.npy`, `drops.jsonl.zst` or `counts.json`."""
        return self.work / self.source / f"{self.name}.{suffix}"


@dataclass(frozen=True, slots=True)
class ReadFiles:
    """The first pass: task i reads file i, cleans its documents and writes those not yet in whole shards."""

    config: CorpusConfig
    files: tuple[SourceFile, ...]
    work: Path

    def __call__(self, task: int) -> None:
        """Read one file; InputError where it is damaged."""
        file = self.files[task]
        make_folder(self.work / file.source)
        source = find_source(file.path, file.format)
        skipped: Counter[str] = Counter()
        documents = islice(source.read(file.path, skipped, file.name), self.config.limit)
        number = -1
        for number, batch in enumerate(_batches(documents, self.config.shard_documents)):
            shard = Shard(file.source, f"{file.number:05d}-{number:05d}", self.work)
            if not shard.file("index.npy").exists():
                self._write(shard, batch)
        deleted = source.deletions(file.path) if source.deletions else []
        end = {"shards": number + 1, "skipped": dict(sorted(skipped.items())), "deleted": deleted}
        write_json(self.work / file.source / f"{file.number:05d}.file.json", end)

    def _write(self, shard: Shard, documents: Iterable[Document]) -> None:
        rows = []
        with JsonlWriter(shard.file("candidates.jsonl.zst")) as writer:
            for document in documents:
                text, parts = compose(document)
                reason = self._reason(document, text)
                content = content_sha256(text)
                heldout = is_heldout(content, self.config.heldout)
                rows.append(index_row(document.id, content, _version(document), reason, heldout=heldout))
                kept = (text, parts) if reason is Reason.KEPT else (text[:_SAMPLE], ())
                writer.write(_candidate(document, *kept))
        save_array(shard.file("index.npy"), np.array(rows, dtype=INDEX))

    def _reason(self, document: Document, text: str) -> Reason:
        """Why the document by itself is not wanted."""
        if document.meta.get("retracted") is True:
            return Reason.RETRACTED
        if not passes(document.language, self.config.languages):
            return Reason.LANGUAGE
        if not any(section.text.strip() for section in document.sections):
            return Reason.TITLE_ONLY
        return Reason.SHORT if len(text) < self.config.min_characters else Reason.KEPT


@dataclass(frozen=True, slots=True)
class WriteShards:
    """The second pass: task i writes what is kept of shard i, and what is not, with its reason."""

    shards: tuple[Shard, ...]
    out: Path

    def __call__(self, task: int) -> None:
        """Write one shard's files."""
        shard = self.shards[task]
        decisions = load_array(shard.file("decisions.npy"))  # fewer than candidates where the limit falls
        heldout = load_array(shard.file("index.npy"))["heldout"][: len(decisions)]
        rows = islice(read_jsonl(shard.file("candidates.jsonl.zst")), len(decisions))
        kept: dict[str, list[dict[str, Any]]] = {"train": [], "heldout": []}
        dropped = []
        for row, (reason, occurrence), held in zip(rows, decisions, heldout, strict=True):
            row |= {"id": unique_id(row["id"], occurrence), "source": shard.source}
            if reason == Reason.KEPT:
                kept["heldout" if held else "train"].append(row)
            else:
                why = {"reason": Reason(reason).text, "sample": row["text"][:_SAMPLE]}
                dropped.append({"id": row["id"], "source": shard.source, **why})
        for split, documents in kept.items():
            _write_rows(self.out / split / shard.source / f"{shard.name}.jsonl.zst", documents)
        _write_rows(shard.file("drops.jsonl.zst"), dropped)
        counts: dict[str, Any] = {"read": len(decisions), "kept": sum(map(len, kept.values()))}
        counts |= {split: len(documents) for split, documents in kept.items()}
        for split, documents in kept.items():
            counts[f"{split}_characters"] = sum(len(row["text"]) for row in documents)
        counts["dropped"] = dict(sorted(Counter(drop["reason"] for drop in dropped).items()))
        write_json(shard.file("counts.json"), counts)


def _version(document: Document) -> int:
    """Return a PubMed citation's version, 0 for any other document, whose `version` may be anything."""
    version = document.meta.get("version") if document.id.startswith("pubmed:") else None
    return version if type(version) is int and 0 < version < 1 << 32 else 0


def _candidate(document: Document, text: str, parts: tuple[SectionSpan, ...]) -> dict[str, Any]:
    meta = {"title": document.title, "language": document.language, "year": document.year, **document.meta}
    row: dict[str, Any] = {"id": document.id, "source": document.source, "text": text}
    if parts:
        row["parts"] = [astuple(part) for part in parts]
    return row | {"meta": meta}


def _write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """The rows as a file; no file for no rows."""
    if not rows:
        return
    make_folder(path.parent)
    with JsonlWriter(path) as writer:
        for row in rows:
            writer.write(row)


def _batches(documents: Iterator[Document], size: int) -> Iterator[list[Document]]:
    """Documents in batches of `size`, fewer where they are so long that memory would not hold them."""
    batch: list[Document] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += sum(len(section.text) for section in document.sections)
        if len(batch) == size or characters > _SHARD_CHARACTERS:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def save_array(path: Path, array: npt.NDArray[Any]) -> None:
    """An array as `.npy`, whole or not at all."""
    with atomic(path) as file:
        np.save(file, array, allow_pickle=False)


def load_array(path: Path) -> npt.NDArray[Any]:
    """What `save_array` wrote."""
    return np.asarray(np.load(path, allow_pickle=False))
