"""The files about benchmark questions: the hits, the quarantined documents, and the counts."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from meditron.store.contamination import HITS_FILE, QUARANTINE_FILE, SEARCH_FILE, read_hits
from meditron.store.files import read_json, write_json
from meditron.store.jsonl import JsonlWriter, read_jsonl

__all__ = ["INDEX_FILE", "SEARCHED_FILE", "gather_contamination", "hit_rows"]

INDEX_FILE, SEARCHED_FILE = "benchmarks.npz", "benchmarks.json"
"""Names of the index and of the list of benchmarks in the work folder."""


def hit_rows(
    hits: Iterable[Mapping[str, Any]], row: Mapping[str, Any], split: str
) -> Iterator[dict[str, Any]]:
    """Yield the rows of `contaminated.jsonl` for the hits of one document."""
    for hit in hits:
        yield {**hit, "document": row["id"], "source": row["source"], "split": split}


def gather_contamination(
    shard_files: Iterable[Mapping[str, Path]], work: Path, out: Path
) -> dict[str, dict[str, Any]]:
    """Join the shards' hits and quarantined documents, and count them.

    Args:
        shard_files: Name of an output (HITS_FILE, QUARANTINE_FILE) → its file, for each shard, in order. A
            shard without hits has none of the files.
        work: The folder of the working files, with the list of benchmarks.
        out: The stage's folder. Receives the two files, and SEARCH_FILE.

    Returns:
        Benchmark → number of its `questions`, of those `found`, of `documents` with them by source and by
        split (`removed`, `train`, `heldout`), and of the hits by `kinds`.
    """
    # Shards are read in order, so the bytes do not depend on which worker was faster.
    with JsonlWriter(out / HITS_FILE) as hits, JsonlWriter(out / QUARANTINE_FILE) as quarantine:
        for files in shard_files:
            for name, writer in ((HITS_FILE, hits), (QUARANTINE_FILE, quarantine)):
                if files[name].exists():
                    for row in read_jsonl(files[name]):
                        writer.write(row)
    benchmarks = read_json(work / SEARCHED_FILE)
    write_json(out / SEARCH_FILE, benchmarks)
    return {
        benchmark["name"]: {"questions": benchmark["questions"], **_count_hits(out, benchmark["name"])}
        for benchmark in benchmarks
    }


def _count_hits(out: Path, benchmark: str) -> dict[str, Any]:
    questions: set[str] = set()
    sources, splits, kinds = Counter[str](), Counter[str](), Counter[str]()
    hits = (hit for hit in read_hits(out) if hit.benchmark == benchmark)
    # The hits of one document are adjacent.
    for (source, _, split), of_document in groupby(hits, lambda hit: (hit.source, hit.document, hit.split)):
        sources[source] += 1
        splits[split] += 1
        for hit in of_document:
            questions.add(hit.question)
            kinds[hit.kind] += 1
    return {
        "found": len(questions),
        "sources": dict(sources),
        "splits": dict(splits),
        "kinds": dict(kinds.most_common()),
    }
