"""Seeds: other examples and other samples in rows of their own, and the spread of the score over them."""

import json
from pathlib import Path
from statistics import mean, stdev

import pytest
from pydantic import ValidationError

from meditron.evaluate.compare import compare_results
from meditron.evaluate.config import EvalOptions
from meditron.evaluate.standalone import evaluate_on_task
from meditron.report.robustness import seed_table


def rows_of(file: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def test_each_seed_gives_the_score_of_an_evaluation_with_it(
    tiny: Path, task_file: Path, tmp_path: Path
) -> None:
    options = EvalOptions(shots=1, resamples=200)
    several = options.model_copy(update={"seeds": 6})
    result, file = evaluate_on_task(str(tiny), str(task_file), several, out=tmp_path / "all", seed=3)
    [score] = result.tasks[str(tiny)].values()
    assert score.seeds is not None
    alone = []
    for seed in range(3, 9):
        one, _ = evaluate_on_task(str(tiny), str(task_file), options, out=tmp_path / str(seed), seed=seed)
        alone += [single.accuracy for single in one.tasks[str(tiny)].values()]
    seeds = score.seeds
    assert (seeds.seeds, list(seeds.accuracies)) == (tuple(range(3, 9)), alone)
    assert seeds.accuracy == pytest.approx(mean(alone))
    assert seeds.deviation == pytest.approx(stdev(alone))
    assert score.accuracy == alone[0]
    if seeds.deviation:
        assert seeds.interval is not None
        assert seeds.interval[0] < seeds.accuracy < seeds.interval[1]
    assert seeds.question_interval is not None
    rows = rows_of(file)
    assert {row["seed_offset"] for row in rows} == set(range(6))
    answers: dict[object, set[object]] = {}
    for row in rows:
        answers.setdefault(row["id"], set()).add(row["prediction"])
    assert seeds.same_option == sum(len(each) == 1 for each in answers.values()) / 30
    [cells] = seed_table(result).rows
    assert cells[2] == "6"


def test_only_the_first_seed_is_compared_and_rows_are_reused(
    tiny: Path, other_tiny: Path, task_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = EvalOptions(shots=1, resamples=200)
    several = options.model_copy(update={"seeds": 2})
    for model, name in ((tiny, "a"), (other_tiny, "b")):
        evaluate_on_task(str(model), str(task_file), several, out=tmp_path / name)
    [comparison] = compare_results(str(tmp_path / "a"), str(tmp_path / "b"), resamples=200)
    assert comparison.n == 30
    before = rows_of(tmp_path / "a/drugs.jsonl")
    capsys.readouterr()
    # The second seed becomes the first of another evaluation: its rows are reused, and compared from now on.
    evaluate_on_task(str(tiny), str(task_file), options, out=tmp_path / "a", seed=2)
    assert capsys.readouterr().err.count("evaluate ") == 0
    after = rows_of(tmp_path / "a/drugs.jsonl")
    assert [row | {"seed_offset": 0} for row in before] == after


def test_sampled_answers_have_several_seeds_and_scores_without_draws_have_none(
    tiny: Path, task_file: Path, tmp_path: Path
) -> None:
    options = EvalOptions(
        methods=("loglikelihood", "self-consistency"), seeds=2, samples=2, max_tokens=2, questions=4
    )
    result, file = evaluate_on_task(str(tiny), str(task_file), options, out=tmp_path / "out")
    first, second = result.tasks[str(tiny)].values()
    assert (first.seeds, second.seeds is None) == (None, False)
    sampled = [row for row in rows_of(file) if row["method"] == "self-consistency"]
    assert {(row["seed"], row["seed_offset"]) for row in sampled} == {(1, 0), (2, 1)}
    for nothing_drawn in ({}, {"methods": ("cot",)}, {"methods": ("cot",), "temperature": 0.0}):
        with pytest.raises(
            ValidationError, match="seeds must be 1 without shots and without sampled answers"
        ):
            EvalOptions.model_validate({"seeds": 2, **nothing_drawn})
