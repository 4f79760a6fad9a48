"""SIGKILL at random moments of each stage, then the same command: equal bytes, and little work repeated."""

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
KILLS = 2
RECIPE = Path(__file__).resolve().parents[2] / "recipes" / "smoke.toml"


class KilledStage:
    """One stage of the smoke recipe with finished dependencies, in its own run folder."""

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
        """Run the stage to its end; return the number of changes seen in its folder."""
        process = self.start()
        changes = crash.count_changes(process, self.folder)
        process.join()
        assert process.exitcode == 0, self.log.read_text()
        return changes

    def kill(self, changes: int, delay: float) -> bool:
        """Kill the command `delay` seconds after so many changes; return False if the stage had finished."""
        process = self.start()
        crash.count_changes(process, self.folder, changes)
        time.sleep(delay)
        crash.kill_group(process)
        return not (self.folder / "manifest.json").exists()


@pytest.fixture
def killed_stage(smoke: Any, request: pytest.FixtureRequest, tmp_path: Path) -> KilledStage:
    assert smoke.result.code == 0, smoke.result.err
    return KilledStage(smoke, request.param, tmp_path / "runs")


@pytest.mark.parametrize("killed_stage", STAGES, indirect=True)
def test_a_killed_stage_ends_with_the_bytes_of_an_uninterrupted_run(
    killed_stage: KilledStage, smoke: Any
) -> None:
    changes = killed_stage.finish()
    assert content(killed_stage.folder) == content(smoke.folder / killed_stage.stage), (
        "two runs differ without any kill"
    )
    shutil.rmtree(killed_stage.folder)
    moments = random.Random(f"kill {killed_stage.stage}")
    killed = 0
    for _ in range(KILLS):
        before = finished(killed_stage.folder)
        # Each kill within the next quarter of the work, so that none comes after its end.
        if not killed_stage.kill(
            moments.randint(1, max(1, changes // (KILLS + 1))), moments.uniform(0, 0.01)
        ):
            break
        killed += 1
        assert_kept(before, files(killed_stage.folder))
    assert killed >= 2, "the kills came too late to prove anything"
    before, steps = finished(killed_stage.folder), last_step(killed_stage.folder)
    killed_stage.finish()
    assert_kept(before, files(killed_stage.folder))
    assert content(killed_stage.folder) == content(smoke.folder / killed_stage.stage)
    manifest = read_manifest(killed_stage.folder)
    assert manifest is not None
    assert manifest.metrics["attempts"] == killed + 1
    if killed_stage.stage in ("pretrain", "finetune.sections"):
        assert steps - (manifest.metrics["resumed_from"] or 0) <= 5


def content(folder: Path) -> dict[str, str]:
    """Return the hashes of the files that count in the artifact's digest."""
    manifest = read_manifest(folder)
    assert manifest is not None
    return {record.path: record.sha256 for record in manifest.files if record.content}


def files(folder: Path) -> dict[Path, tuple[int, int]]:
    """Return the shards' files with inode and time, which change if a file is written again."""
    shards = [path for path in folder.glob("*/*/*.jsonl.zst") if not path.name.startswith(".")]
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in shards}


def finished(folder: Path) -> dict[Path, tuple[int, int]]:
    """Return the files of finished shards, whose last file exists: the index or the counts."""
    return {path: seen for path, seen in files(folder).items() if last_file(folder, path).exists()}


def last_file(folder: Path, path: Path) -> Path:
    """Return the file that is written last in a file's shard."""
    name, _, rest = path.name.partition(".")
    kind = "index.npy" if rest.startswith("candidates") else "counts.json"
    return folder / "work" / path.parent.name / f"{name}.{kind}"


def assert_kept(before: dict[Path, tuple[int, int]], after: dict[Path, tuple[int, int]]) -> None:
    again = [str(path) for path in before.keys() & after.keys() if before[path] != after[path]]
    assert not again, "work finished before the kill was repeated"


def last_step(folder: Path) -> int:
    """Return the last recorded optimizer step."""
    path = folder / "metrics.jsonl"
    lines = path.read_bytes().split(b"\n")[:-1] if path.is_file() else []
    return max((json.loads(line)["step"] for line in lines), default=0)
