"""A recipe over the small real stages."""

from pathlib import Path

import pytest

from counting import RECIPE, Bench


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    bench = Bench(tmp_path)
    bench.text.write_text("the heart\nthe lung\nthe heart beats\n", encoding="utf-8")
    bench.write(RECIPE)
    return bench
