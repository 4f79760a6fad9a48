"""Near-duplicate detection against datatrove's MinHash pipeline: two rows of `benchmarks/corpus.py`.

Both sides read the same JSON lines, write signatures to disk, find clusters, and write the documents that
they keep as JSON lines: from text to deduplicated text, in one process. Ours additionally compares the
shingles of each pair; datatrove takes every pair with an equal band as duplicates. datatrove's default
tokenizer is spaCy's English one; the second row gives it `str.split` instead, on the text that it has
normalised either way. Imports, compiled kernels and spaCy's tables are loaded before the clock starts.

The row also has, of 5,000 pairs of documents in each band of similarity, the share with an equal band of the
signature and the share that theory predicts; and of the planted documents the share that is found.
"""

import gc
import random
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain, compress, islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgspec
import numpy as np
from datatrove.pipeline.dedup import (
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupFilter,
    MinhashDedupSignature,
)
from datatrove.pipeline.dedup.minhash import MinhashConfig
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter as DatatroveWriter

from benchmarks.common import cpu_seconds, record
from meditron.corpus.candidate import Candidate, DocumentTable
from meditron.corpus.clean import render_document
from meditron.corpus.config import CorpusConfig
from meditron.corpus.dedup import INDEX
from meditron.corpus.document_files import DocumentFiles
from meditron.corpus.minhash import MinHash, shingle_hashes
from meditron.corpus.near_dedup import NearDuplicates
from meditron.corpus.pieces import save_array
from meditron.sources.document import Document
from meditron.sources.medline import read
from meditron.store.files import write_json
from meditron.store.jsonl import JsonlWriter, read_jsonl

DOCUMENTS = 15_000
PLANTED = 1_500  # copies of documents with 1 % of the words replaced
PAIRS = 5_000  # in each band of similarity
PIECE = 2_000  # documents; `shard_documents` of a corpus
ROUNDS = 3
SIMILARITIES = (0.6, 0.7, 0.8, 0.9, 1.0)
THRESHOLD = 0.8


def measure(medline: Path) -> None:
    """Record both rows.

    Args:
        medline: A MEDLINE file with at least DOCUMENTS abstracts.
    """
    random_ = random.Random(7)  # noqa: S311  # reproducible edits
    texts = list(islice(_abstracts(medline), DOCUMENTS))
    words = [word for text in texts[:500] for word in text.split()]
    copies = [_edit(text, words, random_, max(1, len(text.split()) // 100)) for text in texts[:PLANTED]]
    documents = texts + copies
    with TemporaryDirectory() as name:
        seconds = _time_all(documents, Path(name))
        quality = _quality(documents, Path(name) / "ours-0/kept.jsonl")
    quality["candidates"] = _candidate_rates(texts, words, random_)
    for row, side, tokenizer, bar in (
        ("minhash-vs-datatrove", "default", "spaCy (its default)", 100),
        ("minhash-vs-datatrove-split", "split", "str.split", 15),
    ):
        record(
            "corpus",
            row,
            ours=len(documents) / min(seconds["ours"]),
            peer=len(documents) / min(seconds[side]),
            unit="documents a CPU second",
            bar=bar,
            peer_name=f"datatrove 0.10.1, {tokenizer}",
            characters=sum(map(len, documents)) // len(documents),
            rounds={"ours": seconds["ours"], "peer": seconds[side]},
            **(quality if side == "default" else {}),
        )


def _time_all(documents: list[str], folder: Path) -> dict[str, list[float]]:
    """Return the CPU seconds of each side in each of its rounds."""
    for name, texts in (("warm", documents[:PIECE]), ("in", documents)):
        (folder / name).mkdir()
        with JsonlWriter(folder / name / "documents.jsonl") as writer:
            for number, text in enumerate(texts):
                writer.write({"id": str(number), "text": text})
    sides: dict[str, Callable[[Path, Path], None]] = {
        "ours": _ours,
        "split": partial(_datatrove, split=True),
        "default": partial(_datatrove, split=False),
    }
    seconds: dict[str, list[float]] = {side: [] for side in sides}
    for number in range(-1, ROUNDS):
        if number == 0:
            # The garbage collector would search what the imports left behind, at random moments.
            gc.collect()
            gc.freeze()
        for side, work in sides.items():
            if number < 0:
                work(folder / "warm", folder / f"{side}-warm")
            elif side != "default" or number == 0:  # datatrove's default takes a minute a round
                out = folder / f"{side}-{number}"
                seconds[side].append(cpu_seconds(partial(work, folder / "in", out)))
    return seconds


def _abstracts(medline: Path) -> Iterator[str]:
    for document in read(medline):
        text, _ = render_document(document)
        if document.sections and len(text.split()) > 100:
            yield text


def _edit(text: str, vocabulary: list[str], random_: random.Random, edits: int) -> str:
    words = text.split()
    for _ in range(edits):
        words[random_.randrange(len(words))] = random_.choice(vocabulary)
    return " ".join(words)


class _Row(msgspec.Struct):
    id: str
    text: str


def _ours(source: Path, out: Path) -> None:
    """Apply the corpus' pass, without the steps around it: reading of formats, cleaning, exact copies."""
    settings = {"sources": {"a": {"from": "a"}}, "near_dedup": {"threshold": THRESHOLD}}
    step = NearDuplicates(CorpusConfig.model_validate(settings))
    decoder = msgspec.json.Decoder(_Row)
    out.mkdir()
    ends: list[int] = []
    with (source / "documents.jsonl").open("rb") as lines:
        while rows := [decoder.decode(line) for line in islice(lines, PIECE)]:
            candidates = (Candidate(Document(row.id, "a", "", ()), row.text) for row in rows)
            signatures = [step.document_signature(candidate) for candidate in candidates]
            for name, array in step.piece_arrays(signatures).items():
                save_array(out / f"{len(ends):06d}.{step.name}.{name}.npy", array)
            names = {"ids": [row.id for row in rows], "titles": [row.text[:120] for row in rows]}
            write_json(out / f"{len(ends):06d}.names.json", names)
            ends.append(len(rows))
    files = DocumentFiles(tuple(out / f"{number:06d}." for number in range(len(ends))), np.cumsum(ends), out)
    index = np.zeros(sum(ends), dtype=INDEX)
    table = DocumentTable(index, np.empty((0, 2), dtype="<u8"), files=files)
    keep = np.ones(len(index), dtype=bool)
    for dropped in step.compare_documents(table).values():
        keep[dropped] = False
    with (source / "documents.jsonl").open("rb") as lines, (out / "kept.jsonl").open("wb") as kept:
        kept.writelines(compress(lines, keep.tolist()))


class _Split:
    """A tokenizer in the form that datatrove calls."""

    def word_tokenize(self, text: str) -> list[str]:
        return text.split()


def _datatrove(source: Path, out: Path, *, split: bool) -> None:
    """Run datatrove's four stages in this process; its executor would only start them."""
    config = MinhashConfig()
    assert (config.num_buckets, config.hashes_per_bucket, config.n_grams) == (14, 8, 5)
    signatures = MinhashDedupSignature(str(out / "signatures"), config)
    if split:
        signatures.word_tokenizer = _Split()
    signatures.run(JsonlReader(str(source), glob_pattern="documents.jsonl").run())
    for bucket in range(config.num_buckets):
        buckets = MinhashDedupBuckets(str(out / "signatures"), str(out / "buckets"), config=config)
        buckets.run(None, bucket, config.num_buckets)
    MinhashDedupCluster(str(out / "buckets"), str(out / "remove"), config=config).run(None, 0, 1)
    kept = MinhashDedupFilter(str(out / "remove")).run(
        JsonlReader(str(source), glob_pattern="documents.jsonl").run(), 0, 1
    )
    for _ in DatatroveWriter(str(out / "kept"), compression=None).run(kept):
        pass


def _quality(documents: list[str], kept_file: Path) -> dict[str, Any]:
    """Return the share of planted near-duplicates that is found, and that of documents dropped wrongly."""
    kept = {int(row["id"]) for row in read_jsonl(kept_file)}
    shingles = [set(shingle_hashes(text).tolist()) for text in documents]
    pairs = [
        number
        for number in range(PLANTED)
        if _similarity(shingles[number], shingles[DOCUMENTS + number]) >= 0.85
    ]
    found = sum(1 for number in pairs if not {number, DOCUMENTS + number} <= kept)
    false = 0
    for number in set(range(len(documents))) - kept:
        partners = {
            number - DOCUMENTS,
            number + DOCUMENTS,
        } & kept  # compared first: nearly always the original
        others = chain(partners, kept - partners)
        false += not any(_similarity(shingles[number], shingles[other]) >= THRESHOLD for other in others)
    return {"planted": len(pairs), "planted_found": found / len(pairs), "false_hits": false / len(documents)}


def _similarity(one: set[int], other: set[int]) -> float:
    return len(one & other) / len(one | other)


def _candidate_rates(
    texts: list[str], vocabulary: list[str], random_: random.Random
) -> dict[str, dict[str, float]]:
    """Return, by exact similarity, the share of pairs with a common key, and the expected share."""
    hasher = MinHash()
    bands: dict[int, list[tuple[float, bool]]] = {band: [] for band in range(len(SIMILARITIES) - 1)}
    while any(len(pairs) < PAIRS for pairs in bands.values()):
        text = random_.choice(texts)
        other = _edit(text, vocabulary, random_, random_.randint(1, max(1, len(text.split()) // 14)))
        similarity = _similarity(set(shingle_hashes(text).tolist()), set(shingle_hashes(other).tolist()))
        band = int(np.searchsorted(SIMILARITIES, similarity, side="right")) - 1
        if similarity < 1 and len(bands.get(band, range(PAIRS))) < PAIRS:
            common = bool((hasher.sign(text).keys == hasher.sign(other).keys).any())
            bands[band].append((similarity, common))
    rates = {}
    for band, pairs in bands.items():
        similarities, found = map(np.array, zip(*pairs, strict=True))
        rates[f"{SIMILARITIES[band]}-{SIMILARITIES[band + 1]}"] = {
            "pairs": len(pairs),
            "measured": float(found.mean()),
            "theory": float((1 - (1 - similarities**8) ** 14).mean()),
        }
    return rates
