"""The corpus stage: sources to cleaned, deduplicated documents, split into training and held-out text.

Read all sources into shards of candidates (`shards.ReadFiles`), decide over their index what stays
(`dedup.decide`), write the splits and the drops (`shards.WriteShards`), add up, report. The same inputs leave
the same bytes, whatever was killed in between and however many workers there are.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from meditron.core.console import info, warn
from meditron.core.errors import InputError
from meditron.corpus.config import CorpusConfig
from meditron.corpus.dedup import INDEX, Reason, decide, id_key, occurrences
from meditron.corpus.execute import execute
from meditron.corpus.files import source_files
from meditron.corpus.progress import watched
from meditron.corpus.shards import (
    DECISION,
    ReadFiles,
    Shard,
    SourceFile,
    WriteShards,
    load_array,
    save_array,
)
from meditron.report.corpus_page import corpus_report
from meditron.store.artifact import Artifact
from meditron.store.files import make_folder, read_json, remove_folder, remove_temporaries
from meditron.store.jsonl import JsonlWriter, read_jsonl

__all__ = ["run"]

_WORK = "work"


def run(config: CorpusConfig, inputs: Mapping[str, Artifact], out: Path) -> dict[str, Any]:
    """Build the corpus under `out`, going on where a killed run stopped.

    Returns:
        metrics: `documents` and `characters` of each split, and `sources`: for each source what was `read`,
        `kept`, put into `train` and `heldout`, `dropped` by reason, `skipped` by reason.

    Raises:
        InputError: a source's file is damaged; a source has no documents; no document of any is kept.
        SourceError: a source has no file, or one of no known format.
    """
    make_folder(out)
    remove_temporaries(out)
    work = make_folder(out / _WORK)
    files, left_out = source_files(config, inputs)
    for name, reasons in left_out.items():
        for reason, count in reasons.items():
            info(f"{name}: {count:,} left out: {reason}")
    with watched("read", work, "*/*.index.npy"):
        execute("read", ReadFiles(config, files, work), len(files), config.workers, work / "tasks")
    shards = tuple(_shards(files, work))
    _require_documents(inputs, files, shards, work)
    _decide(config, files, shards, work)
    with watched("write", work, "*/*.counts.json", total=len(shards)):
        execute("write", WriteShards(shards, out), len(shards), config.workers, work / "tasks")
    metrics = _metrics(config, files, left_out, shards, work)
    _gather_drops(shards, out / "drops.jsonl.zst")
    corpus_report(config.model_dump(by_alias=True)["sources"], metrics, out)
    remove_folder(work)
    return metrics


def _end(file: SourceFile, work: Path) -> dict[str, Any]:
    """What a file's reading ended with: its number of shards, what was skipped, what it declares deleted."""
    end: dict[str, Any] = read_json(work / file.source / f"{file.number:05d}.file.json")
    return end


def _shards(files: tuple[SourceFile, ...], work: Path) -> Iterator[Shard]:
    for file in files:
        for number in range(_end(file, work)["shards"]):
            yield Shard(file.source, f"{file.number:05d}-{number:05d}", work)


def _require_documents(
    inputs: Mapping[str, Artifact], files: tuple[SourceFile, ...], shards: tuple[Shard, ...], work: Path
) -> None:
    """Refuse a source without documents: it would be missing from the corpus without a word."""
    for name in dict.fromkeys(file.source for file in files):
        if any(shard.source == name for shard in shards):
            continue
        ends = [_end(file, work) for file in files if file.source == name]
        skipped = sum((Counter(end["skipped"]) for end in ends), Counter[str]())
        said = [f"{count:,} {reason}" for reason, count in skipped.most_common()]
        said += [f"{count:,} deletions" for count in [sum(len(end["deleted"]) for end in ends)] if count]
        problem = f"source '{name}' has no documents" + (f", only {', '.join(said)}" if said else "")
        raise InputError(inputs[name].path, problem, hint="remove the source, or correct its `from`")


def _decide(
    config: CorpusConfig, files: tuple[SourceFile, ...], shards: tuple[Shard, ...], work: Path
) -> None:
    """Write each shard's decisions, for as many of its documents as the source's limit allows."""
    taken: Counter[str] = Counter()
    indexes = []
    for shard in shards:
        room = None if config.limit is None else config.limit - taken[shard.source]
        indexes.append(load_array(shard.file("index.npy"))[:room])
        taken[shard.source] += len(indexes[-1])
    deleted = [id_key(identity) for file in files for identity in _end(file, work)["deleted"]]
    index = np.concatenate([np.empty(0, INDEX), *indexes])
    sizes = [len(index) for index in indexes]
    numbers = {name: number for number, name in enumerate(config.sources)}
    sources = np.repeat([numbers[shard.source] for shard in shards], sizes)
    decisions = np.empty(len(index), DECISION)
    decisions["reason"] = decide(index, np.array(deleted, dtype="<u8").reshape(-1, 2))
    decisions["occurrence"] = occurrences(index, decisions["reason"])
    _require_kept(config, sources, decisions["reason"])
    for shard, part in zip(shards, np.split(decisions, np.cumsum(sizes)[:-1]), strict=True):
        if not shard.file("decisions.npy").exists():
            save_array(shard.file("decisions.npy"), part)


def _require_kept(
    config: CorpusConfig, sources: npt.NDArray[np.int64], reasons: npt.NDArray[np.uint8]
) -> None:
    """Warn of a source of which nothing is kept; refuse a corpus of which nothing is."""
    for number, name in enumerate(config.sources):
        counts = np.bincount(reasons[sources == number], minlength=len(Reason))
        if not counts[Reason.KEPT]:
            common = sorted(filter(counts.__getitem__, Reason), key=lambda reason: -counts[reason])
            said = ", ".join(f"{counts[reason]:,} {reason.text}" for reason in common)
            if not (reasons == Reason.KEPT).any():
                hint = "see the keys languages and min_characters of [corpus]"
                problem = f"source '{name}' keeps no document ({said}), nor does any other"
                raise InputError(config.sources[name].from_, problem, hint=hint)
            warn(f"source '{name}' keeps no document: {said}")


def _metrics(
    config: CorpusConfig,
    files: tuple[SourceFile, ...],
    left_out: Mapping[str, Counter[str]],
    shards: tuple[Shard, ...],
    work: Path,
) -> dict[str, Any]:
    sources: dict[str, dict[str, Any]] = {}
    for name in config.sources:
        counts = [read_json(shard.file("counts.json")) for shard in shards if shard.source == name]
        skipped = Counter(left_out[name])
        for file in files:
            skipped.update(_end(file, work)["skipped"] if file.source == name else {})
        dropped: Counter[str] = Counter()
        for count in counts:
            dropped.update(count.pop("dropped"))
        keys = ("read", "kept", "train", "heldout", "train_characters", "heldout_characters")
        sources[name] = {key: sum(count[key] for count in counts) for key in keys}
        sources[name] |= {"dropped": dict(dropped.most_common()), "skipped": dict(skipped.most_common())}
    return {
        "documents": {split: sum(one[split] for one in sources.values()) for split in ("train", "heldout")},
        "characters": {
            split: sum(one[f"{split}_characters"] for one in sources.values())
            for split in ("train", "heldout")
        },
        "sources": sources,
    }


def _gather_drops(shards: tuple[Shard, ...], path: Path) -> None:
    with JsonlWriter(path) as writer:
        for shard in shards:
            if shard.file("drops.jsonl.zst").exists():
                for row in read_jsonl(shard.file("drops.jsonl.zst")):
                    writer.write(row)
