"""A model finetuned in chat turns is asked in chat turns, and results say in which form each was asked."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from meditron.core.errors import UsageError
from meditron.evaluate.answers import answer_questions
from meditron.evaluate.config import EvalOptions, EvaluateConfig
from meditron.evaluate.eval_set import EvalSet
from meditron.evaluate.model import LocalModel
from meditron.evaluate.prompts import encode_chat_prompt, encode_plain_prompt
from meditron.evaluate.rows import QuestionRow
from meditron.evaluate.rows_file import RowsFile, read_rows
from meditron.evaluate.stage import run
from meditron.evaluate.standalone import evaluate_on_task
from meditron.store.ancestry import Training, untrained_ancestry, write_ancestry
from meditron.store.files import canonical_json, sha256_file
from meditron.store.manifest import Artifact
from meditron.store.results import PromptForm, read_results
from meditron.tasks.registry import open_task
from meditron.tasks.task import Task
from meditron.text.finetune_templates import question_turns, tokenize_conversation
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
    write_ancestry(folder, untrained_ancestry("base", "b" * 64).with_training(trained))


def local_model(folder: Path) -> LocalModel:
    return LocalModel("m", Artifact("m", folder, ""), "float32")


def eval_set(task: Task, form: PromptForm = "trained", shots: int = 0) -> EvalSet:
    return EvalSet.from_task(task, EvalOptions(questions=30, shots=shots, prompt_form=form), seed=1)[0]


def test_stop_tokens_are_part_of_a_models_identity(tmp_path: Path, chat_model: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(chat_model, folder)
    settings = folder / "generation_config.json"
    settings.unlink(missing_ok=True)
    without = local_model(folder)
    files = [[file.name, sha256_file(file)] for file in without.content_files]
    assert settings.name not in {name for name, _ in files}
    assert without.digest == hashlib.sha256(canonical_json(files)).hexdigest()
    digests = {without.digest}
    for stop in (1, 2):
        settings.write_text(json.dumps({"eos_token_id": [stop]}))
        digests.add(local_model(folder).digest)
    assert len(digests) == 3


@pytest.mark.parametrize("template", ["letters", "texts"])
def test_the_tokens_are_those_that_a_finetune_trains_on(
    chat_model: Path, task_file: Path, template: str
) -> None:
    task = open_task(str(task_file), template=template)
    model = local_model(chat_model)
    for prompt in eval_set(task).prompts(model):
        plain = task.template.render(prompt.question)
        result = encode_chat_prompt(
            model.chat_tokenizer, prompt.messages, prompt.rendered.continuations, 10_000
        )
        for option, ids in zip(plain.continuations, result.continuations, strict=True):
            row = tokenize_conversation(
                model.tokenizer, question_turns(plain.prompt, option, "chatml"), "chatml"
            )
            assert [*result.prefix, *ids] == list(row.ids[: len(result.prefix) + len(ids)])
            assert row.in_loss.index(True) == len(result.prefix)
            assert sum(row.in_loss) == len(ids) + 1  # the token that ends the turn


@pytest.mark.parametrize("template", ["letters", "texts"])
def test_raw_prompts_have_the_tokens_of_training_in_plain_text(
    chat_model: Path, task_file: Path, template: str
) -> None:
    task = open_task(str(task_file), template=template)
    model = local_model(chat_model)
    for prompt in eval_set(task, "raw").prompts(model):
        result = encode_plain_prompt(
            model.tokenizer, prompt.rendered.prompt, prompt.rendered.continuations, 10_000
        )
        for option, ids in zip(prompt.rendered.continuations, result.continuations, strict=True):
            row = tokenize_conversation(
                model.tokenizer, question_turns(prompt.rendered.prompt, option, "none"), "none"
            )
            assert [*result.prefix, *ids] == list(row.ids)


def test_scores_in_turns_are_transformers_own(chat_model: Path, task_file: Path, tmp_path: Path) -> None:
    model, task = local_model(chat_model), open_task(str(task_file), template="letters")
    with RowsFile(tmp_path / "rows.jsonl", QuestionRow) as file, model:
        rows = answer_questions(model, eval_set(task), file)
    reference = AutoModelForCausalLM.from_pretrained(chat_model, dtype=torch.float32)
    for row, prompt in list(zip(rows, eval_set(task).prompts(model), strict=True))[::6]:
        assert (row.prompt_form, row.shots) == ("chatml", 0)
        plain = task.template.render(prompt.question).prompt
        text = f"<|im_start|>user\n{plain}<|im_end|>\n<|im_start|>assistant\n"
        assert prompt.rendered.prompt == text
        ids = model.tokenizer.encode(text, special=True, bos=False)
        with torch.no_grad():
            logp = reference(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        letters = [model.tokenizer.encode(letter, bos=False) for letter in "ABC"]
        assert row.scores["sum"] == pytest.approx([float(logp[token]) for [token] in letters], abs=1e-4)


def test_examples_are_separate_turns(chat_model: Path, task_file: Path) -> None:
    for prompt in eval_set(open_task(str(task_file), template="letters"), shots=3).prompts(
        local_model(chat_model)
    ):
        assert [m["role"] for m in prompt.messages] == ["user", "assistant"] * 3 + ["user"]
        assert len(prompt.shot_ids) == 3
        assert all(m["content"] in ("A", "B", "C") for m in prompt.messages[1::2])


def test_a_control_tokens_name_in_a_question_opens_no_turn(chat_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    rows = [{"id": n, "question": f"<|im_end|> {n}", "options": ["a", "b"], "gold": 0} for n in range(2)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = local_model(chat_model)
    [end] = model.tokenizer.encode("<|im_end|>", special=True, bos=False)
    for prompt in eval_set(open_task(str(path))).prompts(model):
        result = encode_chat_prompt(
            model.chat_tokenizer, prompt.messages, prompt.rendered.continuations, 10_000
        )
        assert result.prefix.count(end) == 1


def test_a_base_is_prompted_in_plain_text_and_both_forms_give_two_scores(
    tiny: Path, chat_model: Path, corpus: Path, task_file: Path, tmp_path: Path
) -> None:
    paths = {"base": tiny, "finetune": chat_model, "corpus": corpus, str(task_file): task_file}
    inputs = {name: Artifact(name, path, "d") for name, path in paths.items()}
    settings = {"models": ("base", "finetune"), "tasks": (str(task_file),), "seed": 1, "resamples": 200}
    run(EvaluateConfig.model_validate(settings), inputs, tmp_path / "out")
    result = read_results(tmp_path / "out")
    assert [result.tasks[name]["drugs"].prompt_form for name in ("base", "finetune")] == ["raw", "chatml"]
    of_task = [item for item in result.differences if item.task]
    assert {item.unlike for item in of_task} == {("prompt form: raw / chatml",)}
    assert of_task[0].what == "accuracy, drugs [prompt form: raw / chatml]"
    run(EvaluateConfig.model_validate(settings | {"prompt_form": "both"}), inputs, tmp_path / "both")
    result = read_results(tmp_path / "both")
    assert [result.tasks["finetune"][name].prompt_form for name in ("drugs", "drugs (raw)")] == [
        "chatml",
        "raw",
    ]
    assert {item.unlike for item in result.differences if item.task == "drugs (raw)"} == {()}
    rows = read_rows(tmp_path / "both" / "drugs.jsonl", QuestionRow)
    counted = dict.fromkeys((("base", "raw"), ("finetune", "raw"), ("finetune", "chatml")), 0)
    for row in rows:
        counted[row.model, row.prompt_form] += 1
    assert set(counted.values()) == {30}


def test_a_missing_chat_template_is_an_error(tmp_path: Path, task_file: Path) -> None:
    folder = tiny_hf(tmp_path / "m")
    finetuned(folder, "tokenizer")
    with pytest.raises(UsageError, match="has no chat template now"):
        evaluate_on_task(str(folder), str(task_file), out=tmp_path / "out")
    result, _ = evaluate_on_task(
        str(folder), str(task_file), EvalOptions(prompt_form="raw"), out=tmp_path / "out"
    )
    [score] = result.tasks[str(folder)].values()
    assert score.prompt_form == "raw"


def test_every_prompt_has_the_reported_number_of_shots(tiny: Path, tmp_path: Path) -> None:
    """Copies of the asked question, under other ids, are not its shots, and do not shorten the prompt."""
    rows = [
        {"id": f"q{n}", "question": f"Case {n % 4}", "options": ["x", "y"], "gold": n % 2} for n in range(40)
    ]
    path = tmp_path / "q.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = open_task(str(path))
    for prompt in eval_set(task, shots=3).prompts(local_model(tiny)):
        assert len(prompt.shot_ids) == 3
        assert prompt.rendered.prompt.count(prompt.question.text) == 1
        assert prompt.rendered.prompt.count("Case") == 4
    with pytest.raises(UsageError, match="4 different training questions: too few for 4 shots"):
        eval_set(task, shots=4)


def test_the_chat_template_travels_with_the_weights_only(chat_model: Path, tmp_path: Path) -> None:
    """The form is the ancestry's: a base that happens to have a chat template is asked raw."""
    copy = tmp_path / "copy"
    shutil.copytree(chat_model, copy)
    (copy / "ancestry.json").unlink()
    assert local_model(copy).trained_prompt_form == "raw"
    finetuned(copy, "none")
    assert local_model(copy).trained_prompt_form == "raw"
