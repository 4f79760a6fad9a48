"""The recipes of the repository, and the README's commands."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "recipes").glob("*.toml"))
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_a_dry_run_lists_the_stages_and_writes_nothing(recipe: Path, command: Any, tmp_path: Path) -> None:
    result = command("run", recipe, "--out", tmp_path / "runs", "--dry-run", "--json")
    assert result.code == 0, result.err
    assert set(result.json["stages"]) >= {"corpus", "tokenize", "pretrain", "evaluate"}
    assert not (tmp_path / "runs").exists()


def fenced() -> list[str]:
    """Return the README's shell lines."""
    blocks = re.findall(r"```(?:sh|bash|console)\n(.*?)```", README, flags=re.DOTALL)
    return [
        line.strip().removeprefix("$ ") for block in blocks for line in block.splitlines() if line.strip()
    ]


def test_the_readme_names_commands() -> None:
    assert any("make quickstart" in line for line in fenced())
    assert "make test" in README


@pytest.mark.parametrize(
    "line", [line for line in fenced() if "meditron " in line and not line.startswith("#")]
)
def test_a_command_of_the_readme_exists_with_its_flags(line: str, command: Any) -> None:
    words = shlex.split(line, comments=True)
    name, *arguments = words[next(i for i, w in enumerate(words) if w.rpartition("/")[2] == "meditron") + 1 :]
    help_page = command(name, "--help")
    assert help_page.code == 0, help_page.err
    for flag in (word.partition("=")[0] for word in arguments if word.startswith("--")):
        assert flag in help_page.out + help_page.err


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\bmake ([a-z]+)\b", "\n".join(fenced())))))
def test_a_make_target_of_the_readme_exists(target: str) -> None:
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
