"""The command, in this process with captured output, or in a child process."""

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
        configure(quiet=False)  # the setting is global: later tests must not be quiet
        out, err = capfd.readouterr()
        assert isinstance(ended.value.code, int)
        return CommandResult(ended.value.code, out, err)

    return run


@pytest.fixture
def process() -> Command:
    """Run Python in a child process with these arguments."""

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
    """Make the toy stages the command's default stages, and write a recipe of them."""
    monkeypatch.setitem(load_recipe.__kwdefaults__, "stages", STAGES)
    toy = ToyRun(tmp_path)
    toy.text.write_text("the heart\nthe lung\nthe heart beats\n", encoding="utf-8")
    toy.write(RECIPE)
    return toy
