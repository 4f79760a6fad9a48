"""Small real stages for tests of the recipe and the door, and a recipe over them.

Each reads files and writes files.

`words` counts the words of a text file into one JSON file a line (so a kill loses little), `total` adds what
a `words` stage counted, `rank` (several are allowed) keeps the most frequent.
"""

import json
import os
import signal
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from meditron.core.config import Config, NonSemantic
from meditron.core.errors import InputError
from meditron.core.stage import StageConfig
from meditron.recipe import Recipe, RunResult, Stage, load_recipe, run_recipe
from meditron.store.artifact import Artifact
from meditron.store.files import atomic, read_json, write_json


class Filter(Config):
    """Which words count."""

    minimum: int = 1
    """Letters a word must have."""


class WordsConfig(StageConfig):
    """Count words, line by line."""

    text: str
    """The source."""
    upper: bool = False
    """Count in upper case."""
    filters: dict[str, Filter] = Field(default_factory=dict)
    """Filters by name."""
    threads: Annotated[int, NonSemantic] = 1
    """Says how, not what."""
    ratio: float = 0.5
    """A number."""

    def inputs(self) -> dict[str, str]:
        return {"text": self.text}

    def licences(self) -> dict[str, str]:
        return {"text": "CC0"}


class TotalConfig(StageConfig):
    """Add up."""

    on: str = "words"
    """The counted words."""

    def inputs(self) -> dict[str, str]:
        return {"words": self.on}


class RankConfig(StageConfig):
    """Keep the most frequent."""

    on: str = "total"
    """The totals."""
    keep: int = 3
    """How many."""

    def inputs(self) -> dict[str, str]:
        return {"total": self.on}


def words(config: WordsConfig, inputs: Mapping[str, Artifact], out: Path) -> dict[str, Any]:
    """Count the words of each line into a file of its own, going on where an earlier call stopped."""
    worked = 0
    lines = inputs["text"].path.read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines):
        file = out / f"{number:03}.json"
        if file.exists():
            continue
        if os.environ.get("TEST_KILL_AT") == str(number):
            with atomic(file, "w") as half:
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
            # Linux's own full disk.
            with Path("/dev/full").open("wb") as disk:
                disk.write(b"x" * 100_000)
        write_json(file, Counter(line.upper().split() if config.upper else line.split()))
        worked += 1
    return {"lines": len(lines), "worked": worked}


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


def nothing(config: TotalConfig, inputs: Mapping[str, Artifact], out: Path) -> dict[str, Any]:
    """Leave no file."""
    return {}


STAGES = (
    Stage("words", 1, WordsConfig, "toy_stages:words"),
    Stage("total", 1, TotalConfig, "toy_stages:total"),
    Stage("rank", 1, RankConfig, "toy_stages:rank", many=True),
)

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


@dataclass
class ToyRun:
    """A recipe file, its text, and the folder it is run into."""

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

    def run(self, *overrides: str, **switches: object) -> RunResult:
        return run_recipe(self.load(*overrides), out=self.out, **switches)


def states(result: RunResult) -> dict[str, str]:
    """Stage → state."""
    return {name: stage.state for name, stage in result.stages.items()}
