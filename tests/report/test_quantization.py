"""The cost of quantization types, measured or published, and the type to take."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from fake_run import FakeRun
from meditron.report.quantization import (
    QuantizationCost,
    losses_from_evaluations,
    measured_costs,
    published_cost,
    recommendation,
    recommended_type,
)
from meditron.report.quantization_tables import file_tables, files_table, loss_figure
from meditron.store.results import Comparison, write_results


def file(kind: str, size: int) -> dict[str, Any]:
    return {"path": f"{kind}.gguf", "type": kind, "bytes": size, "bpw": 4.5, "ram": 2 * size, "context": 4096}


FILES = [
    file("F16", 270_000_000),
    file("Q8_0", 145_000_000),
    file("Q4_K_M", 105_000_000),
    file("Q2_K", 80_000_000),
]
LOSSY = [file("Q3_K_S", 85_000_000), FILES[-1]]


def test_published_costs_are_labelled_and_floats_have_none() -> None:
    assert published_cost("F16") is None
    assert str(published_cost("Q4_K_M")) == "+2.8 % published for Llama-3-8B"
    assert not published_cost("Q4_K_M").is_measured


def test_the_smallest_file_within_the_limit_is_recommended() -> None:
    assert recommended_type(FILES, {}) == "Q4_K_M"
    costs = {"Q4_K_M": QuantizationCost(0.08, is_measured=True, reference="20 documents of pubmed")}
    assert recommended_type(FILES, costs) == "Q8_0"
    # None is acceptable: the one with the smallest loss, if that is known of each and there is a choice.
    assert recommended_type(LOSSY, {}) == "Q3_K_S"
    assert recommended_type(FILES[-1:], {}) is None
    assert published_cost("IQ4_XS") is None
    assert recommended_type([FILES[-1], file("IQ4_XS", 90_000_000)], {}) is None
    assert recommended_type(FILES[:1], {}) is None


def test_the_advice_says_whether_the_cost_was_measured() -> None:
    costs = {"Q4_K_M": QuantizationCost(0.03, is_measured=True, reference="20 documents of pubmed")}
    assert "+3.0 % measured on 20 documents of pubmed" in recommendation(FILES, costs)
    assert "published for Llama-3-8B" in recommendation(FILES, {})
    assert "meditron evaluate" in recommendation(FILES, {})
    assert "the smallest file whose perplexity rises by at most 5.0 % (" in recommendation(FILES, {})
    assert "there is none whose perplexity rises by at most 5.0 %" in recommendation(LOSSY, {})
    assert recommendation(FILES[:1], {}) == ""


def test_the_table_marks_the_recommended_file_and_labels_each_cost() -> None:
    costs = {"Q8_0": QuantizationCost(-0.001, is_measured=True, reference="6 documents of wiki")}
    rows = {row[0]: row for row in files_table(FILES, costs, "Files").rows}
    # A measured file within the limit comes before a smaller one that was not measured.
    assert rows["Q8_0.gguf"][1] == "Q8_0 (recommended)"
    assert rows["Q8_0.gguf"][-2:] == ("−0.1 % measured on 6 documents of wiki", "< 0.1 %")
    assert rows["Q4_K_M.gguf"][-2:] == ("not measured", "+2.8 %")
    assert rows["F16.gguf"][-2:] == ("not measured", "–")
    assert files_table(FILES, {}, "Files").headers[-1] == "published rise, Llama-3-8B"


@pytest.fixture
def life(tmp_path: Path) -> FakeRun:
    life = FakeRun(tmp_path / "small")
    source = {"what": "nll per token, pubmed", "source": "pubmed", "interval": (0.02, 0.06), "p": 0.001}
    cost = Comparison(a="finetune", b="quantize:Q4_K_M", n=24, difference=0.0392, detectable=None, **source)
    (pair,) = life.result.fidelity
    few = pair.model_copy(update={"documents": 6})
    differences = [*life.result.differences, cost]
    result = life.result.model_copy(update={"differences": differences, "fidelity": [few]})
    write_results(life.folder / "evaluate", result)
    models = {"model": "finetune", "quantize:Q4_K_M": "quantize"}
    life.finish("evaluate", inputs=models, metrics=result.model_dump(mode="json"))
    return life


def test_the_costs_of_a_runs_model_are_those_of_its_evaluation(life: FakeRun) -> None:
    costs = measured_costs(life.folder / "finetune")
    assert str(costs["Q4_K_M"]) == "+4.0 % [2.0, 6.2] measured on 24 documents of pubmed"
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
    losses = losses_from_evaluations([result], "quantize", "finetune", {})
    assert "e+306 % measured on 9" in str(losses["Q2_K"].cost)


def test_fidelity_counts_if_no_comparison_has_more_documents(life: FakeRun) -> None:
    (pair,) = life.result.fidelity
    loss = losses_from_evaluations([life.result], "quantize", "finetune", {})["Q4_K_M"]
    assert loss.texts[0].ratio == pair.perplexity_ratio
    assert losses_from_evaluations([life.result], "another", "finetune", {}) == {}
    more = Comparison(
        a="finetune", b="quantize:Q4_K_M", what="", source=pair.source, n=pair.documents + 1, difference=0.01,
        interval=(0.0, 0.02), p=0.1, detectable=None,
    )  # fmt: skip
    result = life.result.model_copy(update={"differences": [more]})
    (text,) = losses_from_evaluations([result], "quantize", "finetune", {})["Q4_K_M"].texts
    assert text.ratio == pytest.approx(math.exp(0.01))
    assert text.fidelity == pair
    losses = losses_from_evaluations([result], "quantize", "finetune", {})
    table = file_tables([each | {"fallbacks": {}} for each in FILES], losses, "Files")[0]
    (row,) = [row for row in table.rows if "Q4_K_M" in str(row)]
    assert f"{pair.documents + 1:,} ({pair.documents:,} for KL and top token)" in row


def test_only_comparisons_with_the_model_of_the_files_count(life: FakeRun) -> None:
    (pair,) = life.result.fidelity
    other = pair.model_copy(update={"against": "pretrain", "documents": pair.documents + 1})
    result = life.result.model_copy(update={"fidelity": [other, pair], "differences": []})
    (text,) = losses_from_evaluations([result], "quantize", "finetune", {})["Q4_K_M"].texts
    assert text.fidelity == pair
    # The F16 file has the model's values.
    float_file = pair.model_copy(update={"against": "quantize:F16"})
    result = life.result.model_copy(update={"fidelity": [float_file], "differences": []})
    assert losses_from_evaluations([result], "quantize", "finetune", {})["Q4_K_M"].cost is not None


def test_losses_of_several_evaluations_are_put_together(life: FakeRun) -> None:
    task = Comparison(
        a="finetune", b="quantize:Q4_K_M", what="", task="medqa", n=100, difference=-0.2,
        interval=(-0.3, -0.1), p=0.001, detectable=None,
    )  # fmt: skip
    tasks = life.result.model_copy(update={"fidelity": [], "differences": [task]})
    for order in ([life.result, tasks], [tasks, life.result]):
        loss = losses_from_evaluations(order, "quantize", "finetune", {})["Q4_K_M"]
        assert loss.cost is not None
        assert loss.cost.worse_on == ("medqa",)


def test_the_recommended_file_is_the_smallest_acceptable_one(life: FakeRun) -> None:
    def cost(rise: float, high: float, *worse_on: str) -> QuantizationCost:
        return QuantizationCost(rise, True, "30 documents of pubmed", (rise - 0.01, high), worse_on)

    # The interval decides, not the rise; a significant loss of accuracy excludes a file.
    assert recommended_type(FILES, {"Q2_K": cost(0.03, 0.06), "Q4_K_M": cost(0.03, 0.04)}) == "Q4_K_M"
    costs = {"Q2_K": cost(0.3, 0.4), "Q4_K_M": cost(0.01, 0.02, "medqa"), "Q8_0": cost(0.0, 0.01)}
    assert recommended_type(FILES, costs) == "Q8_0"
    advice = recommendation(FILES, costs)
    # Neither a smaller file that was not measured nor a task that was not is claimed.
    assert "the smallest measured file whose" in advice
    assert "also at the upper end of the 95 % interval, and whose accuracy" in advice
    assert "lower on no measured task" in advice
    assert "0.0 % [−1.0, 1.0] measured on 30 documents of pubmed" in advice
    # Without an acceptable file: the one with the lowest upper end.
    assert recommended_type(FILES[2:], {"Q2_K": cost(0.3, 0.4), "Q4_K_M": cost(0.1, 0.5)}) == "Q2_K"


def test_only_medical_text_and_significant_losses_count(life: FakeRun) -> None:
    (pair,) = life.result.fidelity
    ends = {"perplexity_ratio": (8.0, 10.0)}
    general = pair.model_copy(update={"source": "wiki", "perplexity_ratio": 9.0, "intervals": ends})
    task = Comparison(
        a="finetune", b="quantize:Q4_K_M", what="", task="medqa", n=100, difference=-0.2,
        interval=(-0.3, -0.1), p=0.001, detectable=None,
    )  # fmt: skip
    result = life.result.model_copy(update={"fidelity": [pair, general], "differences": [task]})
    domains = {"pubmed": "medical", "wiki": "general"}
    cost = losses_from_evaluations([result], "quantize", "finetune", domains)["Q4_K_M"].cost
    assert cost is not None
    assert cost.perplexity_change == pair.perplexity_ratio - 1
    assert cost.worse_on == ("medqa",)
    unknown = losses_from_evaluations([result], "quantize", "finetune", {})["Q4_K_M"].cost
    assert unknown is not None
    assert "wiki" in unknown.reference
    assert QuantizationCost.from_json(json.loads(json.dumps(cost.to_json()))) == cost


def test_a_loss_of_accuracy_counts_without_a_measured_text(life: FakeRun) -> None:
    task = Comparison(
        a="finetune", b="quantize:Q4_K_M", what="", task="medqa", n=100, difference=-0.2,
        interval=(-0.3, -0.1), p=0.001, detectable=None,
    )  # fmt: skip
    result = life.result.model_copy(update={"fidelity": [], "differences": [task]})
    write_results(life.folder / "evaluate", result)
    life.finish("evaluate", inputs={"model": "finetune", "quantize:Q4_K_M": "quantize"})
    costs = measured_costs(life.folder / "finetune")
    assert str(costs["Q4_K_M"]) == "+2.8 % published for Llama-3-8B, less accurate on medqa"
    assert recommended_type(FILES, costs) == "Q8_0"
    assert files_table(FILES, costs, "Files").headers[-1] == "published rise, Llama-3-8B"


def test_the_table_and_the_chart_have_every_measure_of_every_text(life: FakeRun) -> None:
    (pair,) = life.result.fidelity
    general = pair.model_copy(update={"source": "wiki", "kl_99": 0.4321})
    other = pair.model_copy(update={"model": "quantize:Q8_0", "kl_mean": 0.001, "perplexity_ratio": 1.0})
    result = life.result.model_copy(update={"fidelity": [pair, general, other]})
    losses = losses_from_evaluations([result], "quantize", "finetune", {"pubmed": "medical"})
    files = [each | {"fallbacks": {}} for each in FILES]
    (table,) = file_tables(files, losses, "Files")
    rows = [row for row in table.rows if row[1].startswith("Q4_K_M")]
    assert [row[5] for row in rows] == ["pubmed (medical)", "wiki"]
    assert rows[1][-2] == "0.4321"
    assert [row[5:7] for row in table.rows if row[1] == "F16"] == [("not measured", "")]
    figure = loss_figure(files, losses, "quantize")
    assert figure is not None
    assert figure.rows[0][:4] == ("pubmed (medical)", "Q8_0", 0.145, 0.001)
    assert figure.svg.count("Q4_K_M</text>") == 1
    assert loss_figure(files, {"Q8_0": losses["Q8_0"]}, "quantize") is None
