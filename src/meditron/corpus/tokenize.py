"""The tokenize stage: the training split as token ids, in one `.bin`/`.idx` pair of files per source.

The tokenizer is that of the base model. Every document ends with its end-of-text token, and begins with BOS
if the tokenizer adds one. Shards are encoded one by one, and a resumed run encodes the missing shards only.
`NAME.hashes` contains the content hash of each document, and `NAME.facts` the publication types, year and
quality score on which the document's weight in training may depend, both in the documents' order.

The ids are those of HF tokenizers. gigatoken computes them if it gives the same ids for a sample of the
corpus, which every run compares first (`encoder_choice`).

A text longer than `PIECE` is cut into pieces whose ids are concatenated. This bounds memory. The pieces have
the ids of the whole text for the tokenizers that `text.long_text` can split; for others the text is cut at
the end of a paragraph or line or at a blank if possible.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
import numpy.typing as npt

from meditron.core.console import info
from meditron.core.errors import InputError, UsageError
from meditron.corpus.config import TokenizeConfig
from meditron.corpus.encoder_choice import Encoding, choose_encoding
from meditron.corpus.execute import execute_tasks, release_executor
from meditron.corpus.expectations import compare_sizes
from meditron.corpus.progress import progress_by_files
from meditron.model.presets import model_tokenizer
from meditron.report.corpus_page import write_token_page
from meditron.sources.evidence import evidence_table, sum_by_level, type_mask
from meditron.store.document_facts import FACTS, FACTS_SUFFIX, fact_row, read_facts, write_facts
from meditron.store.files import make_folder, remove_folders, remove_temporaries
from meditron.store.identity import content_sha256, short_hash
from meditron.store.indexed import (
    IndexedDataset,
    IndexedWriter,
    TokenIds,
    concatenate_side_files,
    token_dtype,
    write_hashes,
)
from meditron.store.jsonl import read_jsonl_as
from meditron.store.manifest import Artifact
from meditron.store.models import resolve_model
from meditron.text.encoders import TextEncoder
from meditron.text.long_text import split_text
from meditron.text.tokenizer import Tokenizer

__all__ = ["PIECE", "run"]

PIECE = 1 << 18
"""Maximum number of characters of a text that are encoded at once."""
_BATCH = 1 << 13  # maximum number of texts that are encoded at once
# Finds the lists of descriptors to decode: most have none of the table's.
_MESH_OF_TYPES = re.compile("|".join(re.escape(t.mesh) for t in evidence_table().types if t.mesh).encode())


ContentHash = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{16}$")]


_NOTHING = msgspec.Raw(b"null")


class _Meta(msgspec.Struct):
    """The part of a document's `meta` that its facts are taken from."""

    year: object = None
    publication_types: msgspec.Raw = _NOTHING
    article_type: object = None
    mesh: msgspec.Raw = _NOTHING


class _Row(msgspec.Struct):
    """The part of a document's row that is read."""

    text: str
    content_hash: ContentHash | None = None
    """`short_hash(content_sha256(text))`; to compute it takes as long as to encode the text."""
    meta: _Meta = msgspec.field(default_factory=_Meta)
    quality: object = None


def run(config: TokenizeConfig, inputs: Mapping[str, Artifact], out: Path) -> dict[str, Any]:
    """Tokenize `inputs["corpus"]` with the tokenizer of `inputs["base"]`; continue a killed run.

    Returns:
        The metrics: the total numbers of `tokens` and `documents`; in `sources` both numbers for each source,
        with the `median` and the `longest` length of a document in tokens, and in `levels` both numbers for
        each evidence level; the `dtype` of the ids; the digest of the `tokenizer`; the library that encoded
        the texts as `encoder`, and the number of documents `compared` with HF tokenizers.

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
    # No source has a name that begins with an underscore.
    encoding = choose_encoding(tokenizer, make_folder(work / "_tokenizer"), files, config.seed or 0)
    if encoding.reason:
        info(f"tokenize: texts are encoded with HF tokenizers: {encoding.reason}")
    task = _TokenizeShardTask(encoding, files, work, dict(config.publication_types))
    with progress_by_files("tokenize", work, "*/*.idx", len(files), _shard_amounts):
        execute_tasks("tokenize", task, range(len(files)), config, work / "tasks")
    release_executor(config)
    sources = sorted({file.parent.name for file in files})
    lengths = {source: _merge_shards(source, tokenizer, work, out) for source in sources}
    tokenizer.save(out)
    metrics = _token_metrics(lengths, tokenizer, out)
    metrics |= {"encoder": encoding.name, "compared": encoding.compared}
    if config.expected_tokens:
        built = {source: counts["tokens"] for source, counts in metrics["sources"].items()}
        metrics["expected_tokens"] = compare_sizes(config.expected_tokens, built, "tokens")
    write_token_page(lengths, metrics, out)
    remove_folders([work])
    return metrics


@dataclass(frozen=True, slots=True)
class _TokenizeShardTask:
    """Task for `execute_tasks`: number i encodes file i, one shard of the training split."""

    encoding: Encoding
    files: tuple[Path, ...]
    work_folder: Path
    publication_types: Mapping[str, Sequence[str]]

    def result_file(self, task: int) -> Path:
        """Return the `.idx` file, which marks a shard as finished."""
        prefix = _shard_prefix(self.files[task], self.work_folder)
        return prefix.with_name(f"{prefix.name}.idx")

    def __call__(self, task: int) -> None:
        path = self.files[task]
        prefix = _shard_prefix(path, self.work_folder)
        make_folder(prefix.parent)
        default_types = type_mask(list(self.publication_types.get(path.parent.name, ())))
        hashes: list[str] = []
        facts: list[tuple[int, int, int]] = []
        encoder = self.encoding.encoder()
        with IndexedWriter(prefix, token_dtype(self.encoding.vocab_size)) as writer:
            for batch in _batch_rows(read_jsonl_as(path, _Row), encoder.batch_characters):
                hashes += [row.content_hash or short_hash(content_sha256(row.text)) for row in batch]
                facts += [_fact_row(row, default_types) for row in batch]
                writer.add_documents(*self._encode_documents(encoder, [row.text for row in batch]))
            # Before the block ends: that writes the `.idx` file, which marks the shard as complete.
            write_hashes(prefix, hashes)
            write_facts(prefix, np.array(facts, dtype=FACTS))

    def _encode_documents(
        self, encoder: TextEncoder, texts: list[str]
    ) -> tuple[TokenIds, npt.NDArray[np.int64]]:
        """Return the ids of all texts, each with the end-of-text token, and the number of ids of each."""
        encoding = self.encoding
        if len(texts[0]) > PIECE:  # a long text is a batch by itself
            encoded = [encoder.encode([piece])[0] for piece in _cut_text(texts[0], encoding.piece_prefix)]
            ids = np.concatenate(encoded)
            sizes = np.array([ids.size])
        else:
            ids, sizes = encoder.encode(texts)
        return _delimit_documents(ids, sizes, encoding.bos_id, encoding.end_of_text_id)


def _fact_row(row: _Row, default_types: int) -> tuple[int, int, int]:
    meta = row.meta
    types = _mask_of_types(bytes(meta.publication_types))
    if _MESH_OF_TYPES.search(meta.mesh):
        types |= type_mask(mesh=msgspec.json.decode(meta.mesh))
    if meta.article_type is not None:
        types |= type_mask(article_type=meta.article_type)
    return fact_row(types or default_types, meta.year, row.quality)


# A corpus has few different lists of types.
@lru_cache(maxsize=1 << 12)
def _mask_of_types(publication_types: bytes) -> int:
    return type_mask(publication_types=msgspec.json.decode(publication_types))


def _delimit_documents(
    ids: TokenIds, sizes: npt.NDArray[np.int64], bos: int | None, end: int
) -> tuple[TokenIds, npt.NDArray[np.int64]]:
    """Insert BOS, if there is one, before each document, and the end-of-text token after it."""
    sizes = sizes + (1 if bos is None else 2)
    ends = np.cumsum(sizes)
    delimited = np.empty(int(ends[-1]), ids.dtype)
    is_text = np.ones(delimited.size, dtype=bool)
    delimited[ends - 1] = end
    is_text[ends - 1] = False
    if bos is not None:
        delimited[ends - sizes] = bos
        is_text[ends - sizes] = False
    delimited[is_text] = ids
    return delimited, sizes


def _batch_rows(rows: Iterator[_Row], max_characters: int) -> Iterator[list[_Row]]:
    """Yield batches of at most `_BATCH` rows; a row of more than `PIECE` characters is a batch by itself."""
    batch: list[_Row] = []
    characters = 0
    for row in rows:
        length = len(row.text)
        if batch and (len(batch) == _BATCH or characters + length > max_characters or length > PIECE):
            yield batch
            batch, characters = [], 0
        batch.append(row)
        characters += length
        if length > PIECE:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def _cut_text(text: str, prefix: str | None) -> Iterator[str]:
    """Cut a text into pieces of at most `PIECE` characters.

    Args:
        text: The text.
        prefix: `Tokenizer.piece_prefix`.
    """
    if prefix is None:
        yield from _cut_anywhere(text)
        return
    try:
        pieces = list(split_text(text, prefix, PIECE))
    except UsageError:  # too many characters without a place at which a split would not change the ids
        pieces = [text]
    yield from chain.from_iterable(map(_cut_anywhere, pieces))


def _cut_anywhere(text: str) -> Iterator[str]:
    """Cut a text into pieces of at most `PIECE` characters, at the end of a paragraph or line or a blank."""
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


def _shard_amounts(idx: Path) -> dict[str, float]:
    dataset = IndexedDataset(idx.with_suffix(""))
    return {"documents": len(dataset), "tokens": len(dataset.tokens)}


def _merge_shards(source: str, tokenizer: Tokenizer, work: Path, out: Path) -> npt.NDArray[np.int32]:
    """Concatenate a source's shards in order, and return the number of tokens of each document."""
    prefixes = [idx.with_suffix("") for idx in sorted((work / source).glob("*.idx"))]
    sizes = []
    with IndexedWriter(out / source, token_dtype(tokenizer.vocab_size)) as writer:
        # One open shard at a time: a large corpus has more files than a process may open.
        for prefix in prefixes:
            shard = IndexedDataset(prefix)
            writer.add_dataset(shard)
            sizes.append(shard.sizes.astype("<i4"))  # the format's own type, half of the dataset's
        for suffix in (".hashes", FACTS_SUFFIX):
            concatenate_side_files(prefixes, suffix, out / source)
    return np.concatenate(sizes)


def _level_metrics(
    sizes: npt.NDArray[np.integer[Any]], types: npt.NDArray[np.uint32]
) -> dict[str, dict[str, int]]:
    sums = sum_by_level(types, np.ones_like(sizes), sizes)
    return {level: {"documents": documents, "tokens": tokens} for level, (documents, tokens) in sums.items()}


def _year_metrics(sizes: npt.NDArray[np.int32], years: npt.NDArray[np.integer[Any]]) -> dict[str, int]:
    """Return year → tokens; the year 0 stands for documents without one."""
    found, places = np.unique(years, return_inverse=True)
    tokens = np.bincount(places, weights=sizes, minlength=len(found))  # exact: sums below 2^53
    return {str(year): int(count) for year, count in zip(found.tolist(), tokens, strict=True)}


def _token_metrics(
    lengths: Mapping[str, npt.NDArray[np.int32]], tokenizer: Tokenizer, out: Path
) -> dict[str, Any]:
    sources: dict[str, dict[str, Any]] = {}
    for source, sizes in lengths.items():
        facts = read_facts(out / source)
        sources[source] = {
            "documents": len(sizes),
            "tokens": int(sizes.sum(dtype=np.int64)),
            "median": int(np.median(sizes)),
            "longest": int(sizes.max()),
            "levels": _level_metrics(sizes, facts["types"]),
            "years": _year_metrics(sizes, facts["year"]),
        }
    return {
        "tokens": sum(counts["tokens"] for counts in sources.values()),
        "documents": sum(counts["documents"] for counts in sources.values()),
        "sources": sources,
        "dtype": str(token_dtype(tokenizer.vocab_size)),
        "tokenizer": tokenizer.digest,
    }
