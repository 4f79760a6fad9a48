"""Few-shot examples: where they come from, and how much of the prompts they let engines share."""

import hashlib
import json
from pathlib import Path

import pytest
from pydantic import ValidationError

from meditron.core.errors import InputError, UsageError
from meditron.evaluate.config import EvalOptions, EvaluateConfig
from meditron.evaluate.eval_set import EvalSet
from meditron.evaluate.model import LocalModel
from meditron.evaluate.rows import QuestionRow
from meditron.evaluate.rows_file import read_rows
from meditron.evaluate.stage import run
from meditron.evaluate.standalone import evaluate_on_task
from meditron.store.manifest import Artifact
from meditron.store.results import read_results
from meditron.tasks.registry import open_task


def write_questions(path: Path, texts: list[str]) -> Path:
    rows = [
        {"id": f"{path.stem}-{n}", "question": text, "options": ["x", "y"], "gold": n % 2}
        for n, text in enumerate(texts)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    return write_questions(tmp_path / "own.jsonl", [f"Own question {n}?" for n in range(20)])


@pytest.fixture
def other(tmp_path: Path) -> Path:
    """A file of examples, one of which repeats a question of the task."""
    texts = [f"Other question {n}?" for n in range(5)] + ["own  question 3?"]
    return write_questions(tmp_path / "other.jsonl", texts)


def eval_set(questions: Path, shots: int, shots_from: Path | None = None) -> EvalSet:
    options = EvalOptions(shots=shots)
    return EvalSet.from_task(open_task(str(questions)), options, seed=1, shots_from=shots_from)[0]


def model(folder: Path) -> LocalModel:
    return LocalModel("base", Artifact("base", folder, "d"), "float32")


def test_examples_come_from_another_file_and_never_repeat_the_question(
    tiny: Path, questions: Path, other: Path
) -> None:
    drawn = eval_set(questions, 5, other)
    assert {example.id for example in drawn.examples.drawn_questions} == {f"other-{n}" for n in range(6)}
    for prompt in drawn.prompts(model(tiny)):
        assert len(prompt.shot_ids) == 5
        assert prompt.rendered.prompt.lower().count(prompt.question.text.lower()) == 1
        assert all(id_.startswith("other-") for id_ in prompt.shot_ids)


def test_the_file_of_examples_is_recorded_in_rows_and_results(
    tiny: Path, questions: Path, other: Path, tmp_path: Path
) -> None:
    sha256 = hashlib.sha256(other.read_bytes()).hexdigest()
    options = EvalOptions(shots=2, shots_from=str(other))
    result, path = evaluate_on_task(str(tiny), str(questions), options, out=tmp_path / "out")
    [score] = result.tasks[str(tiny)].values()
    assert (score.shots, score.shots_from, score.shots_sha256) == (2, "other.jsonl", sha256)
    for row in read_rows(path, QuestionRow):
        assert row.shots_sha256 == sha256
        assert set(row.shot_ids) <= set(score.shot_ids)


def test_rows_follow_a_change_of_the_file_that_no_prompt_shows(
    tiny: Path, questions: Path, other: Path, tmp_path: Path
) -> None:
    options = EvalOptions(shots=1, shots_from=str(other))
    first, _ = evaluate_on_task(str(tiny), str(questions), options, out=tmp_path / "out")
    other.write_text(other.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    second, path = evaluate_on_task(str(tiny), str(questions), options, out=tmp_path / "out")
    [before], [after] = (result.tasks[str(tiny)].values() for result in (first, second))
    assert before.prompt_sha256 == after.prompt_sha256
    sha256 = hashlib.sha256(other.read_bytes()).hexdigest()
    assert sorted({str(row.shots_sha256) for row in read_rows(path, QuestionRow)}) == sorted(
        [str(before.shots_sha256), sha256]
    )


def test_a_recipe_names_the_file_as_an_input(
    tiny: Path, corpus: Path, questions: Path, other: Path, tmp_path: Path
) -> None:
    config = EvaluateConfig(
        models=("base",), tasks=(str(questions),), shots=2, shots_from=str(other), seed=1, resamples=200
    )
    assert config.inputs()[str(other)] == str(other)
    assert config.input_kinds()[str(other)].name == "questions"
    paths = {"base": tiny, "corpus": corpus, str(questions): questions, str(other): other}
    run(config, {name: Artifact(name, path, "d") for name, path in paths.items()}, tmp_path / "out")
    assert read_results(tmp_path / "out").tasks["base"]["own"].shots_from == "other.jsonl"


def test_a_question_among_the_examples_does_not_change_the_other_prompts(
    tiny: Path, questions: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Only it gets the replacement, in last place: prompts share all examples before the one left out."""
    drawn = eval_set(questions, 5)
    said = " ".join(capsys.readouterr().err.split())
    assert "6 of the 6 questions drawn as examples are evaluated ones" in said
    common = [example.id for example in drawn.examples.drawn_questions[:5]]
    replacement = drawn.examples.drawn_questions[5].id
    prompts = {prompt.question.id: prompt for prompt in drawn.prompts(model(tiny))}
    for id_, prompt in prompts.items():
        if id_ not in common:
            assert list(prompt.shot_ids) == common
            continue
        place = common.index(id_)
        assert list(prompt.shot_ids) == [*common[:place], *common[place + 1 :], replacement]


def test_too_few_examples_name_the_file(questions: Path, other: Path) -> None:
    with pytest.raises(UsageError, match=r"other\.jsonl has 6 different training questions: too few for 6"):
        eval_set(questions, 6, other)
    other.write_text("{}\n", encoding="utf-8")
    with pytest.raises(InputError, match=r"other\.jsonl"):
        eval_set(questions, 1, other)


def test_exactly_as_many_examples_as_shots_are_enough_if_none_repeats_a_question(
    tiny: Path, questions: Path, other: Path, tmp_path: Path
) -> None:
    """MMLU's `dev` files have five questions each, and its usual evaluation shows all five."""
    five = write_questions(tmp_path / "dev.jsonl", [f"Other question {n}?" for n in range(5)])
    for prompt in eval_set(questions, 5, five).prompts(model(tiny)):
        assert sorted(prompt.shot_ids) == [f"dev-{n}" for n in range(5)]
    # A larger file is drawn from as before: its scores must not change.
    assert len(eval_set(questions, 4, five).examples.drawn_questions) == 5


def test_a_file_of_examples_without_shots_is_refused(other: Path) -> None:
    with pytest.raises(ValidationError, match="shots must be at least 1 with shots_from, got 0"):
        EvalOptions(shots_from=str(other))


def test_the_file_of_examples_is_never_overwritten(tiny: Path, questions: Path, tmp_path: Path) -> None:
    folder = tmp_path / "out"
    folder.mkdir()
    examples = write_questions(folder / "own.jsonl", [f"Example {n}?" for n in range(5)])
    content = examples.read_bytes()
    options = EvalOptions(shots=2, shots_from=str(examples))
    with pytest.raises(UsageError, match="never overwritten"):
        evaluate_on_task(str(tiny), str(questions), options, out=folder)
    assert examples.read_bytes() == content
