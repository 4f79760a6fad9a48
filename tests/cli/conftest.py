"""The command as a person has it: in this process with its words caught, or in one of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from command import Command, CommandResult
from meditron.cli import main
from meditron.core.console import configure
from meditron.recipe import load_recipe
from toy_stages import RECIPE, STAGES, ToyRun


@pytest.fixture
def meditron(capfd: pytest.CaptureFixture[str]) -> Command:
    """Run the command in this process."""

    def run(*words: str | Path) -> CommandResult:
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([str(word) for word in words])
        configure(quiet=False)  # the console is the process's own: no test after this one is to be silent
        out, err = capfd.readouterr()
        assert isinstance(ended.value.code, int)
        return CommandResult(ended.value.code, out, err)

    return run


@pytest.fixture
def process() -> Command:
    """Run Python in a process of its own, with the words given."""

    def run(*words: str | Path, **environment: str) -> CommandResult:
        done = subprocess.run(
            [sys.executable, *map(str, words)],
            capture_output=True,
            text=True,
            env={**os.environ, **environment},
            timeout=120,
            check=False,
        )
        return CommandResult(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ToyRun:
    """A recipe over small real stages, which the command takes for the stages there are."""
    monkeypatch.setitem(load_recipe.__kwdefaults__, "stages", STAGES)
    toy = ToyRun(tmp_path)
    toy.text.write_text("the heart\nthe lung\nthe heart beats\n", encoding="utf-8")
    toy.write(RECIPE)
    return toy
