"""The smoke recipe, run once by the real command for all tests that read its artifacts."""

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
    """Exit code and output of a command."""

    code: int
    out: str
    err: str

    @cached_property
    def json(self) -> Any:
        return json.loads(self.out)


def meditron(*words: str | Path, python: tuple[str, ...] = ()) -> Finished:
    """Run the command in the repository's root."""
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
    result: Finished

    @property
    def folder(self) -> Path:
        return self.out / "smoke"


@pytest.fixture(scope="session")
def smoke(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> SmokeRun:
    """Run the smoke recipe once for all test processes: the first one runs it, the others wait."""
    base = tmp_path_factory.getbasetemp()
    out = (base if worker_id == "master" else base.parent) / "smoke-runs"
    out.mkdir(exist_ok=True)
    with (out / "result.json").open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        if not (recorded := file.read()):
            recorded = json.dumps(asdict(meditron("run", SMOKE, "--out", out, "--json")))
            file.write(recorded)
    return SmokeRun(out, Finished(**json.loads(recorded)))


@pytest.fixture(scope="session")
def command() -> Any:
    return meditron
