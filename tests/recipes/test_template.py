"""The template recipe: it loads, also with every commented setting enabled."""

import re
import tomllib
from pathlib import Path

import pytest

from meditron.core.errors import RecipeError
from meditron.recipe import load_recipe

TEMPLATE = Path(__file__).resolve().parents[2] / "recipes" / "template.toml"
COMMENTED = re.compile(r"#(?=[a-z_]+ = |\[)")


def enable_all(text: str) -> str:
    """Enable every commented setting; it replaces a set key of the same name."""
    lines: list[str] = []
    keys: dict[str, int] = {}
    for line in text.splitlines():
        line = COMMENTED.sub("", line, count=1) if COMMENTED.match(line) else line
        if line.startswith("["):
            keys = {}
        elif match := re.match(r"([a-z_]+) = ", line):
            if match[1] in keys:
                lines[keys[match[1]]] = ""
            keys[match[1]] = len(lines)
        lines.append(line)
    return "\n".join(lines)


def test_it_has_every_stage() -> None:
    stages = load_recipe(TEMPLATE).stages
    kinds = ["corpus", "tokenize", "pretrain", "finetune.sections", "quantize", "evaluate", "card"]
    assert list(stages) == kinds


def test_every_commented_setting_is_valid(tmp_path: Path) -> None:
    text = TEMPLATE.read_text(encoding="utf-8")
    commented = [line for line in text.splitlines() if COMMENTED.match(line)]
    assert len(commented) > 30
    path = tmp_path / "mine.toml"
    path.write_text(enable_all(text), encoding="utf-8")
    recipe = load_recipe(path)
    assert list(recipe.stages)[3:5] == ["finetune.sections", "finetune.chat"]
    read = tomllib.loads(path.read_text(encoding="utf-8"))
    for setting in commented:
        if match := re.match(r"#([a-z_]+) = ", setting):
            assert f"'{match[1]}'" in str(read), setting


def test_an_invalid_commented_setting_would_be_found(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    text = TEMPLATE.read_text(encoding="utf-8").replace("#checkpoint_every", "#checkpoints_every")
    path.write_text(enable_all(text), encoding="utf-8")
    with pytest.raises(RecipeError, match="did you mean 'checkpoint_every'"):
        load_recipe(path)
