"""A model finetuned in chat turns is asked in chat turns, and results say in which form each was asked."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from meditron.core.errors import UsageError
from meditron.evaluate.answers import answer, encode, encode_turns
from meditron.evaluate.config import EvaluateConfig
from meditron.evaluate.direct import on_task
from meditron.evaluate.eval_set import EvalSet
from meditron.evaluate.model import EvalModel
from meditron.evaluate.rows import QuestionRow, RowsFile, read_rows
from meditron.evaluate.stage import run
from meditron.store.ancestry import Training, of_base, write_ancestry
from meditron.store.artifact import Artifact
from meditron.store.results import PromptForm, read_results
from meditron.tasks.registry import open_task
from meditron.tasks.task import Task
from meditron.text.finetune_templates import answered, label
from tiny import CHAT, tiny_hf


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that was finetuned in ChatML's turns."""
    folder = tiny_hf(tmp_path_factory.mktemp("chat") / "model", seed=2, control=CHAT)
    finetuned(folder, "chatml")
    return folder


def finetuned(folder: Path, template: str) -> None:
    trained = Training(
        stage="finetune.x", kind="finetune", data="d", data_digest="d" * 64, chat_template=template, task="d"
    )
    write_ancestry(folder, of_base("base", "b" * 64).extended(trained))


def candidate(folder: Path) -> EvalModel:
    return EvalModel("m", Artifact("m", folder, ""), "float32")


def exam(task: Task, form: PromptForm = "trained", shots: int = 0) -> EvalSet:
    return EvalSet.of(task, questions=30, mode="options", rule="sum", shots=shots, seed=1, form=form)[0]


@pytest.mark.parametrize("template", ["letters", "texts"])
def test_the_tokens_are_those_that_a_finetune_trains_on(
    chat_model: Path, task_file: Path, template: str
) -> None:
    task = open_task(str(task_file), template=template)
    one = candidate(chat_model)
    for asked in exam(task).prompts(one):
        plain = task.template.render(asked.question)
        found = encode_turns(one.chat_tokenizer, asked.messages, asked.rendered.continuations, 10_000)
        for option, ids in zip(plain.continuations, found.continuations, strict=True):
            row = label(one.tokenizer, answered(plain.prompt, option, "chatml"), "chatml")
            assert [*found.prefix, *ids] == list(row.ids[: len(found.prefix) + len(ids)])
            assert row.in_loss.index(True) == len(found.prefix)
            assert sum(row.in_loss) == len(ids) + 1  # the token that ends the turn


@pytest.mark.parametrize("template", ["letters", "texts"])
def test_raw_prompts_have_the_tokens_of_training_in_plain_text(
    chat_model: Path, task_file: Path, template: str
) -> None:
    task = open_task(str(task_file), template=template)
    one = candidate(chat_model)
    for asked in exam(task, "raw").prompts(one):
        found = encode(one.tokenizer, asked.rendered.prompt, asked.rendered.continuations, 10_000)
        for option, ids in zip(asked.rendered.continuations, found.continuations, strict=True):
            row = label(one.tokenizer, answered(asked.rendered.prompt, option, "none"), "none")
            assert [*found.prefix, *ids] == list(row.ids)


def test_scores_in_turns_are_transformers_own(chat_model: Path, task_file: Path, tmp_path: Path) -> None:
    one, task = candidate(chat_model), open_task(str(task_file), template="letters")
    with RowsFile(tmp_path / "rows.jsonl", QuestionRow) as file, one:
        rows = answer(one, exam(task), file)
    theirs = AutoModelForCausalLM.from_pretrained(chat_model, dtype=torch.float32)
    for row, asked in list(zip(rows, exam(task).prompts(one), strict=True))[::6]:
        assert (row.prompt_form, row.shots) == ("chatml", 0)
        said = task.template.render(asked.question).prompt
        text = f"<|im_start|>user\n{said}<|im_end|>\n<|im_start|>assistant\n"
        assert asked.rendered.prompt == text
        ids = one.tokenizer.encode(text, special=True, bos=False)
        with torch.no_grad():
            logp = theirs(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        letters = [one.tokenizer.encode(letter, bos=False) for letter in "ABC"]
        assert row.scores["sum"] == pytest.approx([float(logp[token]) for [token] in letters], abs=1e-4)


def test_solved_questions_are_turns_of_their_own(chat_model: Path, task_file: Path) -> None:
    for asked in exam(open_task(str(task_file), template="letters"), shots=3).prompts(candidate(chat_model)):
        assert [m["role"] for m in asked.messages] == ["user", "assistant"] * 3 + ["user"]
        assert len(asked.shot_ids) == 3
        assert all(m["content"] in ("A", "B", "C") for m in asked.messages[1::2])


def test_a_control_tokens_name_in_a_question_opens_no_turn(chat_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    rows = [{"id": n, "question": f"<|im_end|> {n}", "options": ["a", "b"], "gold": 0} for n in range(2)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    one = candidate(chat_model)
    [end] = one.tokenizer.encode("<|im_end|>", special=True, bos=False)
    for asked in exam(open_task(str(path))).prompts(one):
        found = encode_turns(one.chat_tokenizer, asked.messages, asked.rendered.continuations, 10_000)
        assert found.prefix.count(end) == 1


def test_a_base_is_asked_raw_and_both_forms_stand_beside_each_other(
    tiny: Path, chat_model: Path, corpus: Path, task_file: Path, tmp_path: Path
) -> None:
    paths = {"base": tiny, "finetune": chat_model, "corpus": corpus, str(task_file): task_file}
    inputs = {name: Artifact(name, path, "d") for name, path in paths.items()}
    asked = {"models": ("base", "finetune"), "tasks": (str(task_file),), "seed": 1, "resamples": 200}
    run(EvaluateConfig.model_validate(asked), inputs, tmp_path / "out")
    found = read_results(tmp_path / "out")
    assert [found.tasks[name]["drugs"].prompt_form for name in ("base", "finetune")] == ["raw", "chatml"]
    of_task = [one for one in found.differences if one.task]
    assert {one.unlike for one in of_task} == {("prompt form: raw / chatml",)}
    assert of_task[0].what == "accuracy, drugs [prompt form: raw / chatml]"
    run(EvaluateConfig.model_validate(asked | {"prompt_form": "both"}), inputs, tmp_path / "both")
    found = read_results(tmp_path / "both")
    assert [found.tasks["finetune"][name].prompt_form for name in ("drugs", "drugs (raw)")] == [
        "chatml",
        "raw",
    ]
    assert {one.unlike for one in found.differences if one.task == "drugs (raw)"} == {()}
    rows = read_rows(tmp_path / "both" / "drugs.jsonl", QuestionRow)
    counted = dict.fromkeys((("base", "raw"), ("finetune", "raw"), ("finetune", "chatml")), 0)
    for row in rows:
        counted[row.model, row.prompt_form] += 1
    assert set(counted.values()) == {30}


def test_without_a_template_left_it_says_so(tmp_path: Path, task_file: Path) -> None:
    folder = tiny_hf(tmp_path / "m")
    finetuned(folder, "tokenizer")
    with pytest.raises(UsageError, match="has no chat template now"):
        on_task(str(folder), str(task_file), out=tmp_path / "out")
    found, _ = on_task(str(folder), str(task_file), prompt_form="raw", out=tmp_path / "out")
    [score] = found.tasks[str(folder)].values()
    assert score.prompt_form == "raw"


def test_every_prompt_has_the_reported_number_of_shots(tiny: Path, tmp_path: Path) -> None:
    """Copies of the asked question, under other ids, are not its shots, and do not shorten the prompt."""
    rows = [
        {"id": f"q{n}", "question": f"Case {n % 4}", "options": ["x", "y"], "gold": n % 2} for n in range(40)
    ]
    path = tmp_path / "q.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = open_task(str(path))
    for asked in exam(task, shots=3).prompts(candidate(tiny)):
        assert len(asked.shot_ids) == 3
        assert asked.rendered.prompt.count(asked.question.text) == 1
        assert asked.rendered.prompt.count("Case") == 4
    with pytest.raises(UsageError, match="4 different training questions: too few for 4 shots"):
        exam(task, shots=4)


def test_the_chat_template_travels_with_the_weights_only(chat_model: Path, tmp_path: Path) -> None:
    """The form is the ancestry's: a base that happens to have a chat template is asked raw."""
    copy = tmp_path / "copy"
    shutil.copytree(chat_model, copy)
    (copy / "ancestry.json").unlink()
    assert candidate(copy).trained_form == "raw"
    finetuned(copy, "none")
    assert candidate(copy).trained_form == "raw"
