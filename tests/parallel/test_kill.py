"""SIGKILL of one rank of a real training at random moments: the same command goes on, to identical weights.

MEDITRON_KILLS sets the number of kills of each layout.
"""

import hashlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from word_corpus import write_recipe

pytestmark = [pytest.mark.network, pytest.mark.slow, pytest.mark.timeout(1200)]

KILLS = int(os.environ.get("MEDITRON_KILLS", "1"))
STEPS = 28
LAYOUTS = {"dp2": "dp_shard=2", "pp2": "pp=2"}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("kill")
    return write_recipe(folder, "init:tiny", steps=STEPS, learning_rate=3e-3, documents=400)


class Run:
    """A training in a process of its own, with two ranks."""

    def __init__(self, recipe: Path, out: Path, layout: str) -> None:
        self.stage = out / "recipe" / "pretrain"
        self.command = [
            *(sys.executable, "-m", "meditron", "run", str(recipe), "--out", str(out)),
            *("--until", "pretrain", "--nproc", "2", "--set", f"pretrain.parallel.{LAYOUTS[layout]}"),
        ]
        self.process: subprocess.Popen[str] | None = None

    def start(self) -> "subprocess.Popen[str]":
        self.process = subprocess.Popen(
            self.command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        return self.process

    def finish(self) -> tuple[int, str]:
        assert self.process is not None
        _, err = self.process.communicate(timeout=180)
        return self.process.returncode, err

    def steps(self) -> int:
        """Return the number of steps in metrics.jsonl."""
        try:
            text = (self.stage / "metrics.jsonl").read_text(encoding="utf-8")
        except OSError:
            return 0
        return sum('"loss"' in line for line in text.splitlines())

    def wait_for(self, condition: Callable[[], bool]) -> bool:
        """Wait until a condition holds; False if the run ends before."""
        assert self.process is not None
        until = time.monotonic() + 120
        while not condition():
            if self.process.poll() is not None:
                return False
            assert time.monotonic() < until, "no progress"
            time.sleep(0.002)
        return True

    def ranks(self) -> list[int]:
        """Return the process ids of the launcher's children that run a rank."""
        assert self.process is not None
        found = []
        for folder in Path("/proc").iterdir():
            if not folder.name.isdigit():
                continue
            try:
                parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
                environment = (folder / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            if parent == self.process.pid and any(entry.startswith(b"RANK=") for entry in environment):
                found.append(int(folder.name))
        return sorted(found)

    def weights(self) -> str:
        return hashlib.sha256((self.stage / "model.safetensors").read_bytes()).hexdigest()

    def losses(self) -> list[float]:
        lines = (self.stage / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
        return [row["loss"] for row in map(json.loads, lines) if "loss" in row]


class Runs(dict[str, Run]):
    """Runs by `NAME-LAYOUT`, made when they are asked for; a reference is run once for all tests."""

    def __init__(self, recipe: Path, folder: Path) -> None:
        self.recipe, self.folder = recipe, folder

    def __missing__(self, key: str) -> Run:
        run = Run(self.recipe, self.folder / key, key.partition("-")[2])
        # The corpus and its tokens are built once: only the training is killed.
        for stage in ("corpus", "tokenize"):
            built = next((each.stage.with_name(stage) for each in self.values()), None)
            if built is not None and built.is_dir():
                shutil.copytree(built, run.stage.with_name(stage))
        self[key] = run
        return run

    def reference(self, layout: str) -> Run:
        """Return the run that nothing disturbs."""
        run = self[f"reference-{layout}"]
        if run.process is None:
            run.start()
            code, err = run.finish()
            assert code == 0, err
        return run


@pytest.fixture(scope="module")
def runs(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runs]:
    runs = Runs(recipe, tmp_path_factory.mktemp("runs"))
    yield runs
    for run in runs.values():
        if run.process is not None and run.process.poll() is None:
            run.process.kill()
            run.process.communicate()


@pytest.mark.parametrize("layout", LAYOUTS)
def test_killed_ranks_end_with_the_weights_of_an_undisturbed_run(runs: Runs, layout: str) -> None:
    reference = runs.reference(layout)
    run = runs[f"killed-{layout}"]
    generator = random.Random(11)
    # Each kill is between the steps of two checkpoints, or within a save; the last leaves some steps.
    moments = sorted(generator.uniform(1, STEPS - 2) for _ in range(KILLS))
    for moment in moments:
        process = run.start()
        # The file of steps is the killed run's until the ranks have started.
        assert run.wait_for(lambda: len(run.ranks()) == 2), run.finish()
        assert run.wait_for(lambda step=int(moment): run.steps() >= step), run.finish()
        ranks = run.ranks()
        assert len(ranks) == 2
        time.sleep(moment % 1 * 0.05)
        os.kill(generator.choice(ranks), signal.SIGKILL)
        code, err = run.finish()
        assert code == 1, err
        assert "killed by signal 9" in err
        assert "the same command resumes" in err
        assert process.returncode == 1
    run.start()
    code, err = run.finish()
    assert code == 0, err
    assert run.losses() == reference.losses()
    assert run.weights() == reference.weights()


def test_sigterm_saves_within_a_step(runs: Runs) -> None:
    run = runs["stopped-dp2"]
    process = run.start()
    assert run.wait_for(lambda: run.steps() >= 6)
    process.send_signal(signal.SIGTERM)
    code, err = run.finish()
    assert code == 130, err
    done = run.steps()
    checkpoints = [
        int(path.name.removeprefix("step-")) for path in (run.stage / "checkpoints").glob("step-*")
    ]
    assert max(checkpoints) == done, "the last step is saved, whatever checkpoint_every says"
    run.start()
    code, err = run.finish()
    assert code == 0, err
    assert run.weights() == runs.reference("dp2").weights()
