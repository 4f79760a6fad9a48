"""The tables of predicted memory, and the page that shows them."""

import pytest
from benchmarks.quantization_page import CARD, CARD_RULE, PAGE, measured_memory, published_files, render


def test_the_page_shows_what_the_script_computes() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == render(page), "run `python -m benchmarks.quantization_page --write`"


def test_the_predicted_memory_was_within_a_tenth_of_the_measured() -> None:
    rows = measured_memory()
    assert {row["type"] for row in rows} == {"Q2_K", "Q4_K_M", "Q8_0"}
    assert {row["context"] for row in rows} == {512, 4_096}
    assert len(rows) == 6
    assert all(row["ours"] == pytest.approx(row["peer"], rel=0.1) for row in rows)


def test_the_cards_rule_is_too_high_for_the_70b_files() -> None:
    layers, heads, width, inner, vocabulary, context = 80, 8, 8_192, 28_672, 32_000, 4_096
    cache = 2 * 2 * layers * heads * 128 * context
    compute = 512 * (4 * (3 * inner + 5 * width) + 2 * context)
    program = 30_000_000 + 500 * vocabulary
    for file in published_files():
        size = CARD[file["type"]] * 1e9
        assert file["bytes"] == pytest.approx(size, abs=11e6)
        assert file["ram"] == file["bytes"] + cache + compute + program
        assert file["ram"] == pytest.approx(size + CARD_RULE * 1e9 - 0.85e9, abs=0.05e9)
