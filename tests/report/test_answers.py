"""The answers to a reader's questions never claim more than the verdicts do."""

import csv
import io
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from meditron.report.answers import Answer, RunFacts, answer_questions, overview_figure
from meditron.report.figures import ReportFigure, write_figures
from meditron.store.results import Comparison, EvaluationResult, Fidelity

FACTS = RunFacts(
    stage_kinds={"corpus": "corpus", "pretrain": "pretrain", "finetune": "finetune", "quantize": "quantize"},
    parent_models={"pretrain": "base", "finetune": "pretrain", "quantize:Q4_K_M": "finetune"},
    domains={"pubmed": "medical", "wiki": "general"},
    file_sizes={"quantize:Q4_K_M": 105_000_000},
)
BETTER, WORSE, UNDECIDED = (-0.1, (-0.2, -0.05)), (0.1, (0.05, 0.2)), (0.01, (-0.1, 0.1))


def comparison(a: str, b: str, measure: str, value: tuple[float, Any], n: int = 40) -> Comparison:
    task = measure.startswith("task")
    return Comparison(
        a=a,
        b=b,
        what=measure,
        source=None if task else measure,
        task=measure if task else None,
        n=n,
        difference=value[0],
        interval=value[1],
        p=0.5 if value is UNDECIDED else 0.0001,
        detectable=None,
    )


def result(*differences: Comparison, fidelity: tuple[Fidelity, ...] = ()) -> EvaluationResult:
    models = dict.fromkeys(["base", *(one.b for one in differences)])
    return EvaluationResult(
        perplexity={model: {} for model in models},
        differences=list(differences),
        fidelity=list(fidelity),
        rows="rows.jsonl",
        dtype="float32",
        seed=1,
        resamples=100,
    )


def answers(*differences: Comparison, fidelity: tuple[Fidelity, ...] = ()) -> dict[str, Answer]:
    return {
        answer.name: answer for answer in answer_questions(result(*differences, fidelity=fidelity), FACTS)
    }


def fidelity(documents: int, ratio: float, ends: tuple[float, float] | None) -> Fidelity:
    return Fidelity(
        model="quantize:Q8_0",
        against="quantize:F16",
        source="pubmed",
        documents=documents,
        n_tokens=100,
        perplexity=10 * ratio,
        perplexity_against=10,
        kl_mean=0.01,
        kl_99=0.1,
        top_agreement=0.9,
        intervals={"perplexity_ratio": ends},
        perplexity_ratio=ratio,
        data_sha256="0" * 64,
    )


@pytest.mark.parametrize(
    ("values", "n", "expected"),
    [
        ([BETTER, BETTER], 40, "Yes."),
        ([BETTER, UNDECIDED], 40, "Yes."),
        ([BETTER, WORSE], 40, "In part."),
        ([WORSE, UNDECIDED], 40, "No."),
        ([UNDECIDED, UNDECIDED], 40, "Undecided."),
        ([(-0.1, None), (-0.1, None)], 5, "Unknown: too few to compare."),
    ],
)
def test_learning_follows_the_verdicts(values: list[Any], n: int, expected: str) -> None:
    sources = ("pubmed", "notes")
    compared = [comparison("base", "pretrain", s, v, n) for s, v in zip(sources, values, strict=True)]
    assert answers(*compared)["learned"].verdict == expected


@pytest.mark.parametrize(
    ("value", "n", "expected"),
    [
        (WORSE, 40, "Yes."),
        (BETTER, 40, "No."),
        ((0.0, None), 40, "No."),
        (UNDECIDED, 40, "Undecided."),
        ((0.1, None), 4, "Unknown: too few to compare."),
    ],
)
def test_forgetting_follows_the_verdicts_on_general_text(value: Any, n: int, expected: str) -> None:
    found = answers(comparison("base", "pretrain", "wiki", value, n))
    assert found["forgot"].verdict == expected
    assert found["learned"].verdict == "Not measured."


def test_the_last_trained_model_answers_and_the_chart_has_all() -> None:
    learned = answers(
        comparison("base", "pretrain", "pubmed", WORSE),
        comparison("base", "finetune", "pubmed", BETTER),
        comparison("pretrain", "finetune", "pubmed", WORSE),
    )["learned"]
    assert learned.verdict == "Yes."
    falls = "log-loss on pubmed (medical) falls, −0.1000 [−0.2000, −0.0500] nats (n = 40)"
    assert learned.sentence == f"finetune against base: {falls}."
    assert [row[0] for row in learned.csv_rows] == ["pretrain", "finetune"]


def test_accuracy_is_in_percentage_points_and_up_is_better() -> None:
    learned = answers(comparison("base", "pretrain", "task", (0.1, (0.05, 0.2))))["learned"]
    assert learned.verdict == "Yes."
    assert "accuracy on task rises, +10.0 [+5.0, +20.0] points (n = 40)" in learned.sentence
    assert learned.csv_rows[0][4:8] == ("points", 10.0, 5.0, 20.0)


def test_the_cost_of_quantization_has_a_size_and_an_amount() -> None:
    quantized = answers(
        comparison("finetune", "quantize:Q4_K_M", "pubmed", WORSE),
        comparison("finetune", "quantize:Q4_K_M", "task", UNDECIDED),
    )["quantized"]
    assert quantized.verdict == "A measurable loss: up to 10.5 % in perplexity."
    assert quantized.sentence.startswith("quantize:Q4_K_M (105 MB) against finetune: log-loss on pubmed")
    assert "accuracy on task is undecided, +1.0 [−10.0, +10.0] points" in quantized.sentence
    assert quantized.headline.startswith("quantize:Q4_K_M (105 MB) on pubmed (medical): +0.1000 [")
    two = [comparison("finetune", "quantize:Q4_K_M", source, UNDECIDED) for source in ("pubmed", "wiki")]
    assert answers(*two)["quantized"].headline == "None of 2 comparisons shows a loss."


@pytest.mark.parametrize(
    ("documents", "ends", "expected"),
    [
        (10, (1.01, 1.03), "A measurable loss: up to 2.0 % in perplexity."),
        (10, (0.99, 1.03), "Undecided."),
        (5, (1.01, 1.03), "Unknown: too few to compare."),
    ],
)
def test_a_file_without_a_comparison_has_its_fidelity(documents: int, ends: Any, expected: str) -> None:
    assert answers(fidelity=(fidelity(documents, 1.02, ends),))["quantized"].verdict == expected


def test_a_file_that_is_beyond_repair_has_an_answer() -> None:
    """exp of thousands of nats is no number of a float."""
    quantized = answers(comparison("finetune", "quantize:Q4_K_M", "pubmed", (5e3, (4e3, 6e3))))["quantized"]
    assert quantized.verdict == "A measurable loss: up to 1e+306 % in perplexity."


def test_nothing_measured_is_said() -> None:
    found = answers()
    assert {answer.verdict for answer in found.values()} == {"Not measured."}
    assert all(answer.figure() is None for answer in found.values())
    assert overview_figure(list(found.values())) is None


def test_a_run_without_training_has_no_question_about_learning() -> None:
    facts = RunFacts(
        stage_kinds={"quantize": "quantize"}, parent_models={"quantize:Q4_K_M": "base"}, domains={}
    )
    found = answer_questions(result(comparison("base", "quantize:Q4_K_M", "pubmed", WORSE)), facts)
    assert [answer.name for answer in found] == ["quantized"]


def test_a_name_in_a_csv_file_is_no_formula(tmp_path: Path) -> None:
    rows = [("=HYPERLINK(1)", -0.5), ("-2+3", 1), ("pubmed", "")]
    write_figures(tmp_path, [ReportFigure("f", '<svg viewBox="0 0 1 1"></svg>', "", ("name", "low"), rows)])
    content = (tmp_path / "figures" / "f.csv").read_text(encoding="utf-8")
    assert content == "name,low\n'=HYPERLINK(1),-0.5\n'-2+3,1\npubmed,\n"


def test_figures_are_written_as_svg_and_csv(tmp_path: Path) -> None:
    found = answers(
        comparison("base", "pretrain", "pubmed", BETTER),
        comparison("base", "pretrain", "wiki", WORSE),
        comparison("finetune", "quantize:Q4_K_M", "pubmed", (0.01, None), n=4),
    )
    figures = [figure for answer in found.values() if (figure := answer.figure())]
    overview = overview_figure(list(found.values()))
    assert overview is not None
    write_figures(tmp_path, [*figures, overview])
    names = {path.name for path in (tmp_path / "figures").iterdir()}
    stems = ("learned", "forgot", "quantized", "overview")
    assert names == {f"{stem}.{suffix}" for stem in stems for suffix in ("svg", "csv")}
    rows = list(csv.DictReader(io.StringIO((tmp_path / "figures" / "learned.csv").read_text())))
    assert [(row["model"], row["difference"], row["verdict"]) for row in rows] == [
        ("pretrain", "-0.1", "better")
    ]
    for path in (tmp_path / "figures").glob("*.svg"):
        text = path.read_text(encoding="utf-8")
        assert ET.fromstring(text.encode()).tag == "{http://www.w3.org/2000/svg}svg"  # noqa: S314
        assert "prefers-color-scheme: dark" in text
        assert "http://" not in text.replace("http://www.w3.org/", "")
    assert "Did it forget?" in (tmp_path / "figures" / "overview.svg").read_text(encoding="utf-8")


def test_figures_of_an_earlier_report_are_removed_and_other_files_stay(tmp_path: Path) -> None:
    figure = answers(comparison("base", "pretrain", "pubmed", BETTER))["learned"].figure()
    assert figure is not None
    write_figures(tmp_path, [figure])
    (tmp_path / "figures" / "mine.svg").write_text("<svg/>")
    write_figures(tmp_path, [])
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["mine.svg"]


def test_long_names_do_not_change_the_size_of_a_chart() -> None:
    short = answers(comparison("base", "pretrain", "pubmed", BETTER))["learned"].figure()
    long = answers(comparison("base", "pretrain", "pubmed-" + "x" * 200, BETTER))["learned"].figure()
    assert short is not None
    assert long is not None
    assert short.svg.split('viewBox="')[1].split()[2] == long.svg.split('viewBox="')[1].split()[2]
