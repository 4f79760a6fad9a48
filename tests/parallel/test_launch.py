"""Ranks of --nproc and of torchrun: planning, output, errors, signals, kills, hangs; no orphan is left."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from command import CommandResult
from meditron.store.manifest import read_manifest
from toy_stages import MEET, MEET_RECIPE, STAGES, ToyRun

pytestmark = pytest.mark.timeout(180)
TESTS = Path(__file__).resolve().parents[1]
SCRIPT = str(TESTS / "toy_command.py")


class Launched:
    """A run of the toy recipe in a process of its own, with its ranks."""

    def __init__(self, toy: ToyRun) -> None:
        self.toy = toy
        self.processes: list[subprocess.Popen[str]] = []

    @property
    def stage(self) -> Path:
        return self.toy.run_folder / "meet"

    def start(self, *words: str, launcher: Sequence[str] = (), **environment: str) -> "subprocess.Popen[str]":
        variables = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
        variables["PYTHONPATH"] = os.pathsep.join([str(TESTS), *sys.path])
        process = subprocess.Popen(
            [sys.executable, *launcher, SCRIPT, "run", self.toy.path, "--out", self.toy.out, *words],
            env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.processes.append(process)
        return process

    def finish(self, process: "subprocess.Popen[str]") -> CommandResult:
        out, err = process.communicate(timeout=120)
        return CommandResult(process.returncode, out, err)

    def run(self, *words: str, **options: str) -> CommandResult:
        return self.finish(self.start(*words, **options))

    def wait_for(self, process: "subprocess.Popen[str]", *names: str) -> None:
        until = time.monotonic() + 90
        while not all((self.stage / name).exists() for name in names):
            assert time.monotonic() < until
            assert process.poll() is None, process.communicate()
            time.sleep(0.02)

    def ranks(self) -> dict[int, int]:
        """Return rank → process id."""
        files = self.stage.glob("rank-*.pid")
        return {int(file.stem.rpartition("-")[2]): int(file.read_text()) for file in files}

    def assert_no_orphans(self, ranks: dict[int, int]) -> None:
        assert ranks
        until = time.monotonic() + 10
        while any(is_running(pid) for pid in ranks.values()):
            assert time.monotonic() < until, f"still running: {ranks}"
            time.sleep(0.05)


def is_running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


@pytest.fixture
def launched(tmp_path: Path) -> Iterator[Launched]:
    toy = ToyRun(tmp_path, (*STAGES[:2], MEET))
    toy.text.write_text("the heart\nthe lung\n", encoding="utf-8")
    toy.write(MEET_RECIPE)
    launched = Launched(toy)
    yield launched
    for process in launched.processes:
        if process.poll() is None:
            process.kill()
            process.communicate()
    if (ranks := launched.ranks()) is not None and ranks:
        launched.assert_no_orphans(ranks)


def trouble(kind: str, *more: str) -> list[str]:
    words = [f"meet.trouble={kind}", *more]
    return [part for word in words for part in ("--set", word)]


def test_ranks_build_a_distributed_stage_and_the_launcher_writes_its_manifest(launched: Launched) -> None:
    result = launched.run("--nproc", "3", "--json", "--set", "meet.parallel.tp=3")
    assert result.code == 0, result.err
    stages = json.loads(result.out)["stages"]
    assert {stage["state"] for stage in stages.values()} == {"built"}
    assert stages["meet"]["metrics"]["sum"] == 1 + 2 + 3
    assert result.err.count("a message of every rank") == 1, "only rank 0 prints messages"
    manifest = read_manifest(launched.stage)
    assert manifest is not None
    assert (manifest.metrics["ranks"], manifest.metrics["layout"]) == (3, 3)
    assert manifest.beside["parallel"]["tp"] == 3
    assert "parallel" not in manifest.payload["config"]
    # Neither another layout nor another number of ranks makes the stage stale, and no rank is started.
    started = time.monotonic()
    again = launched.run("--nproc", "2", "--json")
    assert time.monotonic() - started < 20
    assert {stage["state"] for stage in json.loads(again.out)["stages"].values()} == {"fresh"}


def test_the_digest_does_not_depend_on_layout_and_ranks(launched: Launched) -> None:
    digests = []
    for words in (["--nproc", "2"], ["--nproc", "2", "--set", "meet.parallel.pp=2"]):
        assert launched.run(*words, "--rebuild", "meet").code == 0
        manifest = read_manifest(launched.stage)
        assert manifest is not None
        digests.append((manifest.fingerprint, manifest.digest))
    assert digests[0] == digests[1]


def test_other_ranks_are_silent_except_for_prefixed_warnings(launched: Launched) -> None:
    result = launched.run("--nproc", "2", "--json", *trouble("print"))
    assert result.code == 0, result.err
    json.loads(result.out)
    prefixed = [line for line in result.err.splitlines() if line.startswith("[rank ")]
    assert sorted(prefixed) == ["[rank 1] on stdout", "[rank 1] warning: a warning of one rank"]


@pytest.mark.parametrize(("given", "threads"), [((), 1), (("--set", "meet.threads=2"), 2)])
def test_threads_are_the_recipes_or_the_users(launched: Launched, given: Sequence[str], threads: int) -> None:
    result = launched.run("--nproc", "2", "--json", *given)
    assert json.loads(result.out)["stages"]["meet"]["metrics"]["threads"] == threads


def test_a_layout_that_does_not_fit_is_refused_before_anything_is_built(launched: Launched) -> None:
    result = launched.run("--nproc", "2", "--set", "meet.parallel.tp=4")
    assert result.code == 2
    error, hint = result.err.splitlines()
    assert error.startswith("meditron: error: meet: ")
    assert "4 ranks" in error
    assert "--nproc 4" in hint
    assert not list(launched.toy.run_folder.glob("*/*"))
    # The stages before it need no ranks.
    assert launched.run("--set", "meet.parallel.tp=4", "--until", "total").code == 0
    assert launched.run("--nproc", "0").code == 2


def test_a_dry_run_starts_no_ranks(launched: Launched) -> None:
    result = launched.run("--nproc", "2", "--dry-run", "--json")
    assert result.code == 0
    assert json.loads(result.out)["stages"]["meet"]["action"] == "build"
    assert not launched.toy.out.exists()


@pytest.mark.parametrize(
    ("kind", "message", "hint"),
    [
        ("raise", "rank 1: shard.safetensors: a damaged shard", "fetch it again"),
        ("raise-gather", "rank 1: shard.safetensors: a damaged shard", "fetch it again"),
        ("raise-all", "step 3: the loss is nan", None),
        ("raise-late", "step 3: the loss is nan", None),
        ("kill", "rank 1: killed by signal 9 (SIGKILL)", "the same command resumes; if"),
        ("exit", "rank 1: the process ended with exit code 3 and without an error", "the same command"),
    ],
)
def test_a_failing_rank_ends_all_and_its_error_is_the_last_line(
    launched: Launched, kind: str, message: str, hint: str | None
) -> None:
    process = launched.start("--nproc", "3", "--json", *trouble(kind))
    result = launched.finish(process)
    assert result.code == 1
    ranks = launched.ranks()
    assert len(ranks) == 3
    launched.assert_no_orphans(ranks)
    last = [f"meditron: error: {message}", *([f"hint: {hint}"] if hint else [])]
    for line, start in zip(result.err.splitlines()[-len(last) :], last, strict=True):
        assert line.startswith(start), result.err
    assert "Traceback" not in result.err
    assert result.err.count("error:") == 1
    assert json.loads(result.out)["error"]["message"] == message
    # The failure is recorded, and the same command without the trouble is refused only for its config.
    current = json.loads(launched.run("--dry-run", "--json", *trouble(kind)).out)
    assert current["stages"]["meet"]["message"] == message


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_reaches_all_ranks_which_save_and_end(launched: Launched, number: int) -> None:
    process = launched.start("--nproc", "2", *trouble("wait"))
    launched.wait_for(process, "waiting-0.txt", "waiting-1.txt")
    ranks = launched.ranks()
    process.send_signal(number)
    result = launched.finish(process)
    assert result.code == 130
    assert result.err.splitlines()[-2:] == [
        "finished work is kept: the same command continues",
        "meditron: interrupted",
    ]
    launched.assert_no_orphans(ranks)
    if number != signal.SIGINT:  # the toy stage, unlike a training, does not handle Ctrl-C
        assert {file.name for file in launched.stage.glob("saved-*")} == {"saved-0.txt", "saved-1.txt"}


def test_no_rank_survives_a_killed_launcher(launched: Launched) -> None:
    process = launched.start("--nproc", "2", *trouble("wait"))
    launched.wait_for(process, "waiting-0.txt", "waiting-1.txt")
    ranks = launched.ranks()
    process.kill()
    process.communicate(timeout=30)
    launched.assert_no_orphans(ranks)


def test_a_hung_rank_ends_the_job_with_its_stack(launched: Launched) -> None:
    result = launched.run("--nproc", "3", *trouble("hang", "meet.timeout=4"))
    assert result.code == 1
    for rank in range(3):
        assert f"[rank {rank}] no progress for" in result.err
        assert (launched.stage / f"hung/rank-{rank}.txt").is_file()
    assert "in cause_trouble" in (launched.stage / "hung/rank-1.txt").read_text()
    assert "in cause_trouble" not in (launched.stage / "hung/rank-0.txt").read_text()
    error, hint = result.err.splitlines()[-2:]
    assert error.startswith("meditron: error: rank 1 made no progress for ")
    assert "after 'step 2': cause_trouble (toy_stages.py:" in error
    assert error.endswith("; ranks 0, 2 waited")
    assert "the same command resumes" in hint
    launched.assert_no_orphans(launched.ranks())


def test_a_rank_that_blocks_the_interpreter_is_named_with_its_stack(launched: Launched) -> None:
    result = launched.run("--nproc", "2", *trouble("block", "meet.timeout=4"))
    assert result.code == 1
    assert any(
        line.startswith("[rank 1] ") and "in cause_trouble" in line for line in result.err.splitlines()
    )
    error = result.err.splitlines()[-2]
    assert error.startswith("meditron: error: rank 1 did not answer: the process is stopped, or blocked")
    assert error.endswith("; rank 0 waited")
    launched.assert_no_orphans(launched.ranks())


def test_one_process_that_hangs_ends_with_its_stack(launched: Launched) -> None:
    result = launched.run(*trouble("hang", "meet.timeout=4", "meet.at=0"))
    assert result.code == 1
    assert "in cause_trouble" in result.err
    assert result.err.splitlines()[-2].startswith("meditron: error: rank 0 made no progress for ")


TORCHRUN = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone")


def test_torchrun_starts_the_same_command(launched: Launched) -> None:
    result = launched.run("--json", launcher=TORCHRUN)
    assert result.code == 0, result.err
    stages = json.loads(result.out)["stages"]
    assert {stage["state"] for stage in stages.values()} == {"built"}
    assert stages["meet"]["metrics"]["sum"] == 1 + 2
    assert result.err.count("a message of every rank") == 1
    assert result.err.count("stage 1 of 3: words\n") == 1, "only rank 0 plans"
    again = launched.run("--json", launcher=TORCHRUN)
    assert {stage["state"] for stage in json.loads(again.out)["stages"].values()} == {"fresh"}


def test_under_torchrun_only_the_rank_that_failed_reports_an_error(launched: Launched) -> None:
    result = launched.run(*trouble("raise-gather"), launcher=TORCHRUN)
    assert result.code != 0
    errors = [line for line in result.err.splitlines() if line.startswith("meditron: error:")]
    assert errors == ["meditron: error: rank 1: shard.safetensors: a damaged shard"]


def test_under_torchrun_an_error_of_rank_0_ends_the_others_quietly(launched: Launched) -> None:
    launched.toy.text.write_text("the heart\npoison\n", encoding="utf-8")
    result = launched.run(launcher=TORCHRUN)
    assert result.code != 0
    assert result.err.count("meditron: error:") == 1
    assert "a poisoned line" in result.err


def test_under_torchrun_the_failing_rank_names_itself(launched: Launched) -> None:
    result = launched.run(*trouble("raise"), launcher=TORCHRUN)
    assert result.code != 0
    assert "meditron: error: rank 1: shard.safetensors: a damaged shard" in result.err


RANK_0 = {
    **{"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"},
    **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"},
}


def test_nproc_is_refused_in_a_rank(launched: Launched) -> None:
    result = launched.run("--nproc", "2", **RANK_0)
    assert result.code == 2
    assert result.err.splitlines() == [
        "meditron: error: --nproc 2: this is already rank 0 of 2",
        "hint: leave out --nproc under torchrun",
    ]


@pytest.mark.parametrize("missing", ["WORLD_SIZE", "MASTER_ADDR"])
def test_a_missing_variable_is_one_line(launched: Launched, missing: str) -> None:
    result = launched.run(**{name: value for name, value in RANK_0.items() if name != missing})
    assert result.code == 2
    assert result.err.splitlines()[0] == f"meditron: error: RANK is set, but {missing} is not"
