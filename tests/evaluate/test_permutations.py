"""Option orders: seeded, all different, in rows of their own; and the scores over them."""

import json
from collections import Counter
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import pytest

from meditron.core.errors import UsageError
from meditron.evaluate.compare import compare_results
from meditron.evaluate.config import EvalOptions
from meditron.evaluate.permutations import permute_options
from meditron.evaluate.standalone import evaluate_on_task
from meditron.report.robustness import order_table
from meditron.tasks.question import Question

QUESTION = Question(id="q1", text="Which?", options=("a", "b", "c", "d"), gold=2)


def test_orders_are_seeded_different_and_keep_the_gold_option() -> None:
    made = permute_options(QUESTION, 23, seed=1)
    assert {question.options for question in made} == set(permutations("abcd")) - {("a", "b", "c", "d")}
    for question in made:
        assert question.options[question.gold] == "c"
        assert tuple(QUESTION.options[index] for index in question.option_order) == question.options
    assert permute_options(QUESTION, 23, seed=1) == made
    assert permute_options(QUESTION, 5, seed=1) == made[:5]
    assert permute_options(QUESTION, 5, seed=2) != made[:5]
    assert permute_options(replace(QUESTION, id="q2"), 5, seed=1) != made[:5]


def test_every_order_is_equally_likely() -> None:
    drawn = Counter(permute_options(replace(QUESTION, id=str(n)), 1, seed=1)[0].options for n in range(4600))
    assert len(drawn) == 23
    assert all(140 < count < 260 for count in drawn.values())  # 200 expected, standard deviation 14


def test_more_orders_than_there_are_is_an_error() -> None:
    two = replace(QUESTION, options=("yes", "no"), gold=0)
    assert len(permute_options(two, 1, seed=1)) == 1
    with pytest.raises(UsageError, match="question q1 has 2 options, so 2 orders; permutations asks for 3"):
        permute_options(two, 2, seed=1)


def test_the_scores_are_those_of_the_rows(tiny: Path, task_file: Path, tmp_path: Path) -> None:
    options = EvalOptions(permutations=3, resamples=200)
    result, file = evaluate_on_task(str(tiny), str(task_file), options, out=tmp_path / "out")
    [score] = result.tasks[str(tiny)].values()
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 90
    assert len({row["cache_key"] for row in rows}) == 3
    by_question: dict[str, list[bool]] = {}
    for row in rows:
        by_question.setdefault(row["id"], []).append(row["correct"])
    orders = score.permutations
    assert orders is not None
    assert (score.n, orders.orders) == (30, 3)
    assert orders.accuracy == pytest.approx(sum(row["correct"] for row in rows) / 90)
    assert orders.every_order == sum(all(right) for right in by_question.values()) / 30
    assert orders.accuracies[0] == score.accuracy
    assert score.accuracy == sum(row["correct"] for row in rows if not row["option_order"]) / 30
    assert orders.interval is not None
    assert orders.interval[0] <= orders.accuracy <= orders.interval[1]
    assert order_table(result).rows[0][2] == "3"


def test_permuted_rows_are_reused_and_never_mixed_with_others(
    tiny: Path, other_tiny: Path, task_file: Path, tmp_path: Path
) -> None:
    plain, file = evaluate_on_task(str(tiny), str(task_file), EvalOptions(), out=tmp_path / "a")
    before = file.read_bytes().splitlines()
    permuted, _ = evaluate_on_task(str(tiny), str(task_file), EvalOptions(permutations=2), out=tmp_path / "a")
    assert set(before) < set(file.read_bytes().splitlines())
    [one], [two] = plain.tasks[str(tiny)].values(), permuted.tasks[str(tiny)].values()
    assert one == two.model_copy(update={"permutations": None})
    evaluate_on_task(str(other_tiny), str(task_file), EvalOptions(permutations=3), out=tmp_path / "b")
    [difference] = compare_results(str(tmp_path / "a"), str(tmp_path / "b"), resamples=200)
    assert difference.n == 30


def test_a_template_that_hides_the_options_is_refused(tiny: Path, task_file: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="the template 'texts' does not show the options"):
        evaluate_on_task(
            str(tiny), str(task_file), EvalOptions(permutations=2), template="texts", out=tmp_path / "out"
        )
