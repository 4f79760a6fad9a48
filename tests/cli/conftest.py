"""The command as a person has it: in this process with its words caught, or in one of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from command import Command, Said
from counting import RECIPE, STAGES, Bench
from meditron.cli import main
from meditron.core.console import configure
from meditron.recipe import load_recipe


@pytest.fixture
def meditron(capfd: pytest.CaptureFixture[str]) -> Command:
    """Run the command in this process."""

    def run(*words: str | Path) -> Said:
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(word) for word in words])
        configure(quiet=False)  # the console is the process's own: no test after this one is to be silent
        out, err = capfd.readouterr()
        assert isinstance(ended.value.code, int)
        return Said(ended.value.code, out, err)

    return run


@pytest.fixture
def process() -> Command:
    """Run Python in a process of its own, with the words given."""

    def run(*words: str | Path, **environment: str) -> Said:
        done = subprocess.run(
            [sys.executable, *map(str, words)],
            capture_output=True,
            text=True,
            env={**os.environ, **environment},
            timeout=120,
            check=False,
        )
        return Said(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    """A recipe over small real stages, which the command takes for the stages there are."""
    monkeypatch.setitem(load_recipe.__kwdefaults__, "stages", STAGES)
    bench = Bench(tmp_path)
    bench.text.write_text("the heart\nthe lung\nthe heart beats\n", encoding="utf-8")
    bench.write(RECIPE)
    return bench
