"""The smoke recipe, run once by the real command for all tests that look at what it leaves."""

import fcntl
import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
SMOKE = ROOT / "recipes" / "smoke.toml"


@dataclass(frozen=True)
class Finished:
    """What a command said and how it ended."""

    code: int
    out: str
    err: str

    @cached_property
    def json(self) -> Any:
        return json.loads(self.out)


def meditron(*words: str | Path, python: tuple[str, ...] = ()) -> Finished:
    """The command, as a person types it, in the repository's root."""
    done = subprocess.run(
        [sys.executable, *python, "-m", "meditron", *map(str, words)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=800,
        check=False,
    )
    return Finished(done.returncode, done.stdout, done.stderr)


@dataclass(frozen=True)
class SmokeRun:
    """The finished smoke run."""

    out: Path
    said: Finished

    @property
    def folder(self) -> Path:
        return self.out / "smoke"


@pytest.fixture(scope="session")
def smoke(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> SmokeRun:
    """One for all processes that share the tests: the first one runs it, the others wait for it."""
    own = tmp_path_factory.getbasetemp()
    out = (own if worker_id == "master" else own.parent) / "smoke-runs"
    out.mkdir(exist_ok=True)
    with (out / "said.json").open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        if not (told := file.read()):
            told = json.dumps(asdict(meditron("run", SMOKE, "--out", out, "--json")))
            file.write(told)
    return SmokeRun(out, Finished(**json.loads(told)))


@pytest.fixture(scope="session")
def command() -> Any:
    return meditron
