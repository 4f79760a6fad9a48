"""The tokenize stage: the training split as token ids of the base model, one `.bin/.idx` pair per source.

Every document ends with the tokenizer's end-of-text token, and begins with BOS if the tokenizer adds one.
Each shard is encoded on its own; a resumed run encodes only the missing ones. `<source>.hashes` holds the
hash of each document's content, in the same order.

Memory is bounded by `PIECE`: a longer text is encoded in pieces, which end at a paragraph, a line or a blank
if there is one. Its ids are the concatenated ids of its pieces.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from meditron.core.errors import InputError
from meditron.corpus.config import TokenizeConfig
from meditron.corpus.execute import execute, progress_by_files
from meditron.model.presets import model_tokenizer
from meditron.report.corpus_page import write_token_page
from meditron.store.files import make_folder, remove_folders, remove_temporaries
from meditron.store.identity import content_sha256, short_hash
from meditron.store.indexed import (
    IndexedDataset,
    IndexedWriter,
    TokenIds,
    read_hashes,
    token_dtype,
    write_hashes,
)
from meditron.store.jsonl import read_jsonl
from meditron.store.manifest import Artifact
from meditron.store.models import resolve_model
from meditron.text.tokenizer import Tokenizer

__all__ = ["PIECE", "run"]

PIECE = 1 << 18
"""Characters encoded at once, at most; encoding takes about 300 bytes per token."""
_BATCH = 256  # pieces encoded at once


def run(config: TokenizeConfig, inputs: Mapping[str, Artifact], out: Path) -> dict[str, Any]:
    """Tokenize `inputs["corpus"]` with the tokenizer of `inputs["base"]`, resuming a killed run.

    Returns:
        The metrics: `tokens` and `documents` in all; `sources`: both of each source, and the `median` and
        `longest` document in tokens; `dtype` of the ids; `tokenizer`, its digest.

    Raises:
        InputError: The corpus has no training text, or one of its files is damaged, or the vocabulary of the
            base is.
        SourceError: The base is not a model.
    """
    make_folder(out)
    remove_temporaries(out)
    tokenizer = model_tokenizer(resolve_model(inputs["base"].spec))
    train = inputs["corpus"].path / "train"
    files = tuple(sorted(train.glob("*/*.jsonl.zst")))
    if not files:
        raise InputError(train, "no training text: every document was dropped or held out")
    work = make_folder(out / "work")
    with progress_by_files("tokenize", work, "*/*.idx", total=len(files)):
        execute("tokenize", _Tokenize(tokenizer, files, work), len(files), config.workers, work / "tasks")
    sources = sorted({file.parent.name for file in files})
    lengths = {source: _merge(source, tokenizer, work, out) for source in sources}
    tokenizer.save(out)
    metrics = _metrics(lengths, tokenizer)
    write_token_page(lengths, metrics, out)
    remove_folders([work])
    return metrics


@dataclass(frozen=True, slots=True)
class _Tokenize:
    """Task i encodes file i."""

    tokenizer: Tokenizer
    files: tuple[Path, ...]
    work: Path

    def __call__(self, task: int) -> None:
        path = self.files[task]
        prefix = _shard_prefix(path, self.work)
        if prefix.with_name(f"{prefix.name}.idx").exists():
            return
        make_folder(prefix.parent)
        hashes = []
        with IndexedWriter(prefix, token_dtype(self.tokenizer.vocab_size)) as writer:
            for batch in _batches(row["text"] for row in read_jsonl(path)):
                hashes += [short_hash(content_sha256(text)) for text in batch]
                for ids in self._encoded(batch):
                    writer.add_document(ids)
            # Inside the block: a shard counts as complete once its .idx exists, which is written at the end.
            write_hashes(prefix, hashes)

    def _encoded(self, texts: list[str]) -> Iterator[TokenIds]:
        """Yield the ids of each text, with its end-of-text token."""
        end = [self.tokenizer.end_of_text_id]
        if len(texts[0]) <= PIECE:
            for ids in self.tokenizer.encode_batch(texts):
                yield np.array(ids + end)
            return
        # An id in a list is a Python object of 28 bytes; in an array it takes 8.
        # BOS belongs to the document, so only the first piece gets it.
        first, *others = _pieces(texts[0])
        arrays = [np.array(self.tokenizer.encode(first))]
        arrays += [np.array(self.tokenizer.encode(piece, bos=False)) for piece in others]
        yield np.concatenate([*arrays, np.array(end)])


def _batches(texts: Iterator[str]) -> Iterator[list[str]]:
    """Yield batches of at most `_BATCH` texts and `PIECE` characters; a longer text is a batch of its own."""
    batch: list[str] = []
    characters = 0
    for text in texts:
        if batch and (len(batch) == _BATCH or characters + len(text) > PIECE):
            yield batch
            batch, characters = [], 0
        batch.append(text)
        characters += len(text)
    if batch:
        yield batch


def _pieces(text: str) -> Iterator[str]:
    """Cut a text into pieces of at most `PIECE` characters."""
    start = 0
    while start < len(text):
        end = start + PIECE
        if end < len(text):
            # Only cuts in the second half of a piece: otherwise one line break at its start would be taken.
            cuts = (text.rfind(mark, start, end) + len(mark) for mark in ("\n\n", "\n", " "))
            end = next((cut for cut in cuts if cut > start + PIECE // 2), end)
        yield text[start:end]
        start = end


def _shard_prefix(path: Path, work: Path) -> Path:
    return work / path.parent.name / path.name.removesuffix(".jsonl.zst")


def _merge(source: str, tokenizer: Tokenizer, work: Path, out: Path) -> np.ndarray[Any, Any]:
    """Join the source's shards in order, and return the lengths of its documents."""
    prefixes = [idx.with_suffix("") for idx in sorted((work / source).glob("*.idx"))]
    sizes, hashes = [], []
    with IndexedWriter(out / source, token_dtype(tokenizer.vocab_size)) as writer:
        for prefix in prefixes:  # one open shard at a time: a large corpus has more than a process may open
            shard = IndexedDataset(prefix)
            for number in range(len(shard)):
                writer.add_document(shard[number])
            sizes.append(shard.sizes)
            hashes += read_hashes(prefix)
        write_hashes(out / source, hashes)
    return np.concatenate(sizes)


def _metrics(lengths: Mapping[str, np.ndarray[Any, Any]], tokenizer: Tokenizer) -> dict[str, Any]:
    sources = {
        source: {
            "documents": len(sizes),
            "tokens": int(sizes.sum()),
            "median": int(np.median(sizes)),
            "longest": int(sizes.max()),
        }
        for source, sizes in lengths.items()
    }
    return {
        "tokens": sum(counts["tokens"] for counts in sources.values()),
        "documents": sum(counts["documents"] for counts in sources.values()),
        "sources": sources,
        "dtype": str(token_dtype(tokenizer.vocab_size)),
        "tokenizer": tokenizer.digest,
    }
