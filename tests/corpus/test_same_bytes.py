"""The same corpus and token files from every executor, any number of workers, and any number of kills."""

import importlib.util
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from interrupted_build import build, build_and_die, build_and_record, in_process
from meditron.core.errors import InputError
from numbered_tasks import install_fake_slurm
from tiny import tiny_hf

from .test_build import digest, many

PASSES = {
    "read": r"work/.*(candidates\.jsonl\.zst|index\.npy|group\.json|groups\..*)",
    "compare": r"work/.*decisions\.npy",
    "write": r"corpus/(train|heldout)/.*|corpus/work/.*(counts\.json|drops\.jsonl\.zst)",
    "tokenize": r"tokens/work/.*",
}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_hf(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write 240 documents in 3 files; a part of each are copies of documents of another file."""
    folder = tmp_path_factory.mktemp("source")
    for name in ("a", "b", "c"):
        many(folder / f"{name}.jsonl", {"a": 100, "b": 60, "c": 80}[name])
        lines = (folder / f"{name}.jsonl").read_text().splitlines()
        own = [line.replace("nothing else", f"nothing but {name}") for line in lines[: len(lines) // 2]]
        (folder / f"{name}.jsonl").write_text("\n".join([*own, *lines[len(lines) // 2 :]]))
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, base: Path, source: Path) -> dict[str, str]:
    out = tmp_path_factory.mktemp("whole")
    build(source, base, out, {})
    return digest(out)


@pytest.mark.parametrize("workers", [2, 3])
def test_any_number_of_workers(
    tmp_path: Path, base: Path, source: Path, whole: dict[str, str], workers: int
) -> None:
    build(source, base, tmp_path, {"workers": workers})
    assert digest(tmp_path) == whole


def test_slurm(
    tmp_path: Path, base: Path, source: Path, whole: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = install_fake_slurm(tmp_path / "slurm")
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setattr("meditron.corpus.slurm_array._MAX_ELEMENTS", 2)
    build(source, base, tmp_path / "out", {"executor": "slurm", "workers": 2})
    assert digest(tmp_path / "out") == whole


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("ray"), reason="the extra ray is not installed")
def test_ray(tmp_path: Path, base: Path, source: Path, whole: dict[str, str]) -> None:
    settings = {"executor": "ray", "workers": 2}
    damaged = many(tmp_path / "damaged.jsonl", 30)
    damaged.write_text(damaged.read_text() + "\n{broken")
    second = many(tmp_path / "second.jsonl", 30)
    folder = tmp_path / "in"
    folder.mkdir()
    for path in (damaged, second):
        path.rename(folder / path.name)
    with pytest.raises(InputError, match=r"damaged\.jsonl \(line 31\)"):
        build(folder, base, tmp_path / "damaged", settings)
    build(source, base, tmp_path / "out", settings)
    assert digest(tmp_path / "out") == whole


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_a_kill_in_each_pass(
    tmp_path: Path, base: Path, source: Path, whole: dict[str, str], seed: int
) -> None:
    log = tmp_path / "log"
    assert in_process(build_and_record, source, base, tmp_path / "recorded", log) == 0
    names = log.read_text().splitlines()
    chooser = random.Random(seed)
    out = tmp_path / "out"
    for pattern in PASSES.values():
        victim = chooser.choice([name for name in names if re.fullmatch(f"(corpus/)?{pattern}", name)])
        code = in_process(build_and_die, source, base, out, victim, chooser.random() < 0.5)
        assert code == -signal.SIGKILL, victim
    assert in_process(build, source, base, out, {}) == 0
    assert digest(out) == whole


RUN = """
import sys
from pathlib import Path
from interrupted_build import build
build(*map(Path, sys.argv[1:]), {"workers": 2})
"""


@pytest.mark.slow
@pytest.mark.parametrize(("pattern", "count"), [("*/*.index.npy", 3), ("*/*.counts.json", 1)])
def test_a_killed_worker(
    tmp_path: Path, base: Path, source: Path, whole: dict[str, str], pattern: str, count: int
) -> None:
    environment = dict(os.environ, PYTHONPATH=str(Path(__file__).parents[1]))
    command: list[Any] = [sys.executable, "-c", RUN, source, base, tmp_path]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None:
            if len(list(tmp_path.glob(f"corpus/work/{pattern}"))) >= count and (pids := workers(process.pid)):
                os.kill(pids[0], signal.SIGKILL)
                break
            time.sleep(0.001)
        assert process.stderr is not None
        assert "EngineError: a worker process of the corpus was killed by SIGKILL" in process.stderr.read()
    assert process.returncode == 1
    build(source, base, tmp_path, {"workers": 2})
    assert digest(tmp_path) == whole


def workers(pid: int) -> list[int]:
    """Return the worker processes of a process; multiprocessing's resource tracker is not one."""
    children = [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return [child for child in children if b"spawn_main" in Path(f"/proc/{child}/cmdline").read_bytes()]
