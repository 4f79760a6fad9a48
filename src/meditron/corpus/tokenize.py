"""The tokenize stage: the training split as token ids, in one `.bin`/`.idx` pair of files per source.

The tokenizer is that of the base model. Every document ends with its end-of-text token, and begins with BOS
if the tokenizer adds one. Shards are encoded one by one, and a resumed run encodes the missing shards only.
`<source>.hashes` contains the content hash of each document, in the documents' order.

A text longer than `PIECE` is cut into pieces, at the end of a paragraph or line or at a blank if possible,
and the ids of its pieces are concatenated. This bounds memory.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from meditron.core.errors import InputError
from meditron.corpus.config import TokenizeConfig
from meditron.corpus.execute import execute_tasks, progress_by_files
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
"""Maximum number of characters that are encoded at once; encoding needs about 300 bytes per token."""
_BATCH = 256  # maximum number of texts that are encoded at once


def run(config: TokenizeConfig, inputs: Mapping[str, Artifact], out: Path) -> dict[str, Any]:
    """Tokenize `inputs["corpus"]` with the tokenizer of `inputs["base"]`; continue a killed run.

    Returns:
        The metrics: the total numbers of `tokens` and `documents`; in `sources` both numbers for each source,
        with the `median` and the `longest` length of a document in tokens; the `dtype` of the ids; and the
        digest of the `tokenizer`.

    Raises:
        InputError: The corpus has no training text, or a file of the corpus or of the tokenizer is damaged.
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
        execute_tasks(
            "tokenize", _TokenizeShardTask(tokenizer, files, work), len(files), config.workers, work / "tasks"
        )
    sources = sorted({file.parent.name for file in files})
    lengths = {source: _merge_shards(source, tokenizer, work, out) for source in sources}
    tokenizer.save(out)
    metrics = _token_metrics(lengths, tokenizer)
    write_token_page(lengths, metrics, out)
    remove_folders([work])
    return metrics


@dataclass(frozen=True, slots=True)
class _TokenizeShardTask:
    """Task for `execute_tasks`: number i encodes file i, one shard of the training split."""

    tokenizer: Tokenizer
    files: tuple[Path, ...]
    work_folder: Path

    def __call__(self, task: int) -> None:
        path = self.files[task]
        prefix = _shard_prefix(path, self.work_folder)
        if prefix.with_name(f"{prefix.name}.idx").exists():
            return
        make_folder(prefix.parent)
        hashes = []
        with IndexedWriter(prefix, token_dtype(self.tokenizer.vocab_size)) as writer:
            for batch in _batch_texts(row["text"] for row in read_jsonl(path)):
                hashes += [short_hash(content_sha256(text)) for text in batch]
                for ids in self._encode_batch(batch):
                    writer.add_document(ids)
            # Before the block ends: that writes the `.idx` file, which marks the shard as complete.
            write_hashes(prefix, hashes)

    def _encode_batch(self, texts: list[str]) -> Iterator[TokenIds]:
        """Yield the token ids of each text, with the end-of-text token at the end."""
        end = [self.tokenizer.end_of_text_id]
        if len(texts[0]) <= PIECE:
            for ids in self.tokenizer.encode_batch(texts):
                yield np.array(ids + end)
            return
        # Arrays instead of lists: a Python integer takes 28 bytes, an array element 8.
        # BOS marks the beginning of a document, so only its first piece gets one.
        first, *others = _cut_text(texts[0])
        arrays = [np.array(self.tokenizer.encode(first))]
        arrays += [np.array(self.tokenizer.encode(piece, bos=False)) for piece in others]
        yield np.concatenate([*arrays, np.array(end)])


def _batch_texts(texts: Iterator[str]) -> Iterator[list[str]]:
    """Yield batches of at most `_BATCH` texts and `PIECE` characters; a longer text is a batch by itself."""
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


def _cut_text(text: str) -> Iterator[str]:
    """Cut a text into pieces of at most `PIECE` characters."""
    start = 0
    while start < len(text):
        end = start + PIECE
        if end < len(text):
            # Cut in the second half only: a line break near the start would give a very short piece.
            cuts = (text.rfind(mark, start, end) + len(mark) for mark in ("\n\n", "\n", " "))
            end = next((cut for cut in cuts if cut > start + PIECE // 2), end)
        yield text[start:end]
        start = end


def _shard_prefix(path: Path, work: Path) -> Path:
    return work / path.parent.name / path.name.removesuffix(".jsonl.zst")


def _merge_shards(source: str, tokenizer: Tokenizer, work: Path, out: Path) -> np.ndarray[Any, Any]:
    """Concatenate a source's shards in order, and return the number of tokens of each document."""
    prefixes = [idx.with_suffix("") for idx in sorted((work / source).glob("*.idx"))]
    sizes, hashes = [], []
    with IndexedWriter(out / source, token_dtype(tokenizer.vocab_size)) as writer:
        # One open shard at a time: a large corpus has more files than a process may open.
        for prefix in prefixes:
            shard = IndexedDataset(prefix)
            for number in range(len(shard)):
                writer.add_document(shard[number])
            sizes.append(shard.sizes)
            hashes += read_hashes(prefix)
        write_hashes(out / source, hashes)
    return np.concatenate(sizes)


def _token_metrics(lengths: Mapping[str, np.ndarray[Any, Any]], tokenizer: Tokenizer) -> dict[str, Any]:
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
