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

from meditron.corpus.config import CorpusConfig
from meditron.corpus.dedup import INDEX, decide, id_key
from meditron.corpus.execute import execute
from meditron.corpus.progress import watched
from meditron.corpus.report import corpus_report
from meditron.corpus.shards import ReadFiles, Shard, SourceFile, WriteShards, load_array, save_array
from meditron.ground.errors import SourceError
from meditron.store.artifact import Artifact
from meditron.store.files import make_folder, read_json, remove_folder, sweep
from meditron.store.jsonl import JsonlWriter, read_jsonl

__all__ = ["run"]

_WORK = "work"


def run(config: CorpusConfig, inputs: Mapping[str, Artifact], out: Path) -> dict[str, Any]:
    """Build the corpus under `out`, going on where a killed run stopped.

    Returns:
        metrics: `documents` and `characters` of each split, and `sources`: for each source what was `read`,
        `kept`, put into `train` and `heldout`, `dropped` by reason, `skipped` by reason.

    Raises:
        InputError: a source's file is damaged.
        SourceError: a source has no file, or one of no known format.
    """
    make_folder(out)
    sweep(out)
    work = make_folder(out / _WORK)
    files = tuple(_source_files(config, inputs))
    with watched("read", work, "*/*.index.npy"):
        execute("read", ReadFiles(config, files, work), len(files), config.workers, work / "tasks")
    shards = tuple(_shards(files, work))
    _decide(config, files, shards, work)
    with watched("write", work, "*/*.counts.json", total=len(shards)):
        execute("write", WriteShards(shards, out), len(shards), config.workers, work / "tasks")
    metrics = _metrics(config, files, shards, work)
    _gather_drops(shards, out / "drops.jsonl.zst")
    corpus_report(config, metrics, out)
    remove_folder(work)
    return metrics


def _source_files(config: CorpusConfig, inputs: Mapping[str, Artifact]) -> Iterator[SourceFile]:
    """The files of all sources in order; of a folder all that is not hidden and no checksum."""
    for name, source in config.sources.items():
        for number, file in enumerate(files_of(inputs[name].path)):
            yield SourceFile(name, source.format, file, number)


def files_of(path: Path) -> list[Path]:
    """List the files of a source."""
    if not path.is_dir():
        return [path]
    below = (file for file in sorted(path.rglob("*")) if file.is_file() and file.suffix != ".md5")
    found = [f for f in below if not any(p.startswith(".") for p in f.relative_to(path).parts)]
    if not found:
        raise SourceError(f"{path}: there is no file in it")
    return found


def _end(file: SourceFile, work: Path) -> dict[str, Any]:
    """What a file's reading ended with: its number of shards, what was skipped, what it declares deleted."""
    end: dict[str, Any] = read_json(work / file.source / f"{file.number:05d}.file.json")
    return end


def _shards(files: tuple[SourceFile, ...], work: Path) -> Iterator[Shard]:
    for file in files:
        for number in range(_end(file, work)["shards"]):
            yield Shard(file.source, f"{file.number:05d}-{number:05d}", work)


def _decide(
    config: CorpusConfig, files: tuple[SourceFile, ...], shards: tuple[Shard, ...], work: Path
) -> None:
    """Leave each shard's reasons beside it, for as many of its documents as the source's limit allows."""
    taken: Counter[str] = Counter()
    indexes = []
    for shard in shards:
        room = None if config.limit is None else config.limit - taken[shard.source]
        indexes.append(load_array(shard.file("index.npy"))[:room])
        taken[shard.source] += len(indexes[-1])
    deleted = [id_key(identity) for file in files for identity in _end(file, work)["deleted"]]
    index = np.concatenate([np.empty(0, INDEX), *indexes])
    reasons = decide(index, np.array(deleted, dtype="<u8").reshape(-1, 2))
    ends = np.cumsum([len(index) for index in indexes])
    for shard, part in zip(shards, np.split(reasons, ends[:-1]), strict=True):
        if not shard.file("reasons.npy").exists():
            save_array(shard.file("reasons.npy"), part)


def _metrics(
    config: CorpusConfig, files: tuple[SourceFile, ...], shards: tuple[Shard, ...], work: Path
) -> dict[str, Any]:
    sources: dict[str, dict[str, Any]] = {}
    for name in config.sources:
        counts = [read_json(shard.file("counts.json")) for shard in shards if shard.source == name]
        skipped: Counter[str] = Counter()
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
