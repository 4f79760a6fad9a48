"""The cost of quantization types, measured or published, and the type to take."""

from pathlib import Path
from typing import Any

import pytest

from fake_run import FakeRun
from meditron.report.quantization import (
    QuantizationCost,
    costs_from_evaluation,
    files_table,
    measured_costs,
    published_cost,
    recommendation,
    recommended_type,
)
from meditron.store.results import Comparison, write_results


def file(kind: str, size: int) -> dict[str, Any]:
    return {"path": f"{kind}.gguf", "type": kind, "bytes": size, "bpw": 4.5, "ram": 2 * size, "context": 4096}


FILES = [
    file("F16", 270_000_000),
    file("Q8_0", 145_000_000),
    file("Q4_K_M", 105_000_000),
    file("Q2_K", 80_000_000),
]


def test_published_costs_are_labelled_and_floats_have_none() -> None:
    assert published_cost("F16") is None
    assert str(published_cost("Q4_K_M")) == "+2.8 % published for Llama-3-8B"
    assert not published_cost("Q4_K_M").is_measured


def test_the_smallest_file_within_the_limit_is_recommended() -> None:
    assert recommended_type(FILES, {}) == "Q4_K_M"
    costs = {"Q4_K_M": QuantizationCost(0.08, is_measured=True, reference="20 documents of pubmed")}
    assert recommended_type(FILES, costs) == "Q8_0"
    assert recommended_type(FILES[-1:], {}) == "Q2_K"
    assert recommended_type(FILES[:1], {}) is None


def test_the_advice_says_whether_the_cost_was_measured() -> None:
    costs = {"Q4_K_M": QuantizationCost(0.03, is_measured=True, reference="20 documents of pubmed")}
    assert "+3.0 % measured on 20 documents of pubmed" in recommendation(FILES, costs)
    assert "published for Llama-3-8B" in recommendation(FILES, {})
    assert "meditron evaluate" in recommendation(FILES, {})
    assert "more than 5.0 %" in recommendation(FILES[-1:], {})
    assert recommendation(FILES[:1], {}) == ""


def test_the_table_marks_the_recommended_file_and_labels_each_cost() -> None:
    costs = {"Q8_0": QuantizationCost(-0.001, is_measured=True, reference="6 documents of wiki")}
    rows = {row[0]: row for row in files_table(FILES, costs, "Files").rows}
    assert rows["Q4_K_M.gguf"][1] == "Q4_K_M (recommended)"
    assert rows["Q8_0.gguf"][-2:] == ("−0.1 % on 6 documents of wiki", "< 0.1 %")
    assert rows["Q4_K_M.gguf"][-2:] == ("not measured", "+2.8 %")
    assert rows["F16.gguf"][-2:] == ("not measured", "–")
    assert files_table(FILES, {}, "Files").headers[-1] == "published rise, Llama-3-8B"


@pytest.fixture
def life(tmp_path: Path) -> FakeRun:
    life = FakeRun(tmp_path / "small")
    source = {"what": "nll per token, pubmed", "source": "pubmed", "interval": (0.02, 0.06), "p": 0.001}
    cost = Comparison(a="finetune", b="quantize:Q4_K_M", n=24, difference=0.0392, detectable=None, **source)
    result = life.result.model_copy(update={"differences": [*life.result.differences, cost]})
    write_results(life.folder / "evaluate", result)
    models = {"model": "finetune", "quantize:Q4_K_M": "quantize"}
    life.finish("evaluate", inputs=models, metrics=result.model_dump(mode="json"))
    return life


def test_the_costs_of_a_runs_model_are_those_of_its_evaluation(life: FakeRun) -> None:
    costs = measured_costs(life.folder / "finetune")
    assert str(costs["Q4_K_M"]) == "+4.0 % measured on 24 documents of pubmed"
    assert measured_costs(life.folder / "pretrain") == {}
    assert measured_costs(life.folder) == {}


def test_files_of_another_model_of_that_name_do_not_count(life: FakeRun) -> None:
    (life.folder / "finetune" / "model.safetensors").write_bytes(b"another")
    life.finish("finetune", inputs={"base": "pretrain"})
    assert measured_costs(life.folder / "finetune") == {}


def test_a_damaged_evaluation_is_a_warning(life: FakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    (life.folder / "evaluate" / "results.json").write_text('{"perplexity": 3}')
    assert measured_costs(life.folder / "finetune") == {}
    assert "was not used for the cost of quantization" in capsys.readouterr().err


def test_the_cost_of_a_file_that_is_beyond_repair_is_a_number(life: FakeRun) -> None:
    cost = Comparison(
        a="finetune", b="quantize:Q2_K", what="", source="wiki", n=9, difference=5e3, interval=None, p=0.1,
        detectable=None,
    )  # fmt: skip
    result = life.result.model_copy(update={"differences": [cost]})
    assert "e+306 % measured on 9" in str(costs_from_evaluation(result, "quantize", "finetune")["Q2_K"])


def test_fidelity_counts_if_no_comparison_has_the_type(life: FakeRun) -> None:
    (pair,) = life.result.fidelity
    cost = costs_from_evaluation(life.result, "quantize", "finetune")["Q4_K_M"]
    assert cost.perplexity_change == pair.perplexity_ratio - 1
    assert costs_from_evaluation(life.result, "another", "finetune") == {}
