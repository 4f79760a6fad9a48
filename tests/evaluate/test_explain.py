"""Attribution of the difference between two results: planted changes, chains of evaluations, real models."""

import json
import re
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, Literal

import pytest

from evaluate.test_forms import finetuned
from evaluate.toy_vote import ToyVote, ToyVoteRow
from meditron.core.errors import UsageError
from meditron.core.statistics import mcnemar
from meditron.evaluate.config import EvalOptions
from meditron.evaluate.explain_results import explain_results
from meditron.evaluate.methods.base import question_row_adapter
from meditron.evaluate.methods.registry import METHODS
from meditron.evaluate.rescore import RunOptions
from meditron.evaluate.rows import QuestionRow
from meditron.evaluate.rows_file import RowsFile, read_rows
from meditron.evaluate.standalone import evaluate_on_task
from meditron.report.explanation import explanation_sentence
from meditron.store.explanations import Explanation
from tiny import CHAT, tiny_hf

N = 40
ANSWERS = {  # questions that a change makes right, and those that it makes wrong
    "gained": frozenset({0, 1, 2, 3, 4, 5, 6}),
    "lost": frozenset({20, 21}),
}


def answers(right: Sequence[int] | frozenset[int], **changed: Any) -> list[QuestionRow]:
    """Rows of one evaluation, with these questions right; `changed` are its settings."""
    fields = {"task": "q", "version": 1, "data_sha256": "d", "template": "letters/1", "prompt_form": "raw"}
    fields |= {"method": "loglikelihood", "shots": 0, "engine": "torch", "dtype": "float32"}
    own = {"rule": "sum", "scores": {}, "option_probability_mass": 0.5}
    if changed.get("method") == "next-token":
        own = {
            "token": "x",
            "constrained": False,
            "free_prediction": None,
            "scores": {"first-token": ()},
            "option_probability_mass": 0.5,
        }
    elif changed.get("method") == "cot":
        own = {"outputs": (), "votes": (), "samples": 1, "temperature": 0.0, "max_tokens": 4, "unfinished": 0}
        own |= {"extraction": "explicit", "parser": 1, "seed": 1}
    elif changed.get("method") == "toy-settings":
        own = {"outputs": (), "votes": (), "parser": 1, "permutations": 1, "temperature": 0.0}
    fields |= {
        "model": "m",
        "model_digest": "m" * 64,
        "cache_key": f"{sorted(changed.items())} {sorted(right)}",
    }
    # A prompt depends on what the prompt is made of.
    prompt = str([changed.get(key) for key in ("version", "template", "prompt_form", "shots", "shot_ids")])
    return [
        question_row_adapter().validate_python(
            fields
            | {"id": f"q{i}", "question_sha256": f"{i:064x}", "prompt_sha256": f"{i} {prompt}", "gold": 0}
            | {"prediction": int(i not in right), "correct": i in right}
            | own
            | changed
        )
        for i in range(N)
    ]


def write(folder: Path, *groups: list[QuestionRow]) -> str:
    with RowsFile(folder / "q.jsonl", QuestionRow) as file:
        file.rewrite_sorted([row for group in groups for row in group])
    return str(folder)


class ToySettingsRow(ToyVoteRow):
    """Rows of a method with settings of its own, as a method of someone else may have them."""

    method: Literal["toy-settings"]  # type: ignore[assignment]
    parser: int
    permutations: int
    temperature: float


class ToySettings(ToyVote):
    name = "toy-settings"
    row_type = ToySettingsRow


@pytest.fixture
def toy_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "toy-settings", f"{__name__}:ToySettings")


BASE = frozenset(range(18, 30))
PLANTED = (BASE | ANSWERS["gained"]) - ANSWERS["lost"]
TOY = {"method": "toy-settings"}


@pytest.mark.usefixtures("toy_settings")
@pytest.mark.parametrize(
    ("factor", "before", "after"),
    [
        ("model", {}, {"model_digest": "n" * 64}),
        ("task version", {}, {"version": 2}),
        ("template", {}, {"template": "texts/1"}),
        ("prompt form", {}, {"prompt_form": "chatml"}),
        ("shots", {}, {"shots": 2, "shot_ids": ("x", "y")}),
        ("shots", {"shots": 1, "shot_ids": ("x",)}, {"shots": 1, "shot_ids": ("z",)}),
        ("prompt text", {}, {"prompt_sha256": "edited"}),
        ("method", {}, {"method": "next-token"}),
        ("method", {}, {"method": "cot", "template": "letters-cot/1"}),
        ("method", {"method": "cot", "template": "letters-cot/1"}, {}),
        ("rule", {}, {"rule": "bytes"}),
        ("engine", {}, {"engine": "llama.cpp"}),
        ("dtype", {}, {"dtype": "bfloat16"}),
        ("parser", TOY, TOY | {"parser": 2}),
        ("permutations", TOY, TOY | {"permutations": 4}),
        ("temperature", TOY, TOY | {"temperature": 0.8}),
        ("computation", {}, {"cache_key": "another batch size"}),
    ],
)
def test_a_planted_change_of_one_factor_is_attributed_to_it(
    tmp_path: Path, factor: str, before: dict[str, Any], after: dict[str, Any]
) -> None:
    a = write(tmp_path / "a", answers(BASE, **before))
    b = write(tmp_path / "b", answers(PLANTED, **after))
    [result] = explain_results(a, b)
    assert result.factors == (factor,)
    [effect] = result.effects
    assert effect.factors == (factor,)
    assert (effect.n, effect.gained, effect.lost) == (N, 7, 2)
    assert effect.difference == pytest.approx(result.difference) == pytest.approx(5 / N)
    assert effect.p == effect.p_adjusted == mcnemar(7, 2)
    assert {(flip.id, flip.effect) for flip in effect.flips} == {
        (f"q{i}", kind) for kind, numbers in ANSWERS.items() for i in numbers
    }
    assert result.missing == ()


def test_a_change_that_gains_as_much_as_it_loses_is_not_without_effect(tmp_path: Path) -> None:
    a = write(tmp_path / "a", answers(BASE))
    swapped = write(tmp_path / "b", answers((BASE - {18, 19}) | {0, 1}, dtype="bfloat16"))
    same = write(tmp_path / "c", answers(BASE, dtype="bfloat16"))
    [result] = explain_results(a, swapped)
    assert result.difference == 0
    assert "as many answers became right as wrong" in explanation_sentence(result)
    [result] = explain_results(a, same)
    assert "without an effect: dtype" in explanation_sentence(result)


def test_equal_results_have_nothing_to_explain(tmp_path: Path) -> None:
    a = write(tmp_path / "a", answers(BASE))
    [result] = explain_results(a, write(tmp_path / "b", answers(BASE)))
    assert (result.factors, result.effects, result.difference) == ((), (), 0)


SETTINGS = {"template": "texts/1", "method": "next-token", "dtype": "bfloat16"}
EFFECTS = {"template": {0, 1, 2}, "method": {1, 2, 20}, "dtype": {30}}  # answers that each factor inverts


def between(changed: Sequence[str]) -> list[QuestionRow]:
    right = set(BASE)
    for name in changed:
        right ^= EFFECTS[name]
    return answers(frozenset(right), **{name: SETTINGS[name] for name in changed})


def test_evaluations_in_between_separate_the_factors(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a", between([])), write(tmp_path / "b", between([*SETTINGS]))
    [together] = explain_results(a, b)
    assert [effect.factors for effect in together.effects] == [("template", "method", "dtype")]
    assert together.missing == ("template texts/1, with method, dtype as in a",)
    all_subsets = [between(names) for size in (1, 2) for names in combinations(SETTINGS, size)]
    [apart] = explain_results(a, b, also=[write(tmp_path / "c", *all_subsets)])
    assert [effect.factors for effect in apart.effects] == [("template",), ("method",), ("dtype",)]
    for effect in apart.effects:
        assert {int(flip.id[1:]) for flip in effect.flips} == EFFECTS[effect.factors[0]]
        assert effect.p_adjusted is not None
        assert effect.p is not None
        assert effect.p_adjusted >= effect.p
    assert sum(effect.difference for effect in apart.effects) == pytest.approx(apart.difference)
    assert apart.missing == ()


def test_the_instruction_to_reason_is_part_of_the_method(tmp_path: Path) -> None:
    reasoning = {"method": "cot", "template": "texts-cot/1"}
    a, b = write(tmp_path / "a", answers(BASE)), write(tmp_path / "b", answers(PLANTED, **reasoning))
    [together] = explain_results(a, b)
    assert together.factors == ("template", "method")
    assert together.missing == ("template texts/1, with method as in a",)
    texts = write(tmp_path / "texts", answers(BASE - {18}, template="texts/1"))
    letters = write(tmp_path / "letters", answers(BASE, **reasoning | {"template": "letters-cot/1"}))
    for also, order in ((texts, ["template", "method"]), (letters, ["method", "template"])):
        [apart] = explain_results(a, b, also=[also])
        assert [effect.factors for effect in apart.effects] == [(name,) for name in order]
    # Reports show the template with the instruction, explanations the one without it.
    for name in ("texts", "texts/1", "texts-cot", "texts-cot/1"):
        assert explain_results(a, b, b_setting={"template": name}) == [together]


def test_the_longest_chain_is_taken_and_the_rest_is_together(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a", between([])), write(tmp_path / "b", between([*SETTINGS]))
    # Of another model, with fewer questions, and with other prompts: none of these is in between.
    wrong = [
        [row.model_copy(update={"model_digest": "x" * 64}) for row in between(["template"])],
        between(["template"])[:30],
        [row.model_copy(update={"prompt_sha256": "?"}) for row in between(["template"])],
    ]
    others = [write(tmp_path / f"w{n}", rows) for n, rows in enumerate(wrong)]
    [result] = explain_results(a, b, also=[*others, write(tmp_path / "c", between(["dtype"]))])
    assert [effect.factors for effect in result.effects] == [("dtype",), ("template", "method")]
    assert result.missing == ("template texts/1, with method as in a",)


def test_other_questions_are_a_factor_of_their_own(tmp_path: Path) -> None:
    """Ten questions are in one result only, and the gold of two others was corrected."""
    first, second = answers(BASE)[:35], answers(PLANTED, dtype="bfloat16")[5:]
    mended = {"question_sha256": "f" * 64, "gold": 1, "correct": True, "prediction": 1}
    second = [row.model_copy(update=mended) if row.id in ("q7", "q8") else row for row in second]
    [result] = explain_results(write(tmp_path / "a", first), write(tmp_path / "b", second))
    assert (result.factors, result.n) == (("data", "dtype"), 28)
    dtype, data = result.effects
    assert (dtype.factors, dtype.gained, dtype.lost) == (("dtype",), 2, 2)
    assert data.changes == (
        "5 questions in a only",
        "5 questions in b only",
        "2 questions with other words, options or gold",
    )
    assert (data.gained, data.lost, data.p, data.interval) == (2, 0, None, None)
    assert result.accuracy_a == sum(row.correct for row in first) / 35
    assert dtype.difference + data.difference == pytest.approx(result.difference)
    with pytest.raises(UsageError, match="no question of q in common"):
        explain_results(write(tmp_path / "c", first[:5]), write(tmp_path / "d", second[-5:]))


def test_one_of_several_evaluations_is_selected(tmp_path: Path) -> None:
    file = write(tmp_path, between([]), between(["template"]), between(["template", "dtype"]))
    with pytest.raises(UsageError, match="3 evaluations of q with these settings") as error:
        explain_results(file, file)
    assert "template letters/1 or texts/1; dtype bfloat16 or float32" in str(error.value.hint)
    with pytest.raises(UsageError, match="no evaluation of q"):
        explain_results(file, file, a_setting={"template": "none"})
    [result] = explain_results(
        file,
        file,
        a_setting={"template": "letters"},
        b_setting={"template": "texts/1", "dtype": "bfloat16"},
    )
    assert [effect.factors for effect in result.effects] == [("template",), ("dtype",)]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that was finetuned in ChatML's turns."""
    folder = tiny_hf(
        tmp_path_factory.mktemp("chat") / "model", seed=2, control=CHAT, max_position_embeddings=1024
    )
    finetuned(folder, "chatml")
    return folder


@pytest.fixture
def score(model: Path, task_file: Path, tmp_path: Path) -> Any:
    """`score(name, template=…, seed=…, **options)` evaluates the model and returns the folder of its rows."""

    def evaluate(name: str, *, template: str = "texts", seed: int = 1, **options: Any) -> str:
        settings = EvalOptions.model_validate({"prompt_form": "raw", **options})
        evaluate_on_task(
            str(model), str(task_file), settings, template=template, out=tmp_path / name, seed=seed
        )
        return str(tmp_path / name)

    return evaluate


def accuracies(result: Explanation, a: str, b: str) -> None:
    """Compare the ends of the explanation with the rows."""
    for folder, accuracy in ((a, result.accuracy_a), (b, result.accuracy_b)):
        rows = read_rows(Path(folder) / "drugs.jsonl", QuestionRow)
        assert accuracy == sum(row.correct for row in rows) / 30
    assert sum(effect.difference for effect in result.effects) == pytest.approx(result.difference)


@pytest.mark.parametrize(
    ("factor", "changed"),
    [
        ("template", {"template": "letters"}),
        ("shots", {"shots": 2}),
        ("prompt form", {"prompt_form": "trained"}),
        ("method", {"methods": ("next-token",)}),
        ("method", {"methods": ("cot",), "max_tokens": 4}),
        ("rule", {"rule": "calibrated"}),
        ("dtype", {"dtype": "bfloat16"}),
        ("data", {"questions": 20}),
    ],
)
def test_a_real_change_of_one_setting_is_attributed_to_it(
    score: Any, factor: str, changed: dict[str, Any]
) -> None:
    a, b = score("a"), score("b", **changed)
    [result] = explain_results(a, b)
    assert result.factors == (factor,)
    assert [effect.factors for effect in result.effects] == [(factor,)]
    if factor != "data":
        accuracies(result, a, b)


def test_missing_evaluations_are_run(score: Any, model: Path, task_file: Path, tmp_path: Path) -> None:
    a = score("a", dtype="float32")
    b = score("b", template="letters", shots=2, seed=5, rule="calibrated", dtype="bfloat16")
    assert [len(effect.factors) for effect in explain_results(a, b)[0].effects] == [1, 3], (
        "the rule needs no run"
    )
    run = RunOptions(task=str(task_file), model=str(model), seed=5, out=tmp_path / "between")
    [result] = explain_results(a, b, run=run)
    assert [effect.factors for effect in result.effects] == [("template",), ("shots",), ("rule",), ("dtype",)]
    accuracies(result, a, b)
    [again] = explain_results(a, b, also=[str(tmp_path / "between")])
    assert again.effects == result.effects
    lines = (tmp_path / "between" / "drugs.jsonl").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 60, "two evaluations of 30 questions"
    # Another seed draws other examples, which are no setting of either side.
    wrong = RunOptions(task=str(task_file), model=str(model), seed=6, out=tmp_path / "other")
    [result] = explain_results(a, b, run=wrong)
    assert ("shots",) not in [effect.factors for effect in result.effects]
    assert result.missing


def test_missing_evaluations_with_reasoning_are_run(
    score: Any, model: Path, task_file: Path, tmp_path: Path
) -> None:
    cot = {"methods": ("cot",), "max_tokens": 4}
    a, b = score("a", **cot), score("b", template="letters", dtype="bfloat16", **cot)
    run = RunOptions(task=str(task_file), model=str(model), out=tmp_path / "between")
    [result] = explain_results(a, b, run=run)
    assert [effect.factors for effect in result.effects] == [("template",), ("dtype",)]
    accuracies(result, a, b)


def test_the_table_of_rows_is_json(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a", answers(BASE)), write(tmp_path / "b", answers(PLANTED, dtype="bfloat16"))
    text = explain_results(a, b)[0].model_dump_json()
    assert re.search(r'"effect":"gained"', text)
    assert Explanation.model_validate(json.loads(text)) == explain_results(a, b)[0]
