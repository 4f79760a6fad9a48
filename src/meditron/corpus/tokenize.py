"""The tokenize stage: the training split as ids of the base model's tokenizer, a `.bin/.idx` pair a source.

Every document ends with the tokenizer's end-of-text token and begins with BOS where the tokenizer adds one.
Tokens are made shard by shard; a killed run makes only those that are missing.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from meditron.corpus.config import TokenizeConfig
from meditron.corpus.execute import execute
from meditron.corpus.progress import watched
from meditron.corpus.token_report import token_report
from meditron.ground.errors import InputError
from meditron.model.tokenizer import model_tokenizer
from meditron.store.artifact import Artifact
from meditron.store.files import make_folder, remove_folder, sweep
from meditron.store.indexed import Indexed, IndexedWriter, token_dtype
from meditron.store.jsonl import read_jsonl
from meditron.store.models import resolve
from meditron.text.tokenizer import Tokenizer

__all__ = ["run"]

_BATCH = 256  # documents encoded at once


def run(config: TokenizeConfig, inputs: Mapping[str, Artifact], out: Path) -> dict[str, Any]:
    """Tokenize `inputs["corpus"]` for `inputs["base"]`, going on where a killed run stopped.

    Returns:
        metrics: `tokens` and `documents` in all; `sources`: both of each source, and the `median` and
        `longest` document in tokens; `dtype` of the ids; `tokenizer`, its digest.

    Raises:
        InputError: the corpus has no training text, or one of its files is damaged; the base's vocabulary is.
        SourceError: the base is no model.
    """
    make_folder(out)
    sweep(out)
    tokenizer = model_tokenizer(resolve(inputs["base"].spec))
    train = inputs["corpus"].path / "train"
    files = tuple(sorted(train.glob("*/*.jsonl.zst")))
    if not files:
        raise InputError(train, "no training text: every document was dropped or held out")
    work = make_folder(out / "work")
    with watched("tokenize", work, "*/*.idx", total=len(files)):
        execute("tokenize", _Tokenize(tokenizer, files, work), len(files), config.workers, work / "tasks")
    lengths = {source: _merge(source, work, out) for source in sorted({file.parent.name for file in files})}
    tokenizer.save(out)
    metrics = _metrics(lengths, tokenizer)
    token_report(lengths, metrics, out)
    remove_folder(work)
    return metrics


@dataclass(frozen=True, slots=True)
class _Tokenize:
    """Task i makes the tokens of file i."""

    tokenizer: Tokenizer
    files: tuple[Path, ...]
    work: Path

    def __call__(self, task: int) -> None:
        path = self.files[task]
        prefix = _shard_prefix(path, self.work)
        if prefix.with_name(f"{prefix.name}.idx").exists():
            return
        make_folder(prefix.parent)
        end = self.tokenizer.end_of_text_id
        with IndexedWriter(prefix, token_dtype(self.tokenizer.vocab_size)) as writer:
            texts = [row["text"] for row in read_jsonl(path)]
            for start in range(0, len(texts), _BATCH):
                for ids in self.tokenizer.encode_batch(texts[start : start + _BATCH]):
                    writer.add([*ids, end])


def _shard_prefix(path: Path, work: Path) -> Path:
    return work / path.parent.name / path.name.removesuffix(".jsonl.zst")


def _merge(source: str, work: Path, out: Path) -> np.ndarray[Any, Any]:
    """Join the source's shards in order; the lengths of its documents."""
    shards = [Indexed(idx.with_suffix("")) for idx in sorted((work / source).glob("*.idx"))]
    dtype = shards[0][0].dtype
    with IndexedWriter(out / source, dtype) as writer:
        for shard in shards:
            for number in range(len(shard)):
                writer.add(shard[number])
    return np.concatenate([shard.sizes for shard in shards])


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
