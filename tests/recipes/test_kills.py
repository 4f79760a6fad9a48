"""SIGKILL at seeded moments in each stage, then the same command: the same bytes, and little done twice."""

import json
import random
import shutil
import time
from pathlib import Path
from typing import Any

import pytest

import crash
from meditron.store.manifest import read_manifest

pytestmark = [pytest.mark.network, pytest.mark.slow, pytest.mark.timeout(900)]

# The card is written in a fraction of a second, each of its files whole or not at all.
STAGES = ("corpus", "tokenize", "pretrain", "finetune.sections", "quantize", "evaluate")
KILLS = 3
RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "smoke.toml"


class Victim:
    """One stage of the smoke recipe, on finished earlier ones, in a run folder of its own."""

    def __init__(self, smoke: Any, stage: str, out: Path) -> None:
        self.stage, self.out = stage, out
        self.folder = out / "smoke" / stage
        out.mkdir()
        self.log = out / "log"
        for earlier in STAGES[: STAGES.index(stage)]:
            shutil.copytree(smoke.folder / earlier, out / "smoke" / earlier)

    def start(self) -> Any:
        words = ["run", str(RECIPE), "--out", str(self.out), "--only", self.stage]
        return crash.start_command(words, self.log)

    def finish(self) -> int:
        """Run the stage to its end; how often its folder was seen to change."""
        process = self.start()
        changes = crash.count_changes(process, self.folder)
        process.join()
        assert process.exitcode == 0, self.log.read_text()
        return changes

    def kill(self, changes: int, delay: float) -> bool:
        """Kill the command `delay` seconds after so many changes; False where the stage was finished."""
        process = self.start()
        crash.count_changes(process, self.folder, changes)
        time.sleep(delay)
        crash.kill_group(process)
        return not (self.folder / "manifest.json").exists()


@pytest.fixture
def victim(smoke: Any, request: pytest.FixtureRequest, tmp_path: Path) -> Victim:
    assert smoke.said.code == 0, smoke.said.err
    return Victim(smoke, request.param, tmp_path / "runs")


@pytest.mark.parametrize("victim", STAGES, indirect=True)
def test_a_killed_stage_ends_with_the_bytes_of_an_uninterrupted_one(victim: Victim, smoke: Any) -> None:
    whole = victim.finish()
    assert content(victim.folder) == content(smoke.folder / victim.stage), "two runs differ without any kill"
    shutil.rmtree(victim.folder)
    moments = random.Random(f"kill {victim.stage}")
    killed = 0
    for _ in range(KILLS):
        before = finished(victim.folder)
        # Each kill within the next quarter of the work, so that none comes after its end.
        if not victim.kill(moments.randint(1, max(1, whole // (KILLS + 1))), moments.uniform(0, 0.01)):
            break
        killed += 1
        assert_kept(before, files(victim.folder))
    assert killed >= 2, "the kills came too late to prove anything"
    before, steps = finished(victim.folder), last_step(victim.folder)
    victim.finish()
    assert_kept(before, files(victim.folder))
    assert content(victim.folder) == content(smoke.folder / victim.stage)
    manifest = read_manifest(victim.folder)
    assert manifest is not None
    assert manifest.metrics["attempts"] == killed + 1
    if victim.stage in ("pretrain", "finetune.sections"):
        assert steps - (manifest.metrics["resumed_from"] or 0) <= 5


def content(folder: Path) -> dict[str, str]:
    """The files that say what an artifact is, by their hashes."""
    manifest = read_manifest(folder)
    assert manifest is not None
    return {record.path: record.sha256 for record in manifest.files if record.content}


def files(folder: Path) -> dict[Path, tuple[int, int]]:
    """The files of shards, with what tells that one was not written again."""
    shards = [path for path in folder.glob("*/*/*.jsonl.zst") if not path.name.startswith(".")]
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in shards}


def finished(folder: Path) -> dict[Path, tuple[int, int]]:
    """Those of shards that are whole: what is written last of them is there, their index or their counts."""
    return {path: seen for path, seen in files(folder).items() if last(folder, path).exists()}


def last(folder: Path, path: Path) -> Path:
    """What is written last of the shard that a file belongs to."""
    name, _, rest = path.name.partition(".")
    kind = "index.npy" if rest.startswith("candidates") else "counts.json"
    return folder / "work" / path.parent.name / f"{name}.{kind}"


def assert_kept(before: dict[Path, tuple[int, int]], after: dict[Path, tuple[int, int]]) -> None:
    again = [str(path) for path in before.keys() & after.keys() if before[path] != after[path]]
    assert not again, "what was finished before the kill was made again"


def last_step(folder: Path) -> int:
    """The optimizer step that the training had recorded when it was killed."""
    path = folder / "metrics.jsonl"
    lines = path.read_bytes().split(b"\n")[:-1] if path.is_file() else []
    return max((json.loads(line)["step"] for line in lines), default=0)
