"""The corpus stage: source files to cleaned, deduplicated documents, split into training and held-out text.

1. Read all source files and apply the passes to each document, in parallel (`pieces`).
2. Compare all documents with each other, using a small index of hashes (`PassPipeline.compare_documents`).
3. Write the kept and the dropped documents in shards, in parallel (`shards`), and report the counts.

The same inputs give the same bytes, for any number of workers and after any number of killed runs.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from meditron.core.console import info, warn
from meditron.core.errors import InputError
from meditron.corpus.candidate import SignaturePass
from meditron.corpus.config import CorpusConfig
from meditron.corpus.dedup import DELETED, INDEX, SUPERSEDED, id_hash, occurrence_numbers
from meditron.corpus.execute import execute_tasks, progress_by_files
from meditron.corpus.files import FileGroup, source_groups
from meditron.corpus.passes import KEPT, PASSES, PassFactory, PassPipeline
from meditron.corpus.pieces import GroupResult, Piece, ReadGroupTask, load_array, save_array
from meditron.corpus.shards import DECISION, Shard, WriteShardTask, plan_shards
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
    """Build the corpus in `out`; continue if an earlier run was killed.

    Args:
        config: Values of the recipe's table `[corpus]`.
        inputs: The sources by name.
        out: The stage's folder.
        passes: Classes of the passes, in the order in which they are applied.

    Returns:
        The metrics: `documents` and `characters` of each split, and `sources`: for each source the numbers
        of documents `read`, `kept`, in `train` and in `heldout`, of documents `dropped` by reason, and of
        file entries `skipped` by reason.

    Raises:
        InputError: A source's file is damaged, a source has no documents, or no document of any source is
            kept.
        SourceError: A source has no file, or has a file of unknown format.
    """
    make_folder(out)
    remove_temporaries(out)
    work = make_folder(out / _WORK)
    pipeline = PassPipeline(config, passes)
    # Every run groups the files in the same way, so a resumed run finds the pieces of the killed run.
    groups, left_out = source_groups(config, inputs)
    for name, reasons in left_out.items():
        for reason, count in reasons.items():
            info(f"{name}: {count:,} files skipped: {reason}")
    with progress_by_files("read", work, "*/*.index.npy"):
        execute_tasks(
            "read", ReadGroupTask(config, pipeline, groups, work), len(groups), config.workers, work / "tasks"
        )
    # Decisions need all documents: the last file may hold a copy, or declare a deletion.
    results = tuple(GroupResult.load(group, work) for group in groups)
    _require_documents(inputs, groups, results)
    shards = _compare_and_plan_shards(config, pipeline, results, work)
    with progress_by_files("write", work, "*/*.counts.json", total=len(shards)):
        execute_tasks(
            "write", WriteShardTask(pipeline, shards, out), len(shards), config.workers, work / "tasks"
        )
    metrics = _corpus_metrics(config, left_out, results, shards)
    if config.heldout and not metrics["documents"]["heldout"]:
        share = f"{config.heldout:g} of {metrics['documents']['train']:,} documents"
        warn(f"no document is held out (corpus.heldout: {share}); evaluate needs held-out documents")
    _gather_dropped_documents(shards, out / "drops.jsonl.zst")
    # The working files are removed last: a run that is killed before this line can still continue.
    write_corpus_page(config.model_dump(by_alias=True)["sources"], metrics, out)
    remove_folders([work])
    return metrics


def _require_documents(
    inputs: Mapping[str, Artifact], groups: Sequence[FileGroup], results: Sequence[GroupResult]
) -> None:
    """Raise InputError for a source without documents, which would be missing from the corpus unnoticed."""
    for name in dict.fromkeys(group.source for group in groups):
        of_source = [result for result in results if result.source == name]
        if any(result.pieces for result in of_source):
            continue
        skipped = sum((Counter(result.skipped) for result in of_source), Counter[str]())
        entries = [f"{count:,} {reason}" for reason, count in skipped.most_common()]
        if deletions := sum(len(result.deleted_ids) for result in of_source):
            entries.append(f"{deletions:,} deletions")
        problem = f"source '{name}' has no documents" + (f", only {', '.join(entries)}" if entries else "")
        raise InputError(inputs[name].path, problem, hint="remove the source, or correct its `from`")


def _compare_and_plan_shards(
    config: CorpusConfig, pipeline: PassPipeline, results: Sequence[GroupResult], work: Path
) -> tuple[Shard, ...]:
    """Compare all documents, plan the shards, and write the decisions about each shard's documents.

    Returns:
        The shards of all sources, in order. They hold at most `config.limit` documents of each source.
    """
    pieces: list[tuple[Piece, int, int]] = []
    documents_by_source: Counter[str] = Counter()
    for piece, characters in (
        (p, c) for r in results for p, c in zip(r.pieces, r.piece_characters, strict=True)
    ):
        documents = len(np.load(piece.working_file("index.npy"), mmap_mode="r"))
        if config.limit is not None:
            # Groups are read in parallel, each up to the limit; here the limit applies to the whole source.
            documents = min(documents, config.limit - documents_by_source[piece.source])
        documents_by_source[piece.source] += documents
        if documents:
            pieces.append((piece, documents, characters))
    index = _concatenate_arrays(pieces, "index", INDEX)
    signatures = {
        step.name: _concatenate_arrays(pieces, step.name, step.signature_dtype)
        for step in pipeline.passes
        if isinstance(step, SignaturePass)
    }
    # A deleted id is dropped from all files: PubMed's update files delete citations of the baseline files.
    deleted = [id_hash(identity) for result in results for identity in result.deleted_ids]
    decisions = np.empty(len(index), DECISION)
    reasons = pipeline.compare_documents(index, np.array(deleted, dtype="<u8").reshape(-1, 2), signatures)
    decisions["reason"] = reasons
    decisions["occurrence"] = occurrence_numbers(
        index, ~np.isin(reasons, pipeline.reason_codes((DELETED, SUPERSEDED)))
    )
    decisions["heldout"] = index["heldout"]
    _require_kept_documents(config, pipeline, documents_by_source, reasons)
    shards = tuple(
        shard
        for name in config.sources
        for shard in plan_shards(
            name, [entry for entry in pieces if entry[0].source == name], config.shard_documents, work
        )
    )
    ends = np.cumsum([shard.document_count for shard in shards])
    for shard, part in zip(shards, np.split(decisions, ends[:-1]), strict=True):
        # Decisions depend on the inputs alone, so the file that a killed run wrote is still valid.
        if not shard.working_file("decisions.npy").exists():
            save_array(shard.working_file("decisions.npy"), part)
    return shards


def _concatenate_arrays(
    pieces: Sequence[tuple[Piece, int, int]], name: str, dtype: npt.DTypeLike
) -> npt.NDArray[Any]:
    """Concatenate one array over all pieces, with the rows of the documents within the limit only."""
    arrays = [load_array(piece.working_file(f"{name}.npy"))[:documents] for piece, documents, _ in pieces]
    return np.concatenate([np.empty(0, dtype), *arrays])


def _require_kept_documents(
    config: CorpusConfig,
    pipeline: PassPipeline,
    documents_by_source: Counter[str],
    reasons: npt.NDArray[np.uint8],
) -> None:
    """Warn about each source of which no document is kept; raise InputError if no source has any."""
    # The index is sorted by source, so the documents of one source are one slice.
    end = 0
    for name in config.sources:
        start, end = end, end + documents_by_source[name]
        document_counts = Counter(reasons[start:end].tolist())
        if document_counts[KEPT]:
            continue
        listed = ", ".join(
            f"{count:,} {pipeline.reason_text(code)}" for code, count in document_counts.most_common()
        )
        if not (reasons == KEPT).any():
            hint = "see the keys languages and min_characters of [corpus]"
            problem = f"source '{name}' keeps no document ({listed}), and no other source keeps any"
            raise InputError(config.sources[name].from_, problem, hint=hint)
        warn(f"source '{name}' keeps no document: {listed}")


def _corpus_metrics(
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
        document_counts: Counter[str] = Counter()
        dropped_by_reason: Counter[str] = Counter()
        for shard in shards:
            if shard.source == name:
                of_shard = read_json(shard.working_file("counts.json"))
                dropped_by_reason.update(of_shard.pop("dropped"))
                document_counts.update(of_shard)
        sources[name] = {key: document_counts[key] for key in _COUNTS}
        sources[name] |= {
            "dropped": dict(dropped_by_reason.most_common()),
            "skipped": dict(skipped.most_common()),
        }
    splits = ("train", "heldout")
    return {
        "documents": {
            split: sum(document_counts[split] for document_counts in sources.values()) for split in splits
        },
        "characters": {
            split: sum(document_counts[f"{split}_characters"] for document_counts in sources.values())
            for split in splits
        },
        "sources": sources,
    }


def _gather_dropped_documents(shards: Sequence[Shard], path: Path) -> None:
    # Shards are read in order, so the bytes do not depend on which worker was faster.
    with JsonlWriter(path) as writer:
        for shard in shards:
            if shard.working_file("drops.jsonl.zst").exists():
                for row in read_jsonl(shard.working_file("drops.jsonl.zst")):
                    writer.write(row)
