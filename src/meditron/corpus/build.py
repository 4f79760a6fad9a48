"""The corpus stage: source files to cleaned, deduplicated documents, split into training and held-out text.

1. Read all source files and apply the passes to each document, in parallel (`pieces`).
2. Compare all documents with each other, using a small index of hashes (`PassPipeline.compare_documents`).
3. Write the kept and the dropped documents in shards, in parallel (`shards`), and report the counts.

The same inputs give the same bytes, for any number of workers and after any number of killed runs.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from numpy.lib import format as npy_format

from meditron.core.console import info, warn
from meditron.core.errors import InputError
from meditron.corpus.candidate import SignaturePass
from meditron.corpus.config import CorpusConfig
from meditron.corpus.croissant import write_croissant
from meditron.corpus.decisions import write_decisions
from meditron.corpus.decontamination.outputs import gather_contamination
from meditron.corpus.dedup import DELETED, INDEX, SUPERSEDED, occurrence_numbers
from meditron.corpus.document_files import DocumentFiles
from meditron.corpus.execute import execute_tasks, release_executor
from meditron.corpus.expectations import compare_sizes
from meditron.corpus.files import FileGroup, source_groups
from meditron.corpus.passes import KEPT, PASSES, PassFactory, PassPipeline
from meditron.corpus.personal_information import shown_beginning
from meditron.corpus.pieces import GroupResult, Piece, ReadGroupTask, load_array
from meditron.corpus.progress import progress_by_files
from meditron.corpus.reading import read_groups
from meditron.corpus.shards import Shard, WriteShardTask, contamination_files, plan_shards
from meditron.corpus.tally import merge_tallies
from meditron.report.corpus_page import write_corpus_page
from meditron.store.files import (
    atomic_write,
    make_folder,
    read_json,
    remove_folders,
    remove_temporaries,
)
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
        file entries `skipped` by reason. For each source and for the whole corpus: `licences`,
        `personal_information`, `newest_date` and others of `tally.merge_tallies`. Also the metrics of the
        passes that compare documents, such as `near_duplicates`.

    Raises:
        InputError: A source's file is damaged, a source has no documents, or no document of any source is
            kept.
        SourceError: A source has no file, or has a file of unknown format.
    """
    make_folder(out)
    remove_temporaries(out)
    work = make_folder(out / _WORK)
    pipeline = PassPipeline(config, passes, work)
    for step in pipeline.passes:
        step.prepare(inputs, work)
    # Every run groups the files in the same way, so a resumed run finds the pieces of the killed run.
    groups, left_out = source_groups(config, inputs, work / "groups.jsonl")
    for name, reasons in left_out.items():
        for reason, count in reasons.items():
            info(f"{name}: {count:,} files skipped: {reason}")
    with progress_by_files("read", work, "*/*.index.npy", measure=_piece_amounts):
        results = read_groups(ReadGroupTask(config, pipeline, groups, work), work / "tasks")
    # Decisions need all documents: the last file may hold a copy, or declare a deletion.
    _require_documents(inputs, groups, results)
    shards, comparison_metrics = _compare_and_plan_shards(config, pipeline, results, work)
    with progress_by_files("write", work, "*/*.counts.json", len(shards), _shard_amounts):
        task = WriteShardTask(pipeline, shards, out)
        execute_tasks("write", task, range(len(shards)), config, work / "tasks")
    release_executor(config)
    metrics = _corpus_metrics(config, left_out, results, shards) | comparison_metrics
    _gather_outputs(config, metrics, shards, work, out)
    # The working files are removed last: a run that is killed before this line can still continue.
    remove_folders([work])
    return metrics


def _gather_outputs(
    config: CorpusConfig, metrics: dict[str, Any], shards: Sequence[Shard], work: Path, out: Path
) -> None:
    """Write the files about the whole corpus, and add their figures to the metrics."""
    if config.heldout and not metrics["documents"]["heldout"]:
        share = f"{config.heldout:g} of {metrics['documents']['train']:,} documents"
        warn(f"no document is held out (corpus.heldout: {share}); evaluate needs held-out documents")
    _gather_dropped_documents(shards, out / "drops.jsonl.zst")
    if config.decontaminate:
        metrics["contamination"] = gather_contamination(map(contamination_files, shards), work, out)
    if config.expected_documents:
        kept = {name: counts["kept"] for name, counts in metrics["sources"].items()}
        metrics["expected_documents"] = compare_sizes(config.expected_documents, kept, "documents")
    sources = config.model_dump(by_alias=True)["sources"]
    write_croissant(sources, metrics, out)
    shorten = partial(shown_beginning, policy=config.personal_information)
    write_corpus_page(sources, metrics, out, shorten)


def _piece_amounts(index: Path) -> dict[str, float]:
    return {"documents": len(np.load(index, mmap_mode="r"))}


def _shard_amounts(counts: Path) -> dict[str, float]:
    amounts = read_json(counts)
    characters = amounts.get("train_characters", 0) + amounts.get("heldout_characters", 0)
    return {"documents": amounts["read"], "MB": characters / 1e6}


def _require_documents(
    inputs: Mapping[str, Artifact], groups: Iterable[FileGroup], results: Sequence[GroupResult]
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
) -> tuple[tuple[Shard, ...], dict[str, Any]]:
    """Compare all documents, plan the shards, and write the decisions about each shard's documents.

    Returns:
        The shards of all sources, in order, and the metrics of the comparison. The shards contain at most
        `config.limit` documents of each source.
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
    index = _concatenate_indexes(pieces)
    signatures = {
        step.name: _concatenate_signatures(pieces, step, work / f"{step.name}.npy")
        for step in pipeline.passes
        if isinstance(step, SignaturePass)
    }
    ends = np.cumsum([documents for _, documents, _ in pieces], dtype=np.int64)
    files = DocumentFiles(tuple(piece.working_file("") for piece, *_ in pieces), ends, work)
    # A deleted id is dropped from all files: PubMed's update files delete citations of the baseline files.
    deleted = np.concatenate([result.deleted_ids for result in results])
    comparison = pipeline.compare_documents(index, deleted, signatures, files)
    reasons = comparison.reasons
    counted = np.ones(len(reasons), dtype=bool)
    for code in pipeline.reason_codes((DELETED, SUPERSEDED)):
        counted &= reasons != code
    occurrences = occurrence_numbers(index, counted)
    _require_kept_documents(config, pipeline, documents_by_source, reasons)
    shards = tuple(
        shard
        for name in config.sources
        for shard in plan_shards(
            name, [entry for entry in pieces if entry[0].source == name], config.shard_documents, work
        )
    )
    write_decisions(shards, comparison, occurrences, index["heldout"], files)
    return shards, comparison.metrics


def _concatenate_indexes(pieces: Sequence[tuple[Piece, int, int]]) -> npt.NDArray[Any]:
    """Concatenate the indexes of all pieces, with the rows of the documents within the limit only."""
    # Filled piece by piece: np.concatenate would need all pieces in memory besides the result.
    index = np.empty(sum(documents for _, documents, _ in pieces), INDEX)
    end = 0
    for piece, documents, _ in pieces:
        start, end = end, end + documents
        index[start:end] = load_array(piece.working_file("index.npy"))[:documents]
    return index


def _concatenate_signatures(
    pieces: Sequence[tuple[Piece, int, int]], step: SignaturePass, path: Path
) -> npt.NDArray[Any]:
    """Concatenate a pass's signatures in a file, which may be larger than the memory, and map it."""
    dtype = np.dtype(step.signature_dtype)
    count = sum(documents for _, documents, _ in pieces)
    with atomic_write(path) as file:
        header = {"descr": npy_format.dtype_to_descr(dtype), "fortran_order": False, "shape": (count,)}
        npy_format.write_array_header_1_0(file, header)
        for piece, documents, _ in pieces:
            file.write(load_array(piece.working_file(f"{step.name}.npy"))[:documents].tobytes())
    signatures: npt.NDArray[Any] = np.load(path, mmap_mode="r" if count else None)
    return signatures


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
        # Compared by code: np.bincount would need eight bytes per document.
        codes = range(len(pipeline.drop_reasons) + 1)
        document_counts = +Counter(
            {code: int(np.count_nonzero(reasons[start:end] == code)) for code in codes}
        )
        if document_counts[KEPT]:
            continue
        listed = ", ".join(
            f"{count:,} {pipeline.reason_text(code)}" for code, count in document_counts.most_common()
        )
        if not (reasons == KEPT).any():
            hint = (
                "keys of [corpus] that drop documents: languages, min_characters, filters, licences, until, "
                "personal_information, decontaminate"
            )
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
    all_content: list[dict[str, Any]] = []
    for name in config.sources:
        skipped = Counter(left_out[name])
        for result in results:
            skipped.update(result.skipped if result.source == name else {})
        document_counts: Counter[str] = Counter()
        content: list[dict[str, Any]] = []
        dropped_by_reason: Counter[str] = Counter()
        for shard in shards:
            if shard.source == name:
                of_shard = read_json(shard.working_file("counts.json"))
                dropped_by_reason.update(of_shard.pop("dropped"))
                content.append(of_shard.pop("content"))
                document_counts.update(of_shard)
        sources[name] = {key: document_counts[key] for key in _COUNTS}
        sources[name] |= {
            "dropped": dict(dropped_by_reason.most_common()),
            "skipped": dict(skipped.most_common()),
        }
        sources[name] |= merge_tallies(content)
        all_content += content
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
        **merge_tallies(all_content),
    }


def _gather_dropped_documents(shards: Sequence[Shard], path: Path) -> None:
    # Shards are read in order, so the bytes do not depend on which worker was faster.
    with JsonlWriter(path) as writer:
        for shard in shards:
            if shard.working_file("drops.jsonl.zst").exists():
                for row in read_jsonl(shard.working_file("drops.jsonl.zst")):
                    writer.write(row)
