"""What an evaluation found, as tables and sentences, against its records."""

import re
from dataclasses import asdict
from pathlib import Path

import pytest

from fake_run import MODELS, SOURCES, TASK, FakeRun
from meditron.core.statistics import PairedDifference, paired_proportions
from meditron.report import evaluation_tables as tables
from meditron.report import methods, verdicts
from meditron.report.evaluation_page import write_evaluation_page
from meditron.store.results import (
    Calibration,
    Comparison,
    EvaluationResult,
    ReliabilityBin,
    TrainingData,
    TrainingRecord,
)

INPUTS = {
    "corpus": {"pubmed": "file:papers"},
    "pretrain": {"base": "pypi:a", "corpus": "corpus"},
    "finetune": {"base": "pretrain", "corpus": "corpus"},
    "quantize": {"model": "finetune"},
}


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> EvaluationResult:
    return FakeRun(tmp_path_factory.mktemp("runs") / "small").result


def comparison(difference: float, low: float, high: float, **of: str) -> Comparison:
    return Comparison(
        a="base",
        b="finetune",
        what="x",
        n=600,
        difference=difference,
        interval=(low, high),
        p=0.01,
        detectable=0.05,
        **of,
    )


def test_the_overview_has_a_row_for_each_model_rule_and_baseline(result: EvaluationResult) -> None:
    table = tables.overview_table(result, SOURCES)
    asked = ["base", "base (calibrated)", *MODELS[1:], "majority", "position", "naive Bayes"]
    assert [row[0] for row in table.rows] == asked
    cells = {row[0]: dict(zip(table.headers, row, strict=True)) for row in table.rows}
    wiki = result.perplexity["finetune"]["wiki"]
    low, high = wiki.interval
    told = cells["finetune"]["wiki (general): perplexity"]
    assert told == f"{wiki.perplexity:.2f} [{low:.2f}, {high:.2f}]"
    (header,) = [header for header in table.headers if header.startswith(TASK)]
    calibrated = result.tasks["base"][TASK].rules["calibrated"].accuracy
    assert cells["base (calibrated)"][header].startswith(f"{100 * calibrated:.1f} % [")
    assert cells["naive Bayes"]["wiki (general): perplexity"] == ""


def test_tables_say_which_models_are_finetuned(result: EvaluationResult) -> None:
    trainings = {
        "base": (),
        "pretrain": ("pretrain",),
        "finetune": ("pretrain", "finetune"),
    }
    records = {
        model: TrainingData(
            statement="s",
            known=True,
            trainings=tuple(TrainingRecord(stage=k, kind=k, data="exam", questions=9) for k in kinds),
        )
        for model, kinds in trainings.items()
    }
    engines = dict.fromkeys(result.tasks, "torch")
    mixed = result.model_copy(update={"ancestry": records, "engines": engines})
    note = methods.tuning_sentence(mixed, ["base", "pretrain", "finetune", "other"])
    assert note == (
        "Differently tuned models: not finetuned by a recorded training: base, pretrain; finetuned on exam: "
        "finetune; finetuning unknown: other."
    )
    assert methods.tuning_sentence(mixed, ["base", "pretrain"]) == ""
    scores = [by_task[TASK] for by_task in mixed.tasks.values()]
    for table in (
        tables.overview_table(mixed, SOURCES),
        tables.rule_table(mixed),
        tables.score_table(mixed),
        tables.task_score_table(scores, mixed),
    ):
        assert "finetuned on exam: finetune" in table.caption


def test_clusters_and_calibration_have_columns_where_they_are_known(
    result: EvaluationResult, tmp_path: Path
) -> None:
    (first, *_) = result.tasks.values()
    bins = [ReliabilityBin(n=30, confidence=0.4, accuracy=0.3, interval=(0.2, 0.5))]
    calibration = Calibration(
        error=0.1,
        error_interval=(0.05, 0.2),
        overconfidence=0.1,
        overconfidence_interval=(0.0, 0.2),
        bins=tuple(bins),
    )
    changes = {"clusters": 12, "clustered_interval": (0.25, 0.75), "calibration": calibration}
    score = first[TASK].model_copy(update=changes)
    table = tables.task_score_table([score], result)
    assert dict(zip(table.headers, table.rows[0], strict=True))["95 % interval, clustered"] == (
        "[25.0, 75.0] (12 clusters)"
    )
    known = result.model_copy(update={"tasks": {score.model: {TASK: score}}})
    [row] = tables.calibration_table(known).rows
    assert row[:5] == (TASK, score.model, f"{score.n:,}", "10.0 % [5.0, 20.0]", "+10.0 [+0.0, +20.0]")
    write_evaluation_page(tmp_path / "report.html", known)
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "accuracy of answers by their probability" in page
    assert methods.CLUSTERS in page


def test_a_verdict_needs_the_clustered_interval_to_exclude_zero() -> None:
    plain = comparison(0.1, 0.05, 0.15, task="q")
    assert verdicts.verdict(plain) == "better"
    assert verdicts.verdict(plain.model_copy(update={"clustered_interval": (-0.01, 0.2)})) == "undecided"
    assert verdicts.verdict(plain.model_copy(update={"clustered_interval": (0.01, 0.2)})) == "better"


def test_a_step_is_told_by_every_measure_whether_it_was_compared_or_not(result: EvaluationResult) -> None:
    parents = tables.parent_models(result, INPUTS)
    assert parents == {"pretrain": "base", "finetune": "pretrain", "quantize:Q4_K_M": "finetune"}
    rows = tables.stage_change_table(result, parents).rows
    assert len(rows) == 3 * (len(SOURCES) + 1)
    told = {(row[0], row[1]): row for row in rows}
    assert told["pretrain → finetune", "pubmed: perplexity"][4] == "not compared"
    compared = next(one for one in result.differences if one.b == "pretrain" and one.task)
    row = told["base → pretrain", f"{TASK}: accuracy"]
    assert row[4].startswith(f"{100 * compared.difference:+.1f}".replace("-", "−"))
    assert row[5] == verdicts.verdict(compared)


@pytest.mark.parametrize(
    ("found", "verdict", "words"),
    [
        (comparison(-0.2, -0.3, -0.1, source="pubmed"), "better", "finetune predicts better than base"),
        (comparison(0.2, 0.1, 0.3, source="pubmed"), "worse", "finetune predicts worse than base"),
        (
            comparison(0.2, 0.1, 0.3, task=TASK),
            "better",
            "finetune answers more questions correctly than base",
        ),
        (
            comparison(-0.2, -0.3, -0.1, task=TASK),
            "worse",
            "finetune answers fewer questions correctly than base",
        ),
        (
            comparison(0.02, -0.01, 0.05, task=TASK),
            "undecided",
            "no difference between finetune and base is shown: +2.0 percentage points, 95 % interval −1.0 to "
            "+5.0, p = 0.010; a difference of 5.0 would be detected",
        ),
    ],
)
def test_better_and_worse_are_what_the_measure_means(
    result: EvaluationResult, found: Comparison, verdict: str, words: str
) -> None:
    assert verdicts.verdict(found) == verdict
    assert words in verdicts.describe_comparison(found, result, SOURCES)
    assert tables.difference_table([found]).rows[0][-1] == verdict


def test_no_test_beside_the_interval_is_gainsaid() -> None:
    few = comparison(0.01, 0.002, 0.02, task=TASK)
    assert verdicts.verdict(few) == "better"
    assert verdicts.verdict(few.model_copy(update={"p_adjusted": 0.06})) == "undecided"
    assert verdicts.verdict(few.model_copy(update={"p": 0.24})) == "undecided"


def test_models_that_answer_alike_say_nothing_of_what_would_be_seen(result: EvaluationResult) -> None:
    nothing = {"difference": 0.0, "interval": None, "detectable": None, "p": 1.0}
    alike = comparison(0, 0, 0, source="wiki").model_copy(update=nothing)
    assert tables.difference_table([alike]).rows[0][-2:] == ("", "identical")
    told = verdicts.describe_comparison(alike, result, {})
    assert told == "On 600 held-out documents of wiki, finetune and base are identical: no document differs."


def test_the_words_of_a_difference_say_what_was_measured_differently(result: EvaluationResult) -> None:
    found = comparison(0.1, -0.1, 0.2, task="q").model_copy(
        update={"what": "accuracy, q [prompt form: raw / chatml]", "p": 0.5}
    )
    told = verdicts.describe_comparison(found, result, {})
    assert "of q, measured differently (prompt form: raw / chatml; base / finetune), no difference" in told
    assert "differently" not in verdicts.describe_comparison(
        found.model_copy(update={"what": "accuracy, q"}), result, {}
    )


@pytest.mark.parametrize("n", [1, 2, 3, 4, 5])
def test_fewer_than_six_documents_have_no_interval_and_no_verdict(result: EvaluationResult, n: int) -> None:
    few = {"n": n, "interval": None, "detectable": None, "p": 2 / 2**n}
    found = comparison(-0.2, 0, 0, source="wiki").model_copy(update=few)
    (row,) = tables.difference_table([found]).rows
    assert row[2] == "−0.2000 (no interval)"
    assert row[-3:] == ("", "", "too few to compare")
    told = verdicts.describe_comparison(found, result, {})
    assert "95 %" not in told
    assert told.endswith("too few for a verdict.")


def test_rows_of_one_pair_are_short_and_equal_answers_are_identical() -> None:
    same, mixed = (paired_proportions(discordant, discordant, 40) for discordant in (0, 3))
    rows = [accuracy_row("runs/a", "runs/b", measured) for measured in (same, mixed)]
    table = tables.difference_table(rows)
    assert "b − a" not in table.headers
    assert "(a: runs/a, b: runs/b)" in table.caption
    assert [row[-1] for row in table.rows] == ["identical", "undecided"]
    several = tables.difference_table([*rows, accuracy_row("runs/a", "runs/c", same)])
    assert several.rows[-1][1] == "runs/c − runs/a"


def accuracy_row(a: str, b: str, measured: PairedDifference) -> Comparison:
    return Comparison(a=a, b=b, what="accuracy, x", task="x", **asdict(measured))


def test_verdicts_are_adjusted_for_all_comparisons_of_a_report(result: EvaluationResult) -> None:
    one = comparison(-0.2, -0.3, -0.1, source="pubmed")  # p = 0.01
    few = one.model_copy(update={"n": 5, "interval": None})
    several = result.model_copy(update={"differences": []}).model_dump() | {
        "differences": [one, few, *[one] * 5]
    }
    found = EvaluationResult.model_validate(several).differences
    assert [each.p_adjusted for each in found] == [pytest.approx(0.06), None, *[pytest.approx(0.06)] * 5]
    assert {each.family for each in found} == {6}
    assert {verdicts.verdict(each) for each in found} == {"undecided", "too few to compare"}
    assert "p = 0.060 (adjusted for 6 comparisons)" in verdicts.describe_comparison(found[0], result, {})
    assert "adjusted for 6 comparisons (Holm)" in tables.difference_table(found).caption
    assert (
        verdicts.verdict(EvaluationResult.model_validate(several | {"differences": [one]}).differences[0])
        == "better"
    )


def test_an_answer_by_next_token_has_a_row_of_its_own(result: EvaluationResult) -> None:
    score = result.tasks["base"][TASK].model_copy(update={"method": "next-token", "rule": None, "rules": {}})
    table = tables.rule_table(result.model_copy(update={"tasks": {"base": {TASK: score}}}))
    assert [row[2] for row in table.rows if row[1] == "base"] == ["next-token"]


def test_nothing_found_is_an_empty_table(result: EvaluationResult) -> None:
    none = EvaluationResult(rows="r", dtype="float32", seed=1, resamples=100)
    assert not tables.overview_table(none, {}).rows
    assert not tables.stage_change_table(none, {}).rows
    assert not tables.fidelity_table(none).rows


def test_fidelity_is_told_with_its_intervals(result: EvaluationResult) -> None:
    (found,) = result.fidelity
    (row,) = tables.fidelity_table(result).rows
    assert f"{found.kl_mean:.4g} [" in " ".join(row)
    assert re.search(rf"{100 * found.top_agreement:.1f} % \[", " ".join(row))
    assert f"{found.model} against {found.against}" in row


def test_truncated_prompts_and_documents_are_said(result: EvaluationResult) -> None:
    assert methods.truncation_sentence(result) == ""
    score = result.tasks["base"][TASK].model_copy(update={"truncated": 3, "n": 40})
    text = result.perplexity["base"]["wiki"].model_copy(update={"truncated": 2, "documents": 9})
    told = result.model_copy(
        update={
            "tasks": {"base": {TASK: score}},
            "perplexity": {"base": {"wiki": text}, "pretrain": {"wiki": text}},
        }
    )
    assert methods.truncation_sentence(told) == (
        f"Prompts truncated at their start: {TASK} 3 of 40. Documents truncated at their end: wiki 2 of 9."
    )
    assert {row[3] for row in tables.held_out_table(told, {}).rows} == {"9 (2 truncated)"}
    assert "40 (3 truncated)" in {row[3] for row in tables.rule_table(told).rows}
