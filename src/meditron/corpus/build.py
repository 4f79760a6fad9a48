"""The corpus stage: sources to cleaned, deduplicated documents, split into training and held-out text.

1. Read all source files and examine their documents one by one, in parallel (`pieces`).
2. Compare all documents with each other, from a small index (`PassPipeline.compare`).
3. Write the splits and the drops in shards, in parallel (`shards`), add up the counts, report.

The same inputs give the same bytes, whatever was killed in between and however many workers there are.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from meditron.core.console import info, warn
from meditron.core.errors import InputError
from meditron.corpus.config import CorpusConfig
from meditron.corpus.dedup import DELETED, INDEX, SUPERSEDED, id_key, occurrences
from meditron.corpus.execute import execute, progress_by_files
from meditron.corpus.files import FileGroup, source_groups
from meditron.corpus.passes import KEPT, PASSES, PassFactory, PassPipeline
from meditron.corpus.pieces import GroupResult, Piece, ReadFiles, load_array, save_array
from meditron.corpus.shards import DECISION, Shard, WriteShards, plan_shards
from meditron.report.corpus_page import write_corpus_page
from meditron.store.files import make_folder, read_json, remove_folders, remove_temporaries
from meditron.store.jsonl import JsonlWriter, read_jsonl
from meditron.store.manifest import Artifact

__all__ = ["run"]

_WORK = "work"
_COUNTS = ("read", "kept", "train", "heldout", "train_characters", "heldout_characters")


def run(
    config: CorpusConfig,
    inputs: Mapping[str, Artifact],
    out: Path,
    passes: Sequence[PassFactory] = PASSES,
) -> dict[str, Any]:
    """Build the corpus in `out`, resuming a killed run.

    Args:
        config: The table `[corpus]`.
        inputs: The sources by name.
        out: The stage's folder.
        passes: The passes, in order.

    Returns:
        The metrics: `documents` and `characters` of each split, and `sources`: for each source the numbers
        of documents `read`, `kept`, in `train` and `heldout`, `dropped` by reason and `skipped` by reason.

    Raises:
        InputError: A source's file is damaged, a source has no documents, or no document of any is kept.
        SourceError: A source has no file, or one of no known format.
    """
    make_folder(out)
    remove_temporaries(out)
    work = make_folder(out / _WORK)
    pipeline = PassPipeline(config, passes)
    # The groups depend on the files alone, so a resumed run finds the same pieces.
    groups, left_out = source_groups(config, inputs)
    for name, reasons in left_out.items():
        for reason, count in reasons.items():
            info(f"{name}: {count:,} files skipped: {reason}")
    with progress_by_files("read", work, "*/*.index.npy"):
        execute(
            "read", ReadFiles(config, pipeline, groups, work), len(groups), config.workers, work / "tasks"
        )
    # Nothing is decided before all documents are read: a copy, or a deletion, may be in the last file.
    results = tuple(GroupResult.load(group, work) for group in groups)
    _require_documents(inputs, groups, results)
    shards = _decide(config, pipeline, results, work)
    with progress_by_files("write", work, "*/*.counts.json", total=len(shards)):
        execute("write", WriteShards(pipeline, shards, out), len(shards), config.workers, work / "tasks")
    metrics = _metrics(config, left_out, results, shards)
    _gather_drops(shards, out / "drops.jsonl.zst")
    # The report reads the finished files; a kill before it leaves the working files for the next run.
    write_corpus_page(config.model_dump(by_alias=True)["sources"], metrics, out)
    remove_folders([work])
    return metrics


def _require_documents(
    inputs: Mapping[str, Artifact], groups: Sequence[FileGroup], results: Sequence[GroupResult]
) -> None:
    """Refuse a source without documents: it would be missing from the corpus unnoticed."""
    for name in dict.fromkeys(group.source for group in groups):
        of_source = [result for result in results if result.source == name]
        if any(result.pieces for result in of_source):
            continue
        skipped = sum((Counter(result.skipped) for result in of_source), Counter[str]())
        entries = [f"{count:,} {reason}" for reason, count in skipped.most_common()]
        if deletions := sum(len(result.deleted) for result in of_source):
            entries.append(f"{deletions:,} deletions")
        problem = f"source '{name}' has no documents" + (f", only {', '.join(entries)}" if entries else "")
        raise InputError(inputs[name].path, problem, hint="remove the source, or correct its `from`")


def _decide(
    config: CorpusConfig, pipeline: PassPipeline, results: Sequence[GroupResult], work: Path
) -> tuple[Shard, ...]:
    """Compare all documents and write the decisions of each shard.

    Returns:
        The shards of all sources, in order, of as many documents as the limit allows.
    """
    pieces: list[tuple[Piece, int, int]] = []
    taken: Counter[str] = Counter()
    for piece, characters in ((p, c) for r in results for p, c in zip(r.pieces, r.characters, strict=True)):
        documents = len(np.load(piece.file("index.npy"), mmap_mode="r"))
        if config.limit is not None:
            # Every group reads up to the limit, in parallel; here the limit counts over the whole source.
            documents = min(documents, config.limit - taken[piece.source])
        taken[piece.source] += documents
        if documents:
            pieces.append((piece, documents, characters))
    index = _concatenate(pieces, "index", INDEX)
    signatures = {
        step.name: _concatenate(pieces, step.name, step.signature)
        for step in pipeline.passes
        if step.signature is not None
    }
    # A deletion holds for all files: PubMed's update files delete citations of the baseline.
    deleted = [id_key(identity) for result in results for identity in result.deleted]
    decisions = np.empty(len(index), DECISION)
    reasons = pipeline.compare(index, np.array(deleted, dtype="<u8").reshape(-1, 2), signatures)
    decisions["reason"] = reasons
    decisions["occurrence"] = occurrences(index, ~np.isin(reasons, pipeline.codes((DELETED, SUPERSEDED))))
    decisions["heldout"] = index["heldout"]
    _require_kept(config, pipeline, taken, reasons)
    shards = tuple(
        shard
        for name in config.sources
        for shard in plan_shards(
            name, [entry for entry in pieces if entry[0].source == name], config.shard_documents, work
        )
    )
    ends = np.cumsum([shard.documents for shard in shards])
    for shard, part in zip(shards, np.split(decisions, ends[:-1]), strict=True):
        # Decisions are a function of the inputs, so those of a killed run are still right.
        if not shard.file("decisions.npy").exists():
            save_array(shard.file("decisions.npy"), part)
    return shards


def _concatenate(
    pieces: Sequence[tuple[Piece, int, int]], name: str, dtype: npt.DTypeLike
) -> npt.NDArray[Any]:
    """Join an array of all pieces; of a piece that the limit cuts, its beginning."""
    arrays = [load_array(piece.file(f"{name}.npy"))[:documents] for piece, documents, _ in pieces]
    return np.concatenate([np.empty(0, dtype), *arrays])


def _require_kept(
    config: CorpusConfig, pipeline: PassPipeline, taken: Counter[str], reasons: npt.NDArray[np.uint8]
) -> None:
    """Warn of a source of which no document is kept; refuse a corpus without any."""
    # The index is in the order of the sources, so each source is one slice.
    end = 0
    for name in config.sources:
        start, end = end, end + taken[name]
        counts = Counter(reasons[start:end].tolist())
        if counts[KEPT]:
            continue
        listed = ", ".join(f"{count:,} {pipeline.text(code)}" for code, count in counts.most_common())
        if not (reasons == KEPT).any():
            hint = "see the keys languages and min_characters of [corpus]"
            problem = f"source '{name}' keeps no document ({listed}), nor does any other"
            raise InputError(config.sources[name].from_, problem, hint=hint)
        warn(f"source '{name}' keeps no document: {listed}")


def _metrics(
    config: CorpusConfig,
    left_out: Mapping[str, Counter[str]],
    results: Sequence[GroupResult],
    shards: Sequence[Shard],
) -> dict[str, Any]:
    sources: dict[str, dict[str, Any]] = {}
    for name in config.sources:
        skipped = Counter(left_out[name])
        for result in results:
            skipped.update(result.skipped if result.source == name else {})
        counts: Counter[str] = Counter()
        dropped: Counter[str] = Counter()
        for shard in shards:
            if shard.source == name:
                of_shard = read_json(shard.file("counts.json"))
                dropped.update(of_shard.pop("dropped"))
                counts.update(of_shard)
        sources[name] = {key: counts[key] for key in _COUNTS}
        sources[name] |= {"dropped": dict(dropped.most_common()), "skipped": dict(skipped.most_common())}
    splits = ("train", "heldout")
    return {
        "documents": {split: sum(counts[split] for counts in sources.values()) for split in splits},
        "characters": {
            split: sum(counts[f"{split}_characters"] for counts in sources.values()) for split in splits
        },
        "sources": sources,
    }


def _gather_drops(shards: Sequence[Shard], path: Path) -> None:
    # In the order of the shards: the bytes do not depend on which worker was faster.
    with JsonlWriter(path) as writer:
        for shard in shards:
            if shard.file("drops.jsonl.zst").exists():
                for row in read_jsonl(shard.file("drops.jsonl.zst")):
                    writer.write(row)
