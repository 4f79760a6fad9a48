"""The recipe that people copy: it loads, and so does everything that it offers."""

import re
import tomllib
from pathlib import Path

import pytest

from meditron.core.errors import RecipeError
from meditron.recipe import load_recipe

TEMPLATE = Path(__file__).resolve().parents[2] / "recipes" / "template.toml"
OFFERED = re.compile(r"#(?=[a-z_]+ = |\[)")


def taken(text: str) -> str:
    """The recipe with every offer taken: where a key is set already, the offer stands instead."""
    lines: list[str] = []
    keys: dict[str, int] = {}
    for line in text.splitlines():
        line = OFFERED.sub("", line, count=1) if OFFERED.match(line) else line
        if line.startswith("["):
            keys = {}
        elif found := re.match(r"([a-z_]+) = ", line):
            if found[1] in keys:
                lines[keys[found[1]]] = ""
            keys[found[1]] = len(lines)
        lines.append(line)
    return "\n".join(lines)


def test_it_has_every_stage() -> None:
    steps = load_recipe(TEMPLATE).stages
    kinds = ["corpus", "tokenize", "pretrain", "finetune.sections", "quantize", "evaluate", "card"]
    assert list(steps) == kinds


def test_every_setting_that_it_offers_is_one(tmp_path: Path) -> None:
    text = TEMPLATE.read_text(encoding="utf-8")
    offers = [line for line in text.splitlines() if OFFERED.match(line)]
    assert len(offers) > 30
    path = tmp_path / "mine.toml"
    path.write_text(taken(text), encoding="utf-8")
    recipe = load_recipe(path)
    assert list(recipe.stages)[3:5] == ["finetune.sections", "finetune.chat"]
    read = tomllib.loads(path.read_text(encoding="utf-8"))
    for offer in offers:
        if found := re.match(r"#([a-z_]+) = ", offer):
            assert f"'{found[1]}'" in str(read), offer


def test_a_setting_that_is_none_would_be_found(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    text = TEMPLATE.read_text(encoding="utf-8").replace("#checkpoint_every", "#checkpoints_every")
    path.write_text(taken(text), encoding="utf-8")
    with pytest.raises(RecipeError, match="did you mean 'checkpoint_every'"):
        load_recipe(path)
