"""The measured loss of twelve types, the recommended one, predicted memory, and the page that shows them."""

import json
from pathlib import Path

import pytest
from benchmarks.quantization_page import (
    CARD,
    CARD_RULE,
    CHART,
    PAGE,
    chart,
    measured,
    measured_memory,
    published_files,
    render,
)

from benchmarks import quantization_page
from meditron.report.quantization import recommended_file
from meditron.report.svg import standalone_svg

DATA = Path(quantization_page.__file__).with_suffix(".json")


def test_the_recommended_type_is_recomputed_from_the_measured_table() -> None:
    data = json.loads(DATA.read_text(encoding="utf-8"))
    sizes = {file["type"]: file["bytes"] for file in data["files"]}
    assert list(sizes) == list(CARD)
    upper_ends = dict.fromkeys(sizes, 0.0)
    for pair in data["result"]["fidelity"]:
        if data["domains"][pair["source"]] == "medical":
            kind = pair["model"].removeprefix("quantize:")
            upper_ends[kind] = max(upper_ends[kind], pair["intervals"]["perplexity_ratio"][1])
    worse = {
        difference["b"].removeprefix("quantize:")
        for difference in data["result"]["differences"]
        if difference["task"] and difference["interval"][1] < 0 and difference["p_adjusted"] < 0.05
    }
    assert all(upper_ends.values())
    acceptable = [kind for kind in sizes if upper_ends[kind] <= 1.05 and kind not in worse]
    expected = min(acceptable, key=lambda kind: sizes[kind])
    files, losses = measured()
    assert recommended_file(files, losses) == expected


def test_every_type_was_measured_on_both_texts_and_on_a_task() -> None:
    _, losses = measured()
    for kind in CARD:
        assert {text.domain for text in losses[kind].texts if text.fidelity} == {"medical", "general"}
        assert len(losses[kind].tasks) == 1


def test_the_page_and_the_chart_show_what_the_script_computes() -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page == render(page), "run `python -m benchmarks.quantization_page --write`"
    assert CHART.read_text(encoding="utf-8") == standalone_svg(chart().svg)


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
