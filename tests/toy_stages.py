"""Toy stages for tests of the recipe and the commands, and a recipe of them.

They show all that a stage needs: a config class, a function, and one line in a list of stages.

`words` counts the words of a text file, one JSON file per line, so that a kill loses little; `total` adds up
the counts of `words`; `rank` (a recipe may have several) keeps the most frequent words. `toy` stands beside
the real stages and depends on one of them.
"""

import ctypes
import json
import os
import signal
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from meditron.core.config import Config, NonSemantic, StageConfig
from meditron.core.console import info, warn
from meditron.core.errors import InputError, TrainingError
from meditron.parallel.config import ParallelConfig
from meditron.parallel.watchdog import watchdog
from meditron.parallel.world import connect, current_world
from meditron.recipe import Recipe, RunResult, Stage, load_recipe, run_recipe
from meditron.store.corpus import read_corpus
from meditron.store.files import atomic_write, read_json, write_json
from meditron.store.manifest import Artifact


class Filter(Config):
    """Words to count."""

    minimum: int = 1
    """Least number of letters."""


class WordsConfig(StageConfig):
    """The `[words]` table."""

    text: str
    """The text file, an external input."""
    upper: bool = False
    """Convert to upper case first."""
    filters: dict[str, Filter] = Field(default_factory=dict)
    """Filters by name; a nested table, without effect."""
    threads: Annotated[int, NonSemantic] = 1
    """A key that does not change the result."""
    ratio: float = 0.5
    """A number without effect."""

    def inputs(self) -> dict[str, str]:
        return {"text": self.text}

    def licences(self) -> dict[str, str]:
        return {"text": "CC0"}


class TotalConfig(StageConfig):
    """The `[total]` table."""

    on: str = "words"
    """Reference of the counts."""

    def inputs(self) -> dict[str, str]:
        return {"words": self.on}


class RankConfig(StageConfig):
    """A `[[rank]]` table."""

    on: str = "total"
    """Reference of the totals."""
    keep: int = 3
    """Number of words to keep."""

    def inputs(self) -> dict[str, str]:
        return {"total": self.on}


class MeetConfig(StageConfig):
    """The `[meet]` table."""

    on: str = "words"
    """Reference of the counts."""
    steps: int = 3
    """Number of collectives."""
    trouble: Literal[
        "none",
        "raise",
        "raise-all",
        "raise-late",
        "raise-gather",
        "kill",
        "exit",
        "hang",
        "block",
        "wait",
        "print",
    ] = "none"
    """Event in the last step, of rank `at` alone except for `raise-all`, `raise-late` and `wait`. With
    `raise-gather` the other ranks wait in `RankGroup.gather`."""
    at: int = 1
    """Rank of the event."""
    timeout: float = 60.0
    """Seconds of the watchdog."""
    parallel: Annotated[ParallelConfig, NonSemantic] = ParallelConfig()
    """Layout."""
    threads: Annotated[int | None, NonSemantic] = None
    """CPU threads of each rank."""

    def inputs(self) -> dict[str, str]:
        return {"words": self.on}


class ToyConfig(StageConfig):
    """The `[toy]` table."""

    on: str = "corpus"
    """Reference of the corpus."""
    letter: str = Field(default="a", min_length=1, max_length=1)
    """Letter to count in the training documents."""

    def inputs(self) -> dict[str, str]:
        return {"corpus": self.on}


def words(config: WordsConfig, inputs: Mapping[str, Artifact], out: Path) -> dict[str, Any]:
    """Count the words of each line into one file; an earlier call's files are kept."""
    counted = 0
    lines = inputs["text"].path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines):
        file = out / f"{number:03}.json"
        if file.exists():
            continue
        if os.environ.get("TEST_KILL_AT") == str(number):
            with atomic_write(file, "w") as half:
                half.write("[")
                half.flush()
                os.kill(os.getpid(), signal.SIGKILL)
        if os.environ.get("TEST_WAIT_AT") == str(number):
            (out / "waiting.txt").write_text("here")
            time.sleep(60)
        if line == "poison":
            raise InputError(inputs["text"].path, "a poisoned line", place=f"line {number + 1}")
        if line == "bug":
            raise ZeroDivisionError("a defect")
        if line == "interrupt":
            raise KeyboardInterrupt
        if line == "full":
            # Linux's device that is always full.
            with Path("/dev/full").open("wb") as disk:
                disk.write(b"x" * 100_000)
        write_json(file, Counter(line.upper().split() if config.upper else line.split()))
        counted += 1
    return {"lines": len(lines), "counted": counted}


def total(config: TotalConfig, inputs: Mapping[str, Artifact], out: Path) -> dict[str, Any]:
    """Add the counts of all lines."""
    counts: Counter[str] = Counter()
    for file in sorted(inputs["words"].path.glob("[0-9]*.json")):
        counts.update(read_json(file))
    write_json(out / "total.json", dict(sorted(counts.items())))
    return {"words": sum(counts.values())}


def rank(config: RankConfig, inputs: Mapping[str, Artifact], out: Path) -> dict[str, Any]:
    """Keep the most frequent words."""
    counts = json.loads((inputs["total"].path / "total.json").read_text(encoding="utf-8"))
    best = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[: config.keep]
    write_json(out / "rank.json", dict(best))
    return {"kept": len(best)}


def meet(config: MeetConfig, inputs: Mapping[str, Artifact], out: Path) -> dict[str, Any]:
    """Sum the ranks' numbers in each step; a signal ends all ranks together after a step."""
    import torch

    world, stop = current_world(), []
    device = connect(config.timeout)
    handlers = {n: signal.signal(n, lambda *_: stop.append(1)) for n in (signal.SIGTERM, signal.SIGUSR1)}
    (out / f"rank-{world.rank}.pid").write_text(str(os.getpid()))
    info("a message of every rank")
    with watchdog(config.timeout, out) as dog:
        for step in range(config.steps):
            dog.progress(f"step {step}")
            if step == config.steps - 1:
                cause_trouble(config, world.rank, out, stop)
            values = torch.tensor([world.rank + 1, len(stop)], device=device)
            if world.size > 1:
                torch.distributed.all_reduce(values)
            if values[1]:
                (out / f"saved-{world.rank}.txt").write_text(f"step {step}")
                raise KeyboardInterrupt
    for number, handler in handlers.items():
        signal.signal(number, handler)
    for file in out.glob("*.pid"):
        file.unlink(missing_ok=True)
    if world.is_main:
        write_json(out / "sum.json", {"sum": int(values[0])})
    return {"sum": int(values[0]), "threads": torch.get_num_threads(), "ranks": world.size,
            "layout": config.parallel.resolve(world.size).tp}  # fmt: skip


def cause_trouble(config: MeetConfig, rank: int, out: Path, stop: list[int]) -> None:
    """Do what `trouble` says."""
    if config.trouble == "wait":
        (out / f"waiting-{rank}.txt").write_text("here")
        until = time.monotonic() + 60
        while not stop and time.monotonic() < until:
            time.sleep(0.02)
    if config.trouble == "raise-late" and rank != config.at:
        time.sleep(30)  # longer than the launcher waits after the first error
    if config.trouble in ("raise-all", "raise-late"):
        raise TrainingError("step 3: the loss is nan")
    if config.trouble == "raise-gather":
        from meditron.parallel.rank_group import RankGroup

        group = RankGroup.of_job()
        if rank != config.at:
            group.gather(rank)  # the others wait for a value of each rank
    if rank != config.at:
        return
    match config.trouble:
        case "raise" | "raise-gather":
            raise InputError("shard.safetensors", "a damaged shard", hint="fetch it again")
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "exit":
            os._exit(3)
        case "hang":
            time.sleep(600)
        case "block":
            ctypes.PyDLL(None).sleep(600)  # without releasing the interpreter's lock
        case "print":
            print("on stdout")  # noqa: T201
            warn("a warning of one rank")


def toy(config: ToyConfig, inputs: Mapping[str, Artifact], out: Path) -> dict[str, Any]:
    """Count a letter in the training documents of the real corpus stage."""
    texts = [document.text for document in read_corpus(inputs["corpus"].path, "train")]
    count = sum(text.count(config.letter) for text in texts)
    write_json(out / "count.json", {config.letter: count})
    return {"documents": len(texts), "letters": count}


def no_files(config: TotalConfig, inputs: Mapping[str, Artifact], out: Path) -> dict[str, Any]:
    """Write no file."""
    return {}


STAGES = (
    Stage("words", 1, WordsConfig, "toy_stages:words"),
    Stage("total", 1, TotalConfig, "toy_stages:total"),
    Stage("rank", 1, RankConfig, "toy_stages:rank", repeatable=True),
)
MEET = Stage("meet", 1, MeetConfig, "toy_stages:meet", distributed=True)
TOY = Stage("toy", 1, ToyConfig, "toy_stages:toy")

RECIPE = """\
seed = 7

[words]
text = "{text}"

[total]

[[rank]]
name = "short"
keep = 1

[[rank]]
name = "long"
keep = 2
"""


MEET_RECIPE = """\
[words]
text = "{text}"

[total]

[meet]
"""


@dataclass
class ToyRun:
    """The recipe of the toy stages, its input, and the folder of its runs."""

    folder: Path
    stages: tuple[Stage, ...] = STAGES

    @property
    def path(self) -> Path:
        return self.folder / "counts.toml"

    @property
    def text(self) -> Path:
        return self.folder / "text.txt"

    @property
    def out(self) -> Path:
        return self.folder / "runs"

    @property
    def run_folder(self) -> Path:
        return self.out / "counts"

    def write(self, recipe: str) -> None:
        self.path.write_text(recipe.format(text=self.text), encoding="utf-8")

    def load(self, *overrides: str) -> Recipe:
        return load_recipe(self.path, overrides, stages=self.stages)

    def run(self, *overrides: str, **options: object) -> RunResult:
        return run_recipe(self.load(*overrides), out=self.out, **options)


def states(result: RunResult) -> dict[str, str]:
    """Return stage → state."""
    return {name: stage.state for name, stage in result.stages.items()}
