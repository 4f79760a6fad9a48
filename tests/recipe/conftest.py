"""A recipe over the small real stages."""

from pathlib import Path

import pytest

from toy_stages import RECIPE, ToyRun


@pytest.fixture
def toy(tmp_path: Path) -> ToyRun:
    toy = ToyRun(tmp_path)
    toy.text.write_text("the heart\nthe lung\nthe heart beats\n", encoding="utf-8")
    toy.write(RECIPE)
    return toy
