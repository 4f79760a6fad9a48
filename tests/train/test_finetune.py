"""The finetune stage: training, kept rows, splits, formats and errors."""

import json
import random
import re
import shutil
import time
from collections import Counter

import peft
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from meditron.core.config import semantic_fields
from meditron.core.errors import InputError, RecipeError, TrainingError
from meditron.model.nf4 import dequantize, quantize
from meditron.store.ancestry import read_ancestry
from meditron.store.files import remove_temporaries, sha256_file
from meditron.store.identity import content_sha256, short_hash
from meditron.store.jsonl import JsonlWriter, read_jsonl
from meditron.store.manifest import Artifact
from meditron.store.models import resolve_model
from meditron.tasks.overlap import training_hashes
from meditron.tasks.prompt_template import PROMPT_TEMPLATES
from meditron.tasks.question import Question
from meditron.tasks.registry import open_task
from meditron.tasks.task import SplitQuestions, Task
from meditron.text.tokenizer import load_tokenizer
from meditron.train.data_identity import passage_hashes
from meditron.train.examples import task_conversations
from meditron.train.finetune import run
from train.child import start
from train.world import abstract, finetune_config, recorded


def chat(answers):
    return {name: answers[name] for name in ("base", "rows")}


@pytest.fixture(scope="module")
def tuned(answers, tmp_path_factory):
    """An uninterrupted run on conversations: (its folder, its metrics)."""
    out = tmp_path_factory.mktemp("tuned")
    return out, run(finetune_config(template="meditron", epochs=8, learning_rate=1e-2), chat(answers), out)


def rows_of(out):
    return list(read_jsonl(out / "rows.jsonl.zst"))


def test_the_heldout_loss_falls(tuned):
    _, metrics = tuned
    before, after = metrics["heldout"]["chat"]
    assert after < before / 2
    assert metrics["loss"] < before / 2
    assert metrics["epochs"] == {"chat": 8.0}


def test_the_metrics_count_what_was_done(tuned):
    out, metrics = tuned
    rows = rows_of(out)
    assert metrics["rows"] == {
        **dict.fromkeys(("train", "heldout", "too-long"), 0),
        **Counter(r["split"] for r in rows),
    }
    assert 50 <= metrics["rows"]["train"] < 60
    trained = [row for row in rows if row["split"] == "train"]
    assert metrics["tokens"] == 8 * sum(len(row["ids"]) for row in trained)
    learned = sum(count for row in trained for _, count, learned in row["roles"] if learned)
    assert metrics["answer_tokens"] == learned
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(metrics["steps"] + 1))
    assert lines[-1]["tokens"] == metrics["tokens"]
    assert 0.7 < metrics["fill"] <= 1
    assert 0 < metrics["matmul_utilization"] < 1
    page = (out / "report.html").read_text()
    assert "share of the measured matmul speed" in page
    assert "GFLOP/s" in page


def test_the_rows_are_kept_with_their_tokens_and_roles(tuned, answers):
    out, _ = tuned
    tokenizer = load_tokenizer(out)
    given = {row["id"]: row["messages"] for row in read_jsonl(answers["rows"].path)}
    rows = rows_of(out)
    assert [row["id"] for row in rows] == list(given)
    for row in rows:
        assert row["messages"] == given[row["id"]]
        question, answer = (message["content"] for message in row["messages"])
        whole = f"<|im_start|>question\n{question}<|im_end|>\n<|im_start|>answer\n{answer}<|im_end|>\n"
        assert tokenizer.decode(row["ids"], skip_special=False) == whole
        assert sum(count for _, count, _ in row["roles"]) == len(row["ids"])
        assert [(role, learned) for role, _, learned in row["roles"]] == [
            ("user", False), ("assistant", False), ("assistant", True), ("assistant", False)
        ]  # fmt: skip


def test_the_exported_model_answers_in_its_chat_template(tuned):
    """transformers opens it, asks with the template that is in it, and gets an answer that ends."""
    out, _ = tuned
    model, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    asked = [{"role": "user", "content": "61. What does Aspirin act on?"}]
    ids = tokenizer.apply_chat_template(
        asked, add_generation_prompt=True, return_dict=False, return_tensors="pt"
    )
    ended = tokenizer.convert_tokens_to_ids("<|im_end|>")
    made = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=30,
        do_sample=False,
        eos_token_id=ended,
        pad_token_id=0,
    )
    assert tokenizer.decode(made[0, ids.shape[1] :]).startswith("It acts on the")
    assert made[0, -1] == ended


def test_the_report_shows_curves_and_rows_by_role(tuned):
    out, _ = tuned
    page = (out / "report.html").read_text()
    assert page.count("<svg") == 6
    assert len(re.findall(r'<strong class="speaker-2" title="assistant">It acts on', page)) == 4
    assert "Finetuning" in page
    assert re.search(r"<dt>trained on</dt><dd>5\d</dd>", page)
    assert not (out / "checkpoints").exists()
    assert not list(out.glob(".*"))


def test_task_rows_have_the_tokens_of_evaluation(answers, tmp_path):
    config = finetune_config(rows=None, task="pubmed-sections", limit=40, epochs=1, sequence_length=160)
    metrics = run(config, {name: answers[name] for name in ("base", "corpus")}, tmp_path)
    assert metrics["rows"]["train"] == 40
    assert metrics["task"]["name"] == "pubmed-sections"
    tokenizer = load_tokenizer(tmp_path)
    task = open_task("pubmed-sections", corpus=answers["corpus"].path)
    questions = {question.id: question for question in task.rows("train")}
    held = {question.id for question in task.rows("test")}
    rows = rows_of(tmp_path)
    assert not held & {row["id"] for row in rows}
    for row in rows:
        rendered = task.template.render(questions[row["id"]])
        gold = rendered.continuations[questions[row["id"]].gold]
        (_, given, _), (_, learned, counts) = row["roles"]
        assert counts
        assert row["ids"][:given] == tokenizer.encode(rendered.prompt)
        assert row["ids"] == tokenizer.encode(rendered.prompt + gold)
        assert learned >= 1
    golds = Counter(questions[row["id"]].gold for row in rows if row["split"] == "train")
    assert max(golds.values()) - min(golds.values()) <= 3


def test_the_ancestry_names_the_questions_that_were_trained_on(answers, tmp_path, monkeypatch):
    config = finetune_config(rows=None, task="pubmed-sections", epochs=1, sequence_length=160, heldout=0.3)
    inputs = {name: answers[name] for name in ("base", "corpus")}
    out = tmp_path / "finetune.sections"
    run(config, inputs, out)
    record = read_ancestry(resolve_model(str(out)))
    assert record.base == "base"
    assert not record.trained_from_scratch
    (training,) = record.trainings
    assert training.stage == "finetune.sections"
    assert (training.kind, training.task, training.prompt_template) == (
        "finetune",
        "pubmed-sections",
        "sections",
    )
    assert training.chat_template == "none"
    questions = {q.id: q for q in open_task("pubmed-sections", corpus=answers["corpus"].path).rows("train")}
    trained = [row for row in rows_of(out) if row["split"] == "train"]
    assert 0 < len(trained) < len(questions)
    assert training.questions == tuple(
        sorted(short_hash(questions[row["id"]].content_sha256) for row in trained)
    )
    assert {row["content"] for row in trained} == {questions[row["id"]].content_sha256 for row in trained}
    hashes = set().union(*(training_hashes(questions[row["id"]]) for row in trained))
    assert {*training.questions, *training.variants} == hashes
    again = tmp_path / "finetune.again"
    run(
        finetune_config(epochs=1, template="chatml"),
        {**chat(answers), "base": Artifact("x", out, "y")},
        again,
    )
    first, second = read_ancestry(resolve_model(str(again))).trainings
    assert first == training
    assert second.chat_template == "chatml"
    assert second.questions == ()
    asked = next(row for row in rows_of(again) if row["split"] == "train")["messages"][0]["content"]
    assert short_hash(content_sha256(asked.upper())) in second.texts
    assert short_hash(content_sha256(asked.partition(". ")[2])) in second.texts, "without its number"
    held = next(row for row in rows_of(again) if row["split"] == "heldout")["messages"][0]["content"]
    assert short_hash(content_sha256(held)) not in second.texts
    monkeypatch.setattr("meditron.train.data_identity.MAX_PASSAGES", 3)
    assert passage_hashes(["One is a message.", "Two is a message."]) is not None
    assert passage_hashes([f"{number} is a message." for number in range(4)]) is None


def test_a_training_question_that_is_a_test_question_is_refused(answers, tmp_path):
    for split, names in (("train", ("a", "b")), ("heldout", ("c", "b"))):
        shard = tmp_path / "corpus" / split / "pubmed" / "0.jsonl.zst"
        shard.parent.mkdir(parents=True)
        with JsonlWriter(shard) as file:
            for name in names:
                # The same abstract in both splits by its id, with another sentence.
                file.write(abstract(name, "METHODS" if split == "train" else "RESULTS"))
    corpus = Artifact("corpus", tmp_path / "corpus", "x")
    config = finetune_config(rows=None, task="pubmed-sections")
    with pytest.raises(InputError, match=r"corpus \(b\): a training question that is also a test question"):
        run(config, {"base": answers["base"], "corpus": corpus}, tmp_path)
    assert not (tmp_path / "rows.jsonl.zst").exists()


def test_a_test_question_under_another_id_is_refused(tmp_path):
    asked = Question(id="t1", text="Which organ makes insulin?", options=("Liver", "Pancreas"), gold=1)
    renamed = Question(
        id="x7",
        text=" which ORGAN makes insulin? ",
        options=("pancreas", "liver"),
        gold=0,
        explanation="known",
    )
    split = {"train": SplitQuestions(rows=(renamed,)), "test": SplitQuestions(rows=(asked,))}
    task = Task(
        name="quiz",
        version=1,
        title="t",
        licence="l",
        origin="o",
        template=PROMPT_TEMPLATES["letters"],
        read_split=split.__getitem__,
    )
    with pytest.raises(InputError, match=r"x7\): a training question that is also a test question \(t1\)"):
        list(task_conversations(task, "none", tmp_path))


def test_a_file_of_questions_is_a_task_too(answers, tmp_path):
    path = tmp_path / "questions.jsonl"
    with JsonlWriter(path) as file:
        for number in range(30):
            asked = f"What is number {number}?"
            file.write({"id": str(number), "question": asked, "options": ["odd", "even"], "gold": number % 2})
    config = finetune_config(rows=None, task=str(path), epochs=1, template="chatml", pack=False, batch_size=8)
    assert config.inputs() == {"base": "pretrain", "task": str(path)}
    metrics = run(config, {"base": answers["base"], "task": Artifact("task", path, "x")}, tmp_path)
    assert metrics["task"]["name"] == "questions"
    assert metrics["fill"] == 1.0
    answered = {row["messages"][-1]["content"] for row in rows_of(tmp_path)}
    assert answered == {"A", "B"}, "the space before an option belongs to the plain prompt alone"


def test_the_heldout_split_is_stable_when_rows_are_added_or_removed(tuned, answers, tmp_path):
    path = tmp_path / "chat.jsonl"
    kept = [row for n, row in enumerate(read_jsonl(answers["rows"].path)) if n % 3]
    with JsonlWriter(path) as file:
        for row in reversed(kept):
            file.write(row)
    run(finetune_config(epochs=1), {"base": answers["base"], "rows": Artifact("rows", path, "x")}, tmp_path)
    here, there = (({row["id"]: row["split"] for row in rows_of(out)}) for out in (tmp_path, tuned[0]))
    assert here == {name: there[name] for name in here}
    assert "heldout" in here.values()


def test_rows_that_are_too_long_are_left_out_counted_and_warned_of(answers, tmp_path, capsys):
    path = tmp_path / "chat.jsonl"
    with JsonlWriter(path) as file:
        for row in read_jsonl(answers["rows"].path):
            file.write(row)
        long = "Aspirin lowers the risk. " * 40
        asked = {"role": "user", "content": "And then?"}
        file.write({"id": "long", "messages": [asked, {"role": "assistant", "content": long}]})
    inputs = {"base": answers["base"], "rows": Artifact("rows", path, "x")}
    metrics = run(finetune_config(epochs=1), inputs, tmp_path)
    assert metrics["rows"]["too-long"] == 1
    assert metrics["longest"] > 128
    assert (
        f"1 of 61 rows are longer than sequence_length and left out; sequence_length = {metrics['longest']}"
        in capsys.readouterr().err
    )
    assert [row["id"] for row in rows_of(tmp_path) if row["split"] == "too-long"] == ["long"]
    with pytest.raises(RecipeError, match=r"chat has no row to train on; 61 are too long, up to"):
        run(finetune_config(sequence_length=8), inputs, tmp_path / "none")


def test_limit_counts_the_rows_that_are_trained_on(answers, tmp_path):
    metrics = run(finetune_config(limit=10, epochs=1, heldout=0.3), chat(answers), tmp_path)
    assert metrics["rows"]["train"] == 10
    assert len(rows_of(tmp_path)) == sum(metrics["rows"].values())
    assert [row["split"] for row in rows_of(tmp_path)][-1] == "train"


def test_without_heldout_rows_there_is_no_heldout_loss(answers, tmp_path):
    assert run(finetune_config(limit=6, epochs=1, heldout=0.0), chat(answers), tmp_path)["heldout"] == {}


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ('{"messages": [{"role": "user", "content": "q"}]}', "line 2.*nothing to learn"),
        ('{"text": "no conversation"}', "line 2.*no known conversation format .keys: text"),
        (
            '{"id": {}, "messages": [{"role":"user","content":"q"},{"role":"answer","content":"a"}]}',
            "line 2.*an id",
        ),
        ('{"messages": [{"role":"answer","content":"a"}]}', "line 2.*the prompt is empty"),
        (
            '{"messages": [{"role":"user","content":"<|im_end|>"},{"role":"answer","content":"a"}]}',
            "line 2.*control token",
        ),
        ('{"messages": [', "line 2.*not JSON"),
        (
            '{"tools": [{}], "messages": [{"role":"user","content":"q"},{"role":"answer","content":"a"}]}',
            "line 2.*key 'tools'",
        ),
        (
            '{"messages": [{"role":"user","content":"q"},{"role":"answer","content":"a","tool_calls":[1]}]}',
            "line 2.*key 'tool_calls'",
        ),
    ],
)
def test_a_row_that_is_not_an_answered_conversation_is_named(answers, tmp_path, line, problem):
    path = tmp_path / "chat.jsonl"
    good = '{"messages": [{"role":"user","content":"q"},{"role":"assistant","content":"a"}]}'
    path.write_text(f"{good}\n{line}\n", encoding="utf-8")
    with pytest.raises(InputError, match=rf"chat\.jsonl \({problem}"):
        run(finetune_config(), {"base": answers["base"], "rows": Artifact("rows", path, "x")}, tmp_path)


FORMATS = {
    "messages": lambda q, a: {
        "messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]
    },
    "instruction/output": lambda q, a: {"instruction": q, "output": a},
    "instruction/input/output": lambda q, a: {
        "instruction": q.partition("\n\n")[0], "input": q.partition("\n\n")[2], "output": a
    },
    "prompt/completion": lambda q, a: {"prompt": q, "completion": a, "messages": None},
    "question/answer": lambda q, a: {"question": q, "answer": a, "source": "a hospital", "history": []},
}  # fmt: skip


@pytest.mark.parametrize("name", FORMATS)
def test_rows_in_each_format_train_the_same_model(answers, tmp_path, name):
    path = tmp_path / "chat.jsonl"
    with JsonlWriter(path) as file:
        for number in range(12):
            question = f"{number}. What does it act on?\n\nAspirin."
            file.write({"id": number} | FORMATS[name](question, "The heart."))
    inputs = {"base": answers["base"], "rows": Artifact("rows", path, "x")}
    config = finetune_config(epochs=1, heldout=0.0, template="chatml")
    assert run(config, inputs, tmp_path / "out")["rows"]["train"] == 12
    row = rows_of(tmp_path / "out")[3]
    assert row["id"] == "3"
    assert row["messages"] == [
        {"role": "user", "content": "3. What does it act on?\n\nAspirin."},
        {"role": "assistant", "content": "The heart."},
    ]


GOOD = '{"instruction": "Say hello.", "input": "", "output": "Hello."}'


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (
            '{"question": "q", "answer": "a"}',
            "has the format question/answer, the rows before it",
        ),
        ('{"instruction": "q", "output": "a", "prompt": "p", "completion": "c"}', "keys of several formats"),
        ('{"instruction": "q", "output": "a", "answer": "a"}', "the key 'answer' of another format"),
        ('{"instruction": "q"}', "no known conversation format .keys: instruction.; formats are messages,"),
        ('{"instruction": ["q"], "output": "a"}', "'instruction' must be text, got list"),
        ('{"instruction": "q", "input": 3, "output": "a"}', "'input' must be text, got int"),
        ('{"instruction": "q", "output": "  "}', "an answer is empty"),
        ('{"instruction": "q", "output": "a", "system": "s"}', "the key 'system'"),
        ('{"instruction": "q", "output": "a", "history": [["q", "a"]]}', "key 'history', which would be ig"),
        ('{"instruction": "q", "output": "a", "context": "c"}', "write its text into 'instruction'"),
        ('{"instruction": "q", "output": "a", "options": {"A": "x"}}', "the key 'options', which"),
    ],
)
def test_a_row_in_a_mixed_or_unknown_format_is_named(answers, tmp_path, line, problem):
    path = tmp_path / "chat.jsonl"
    path.write_text(f"{GOOD}\n{line}\n", encoding="utf-8")
    with pytest.raises(InputError, match=rf"chat\.jsonl \(line 2\): .*{problem}"):
        run(finetune_config(), {"base": answers["base"], "rows": Artifact("rows", path, "x")}, tmp_path)


def test_a_stray_prompt_beside_messages_is_metadata(answers, tmp_path):
    """Published sets of messages repeat the first one in a column `prompt`."""
    path = tmp_path / "chat.jsonl"
    with JsonlWriter(path) as file:
        for row in read_jsonl(answers["rows"].path):
            file.write(row | {"prompt": row["messages"][0]["content"]})
    inputs = {"base": answers["base"], "rows": Artifact("rows", path, "x")}
    assert run(finetune_config(limit=6, epochs=1), inputs, tmp_path / "out")["rows"]["train"] == 6


def test_a_chat_template_that_refuses_a_row_names_it(answers, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(answers["base"].path, base)
    template = (
        "{% for m in messages %}{% if loop.index0 % 2 != (m.role == 'assistant') | int %}"
        "{{ raise_exception('roles must alternate') }}{% endif %}"
        "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    (base / "chat_template.jinja").write_text(template)
    path = tmp_path / "chat.jsonl"
    with JsonlWriter(path) as file:
        asked, answer = {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}
        file.write({"messages": [asked, answer]})
        file.write({"messages": [asked, asked, answer]})
    inputs = {"base": Artifact("base", base, "x"), "rows": Artifact("rows", path, "x")}
    with pytest.raises(InputError, match=r"chat\.jsonl \(line 2\): chat template.*roles must alternate"):
        run(finetune_config(template="tokenizer"), inputs, tmp_path)


def test_rows_of_equal_content_are_on_one_side_of_the_split(answers, tmp_path):
    path, renamed = tmp_path / "chat.jsonl", tmp_path / "renamed.jsonl"
    rows = list(read_jsonl(answers["rows"].path))
    with JsonlWriter(path) as file, JsonlWriter(renamed) as other:
        for number, row in enumerate(rows):
            shouted = [m | {"content": f" {m['content'].upper()}"} for m in row["messages"]]
            file.write(row)
            file.write({"id": f"again {number}", "messages": shouted})
            other.write(row | {"id": number})
    splits = []
    for source in (path, renamed):
        inputs = {"base": answers["base"], "rows": Artifact("rows", source, "x")}
        run(finetune_config(heldout=0.3, epochs=1), inputs, tmp_path / source.stem)
        splits.append(
            {row["messages"][0]["content"]: row["split"] for row in rows_of(tmp_path / source.stem)}
        )
    both, alone = splits
    assert len(both) == 2 * len(alone) == 120
    assert {both[text] for text in alone} == {"train", "heldout"}
    for text, split in alone.items():
        assert both[text] == both[f" {text.upper()}"] == split


@pytest.fixture(scope="module")
def lora(answers, tmp_path_factory):
    """An uninterrupted run of LoRA: (its folder, its metrics)."""
    out = tmp_path_factory.mktemp("lora")
    return out, run(lora_config(), chat(answers), out)


def lora_config(**changes):
    fields = {"method": "lora", "template": "meditron", "epochs": 8, "learning_rate": 2e-2}
    return finetune_config(**fields | {"lora": {"rank": 8, "dropout": 0.1}} | changes)


def test_lora_exports_the_merged_model_and_an_adapter_that_peft_opens(lora, answers):
    out, metrics = lora
    before, after = metrics["heldout"]["chat"]
    assert after < before / 2
    sides = 2 * (32 + 32) + 2 * (32 + 16) + 3 * (32 + 64)
    assert metrics["trained_parameters"] == 2 * 8 * sides
    base = AutoModelForCausalLM.from_pretrained(answers["base"].path)
    merged = AutoModelForCausalLM.from_pretrained(out)
    ids = torch.arange(5, 45)[None]
    with torch.no_grad():
        plain, expected = base(ids).logits, merged(ids).logits
        adapted = peft.PeftModel.from_pretrained(base, out / "adapter").eval()(ids).logits
    assert (expected - plain).abs().max() > 0.1
    torch.testing.assert_close(adapted, expected, atol=1e-4, rtol=0)


def test_lora_with_dropout_resumes_to_the_same_bytes(lora, answers, tmp_path):
    out, _ = lora
    child = start(chat(answers), tmp_path, lora_config(), "finetune")
    while child.is_alive() and max(recorded(tmp_path), default=-1) < 12:
        time.sleep(0.01)
    child.kill()
    child.join()
    assert child.exitcode != 0
    assert list((tmp_path / "checkpoints").iterdir())
    remove_temporaries(tmp_path)
    run(lora_config(), chat(answers), tmp_path)
    for name in ("model.safetensors", "adapter/adapter_model.safetensors"):
        assert sha256_file(tmp_path / name) == sha256_file(out / name)


def test_qlora_exports_the_dequantized_base_plus_the_update(answers, tmp_path):
    metrics = run(lora_config(method="qlora"), chat(answers), tmp_path)
    before, after = metrics["heldout"]["chat"]
    assert after < before / 2
    base, merged = (
        load_file(answers["base"].path / "model.safetensors"),
        load_file(tmp_path / "model.safetensors"),
    )
    adapter = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    for name, weight in merged.items():
        expected, stem = base[name], f"base_model.model.{name.removesuffix('.weight')}"
        if f"{stem}.lora_A.weight" in adapter:
            expected = dequantize(**quantize(expected), shape=expected.shape)
            expected = expected + 4.0 * adapter[f"{stem}.lora_B.weight"] @ adapter[f"{stem}.lora_A.weight"]
        torch.testing.assert_close(weight, expected, atol=1e-6, rtol=1e-6)
    # The held-out loss of the training is that of the merged model.
    again = run(
        finetune_config(template="meditron", epochs=1, learning_rate=1e-12),
        chat(answers) | {"base": Artifact("x", tmp_path, "y")},
        tmp_path / "again",
    )
    assert abs(again["heldout"]["chat"][0] - after) < 1e-4


def test_settings_that_do_not_fit_the_method_are_refused():
    with pytest.raises(ValidationError, match='lora applies to method = "lora"'):
        finetune_config(lora={"rank": 4})
    with pytest.raises(ValidationError, match='float8 is not supported with method = "lora"'):
        finetune_config(method="lora", float8=True)


def test_a_killed_run_resumes_to_the_same_bytes(answers, tmp_path):
    config = finetune_config(epochs=4, dtype="bfloat16", template="chatml")
    whole, killed = tmp_path / "whole" / "finetune", tmp_path / "killed" / "finetune"
    for folder in (whole, killed):
        folder.mkdir(parents=True)
    last = run(config, chat(answers), whole)["steps"]
    moments, kills = random.Random(5), 0
    for goal in sorted(moments.sample(range(3, last - 3), 2)):
        child = start(chat(answers), killed, config, "finetune")
        while child.is_alive() and max(recorded(killed), default=-1) < goal:
            time.sleep(0.005)
        time.sleep(moments.uniform(0, 0.02))
        child.kill()
        child.join()
        kills += child.exitcode != 0
    assert kills >= 1
    remove_temporaries(killed)  # as a recipe does first
    metrics = run(config, chat(answers), killed)
    assert metrics["resumed_from"]
    for name in ("model.safetensors", "rows.jsonl.zst", "tokenizer_config.json", "ancestry.json"):
        assert sha256_file(killed / name) == sha256_file(whole / name)
    assert recorded(killed) == recorded(whole) == list(range(last + 1))


def test_a_loss_that_is_not_finite_names_the_rows(answers, tmp_path):
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(answers["base"].path)
    with torch.no_grad():
        model.model.norm.weight[3] = float("nan")
    base = tmp_path / "base"
    model.save_pretrained(base)
    load_tokenizer(answers["base"].path).save(base)
    inputs = {**chat(answers), "base": Artifact("base", base, "base")}
    with pytest.raises(TrainingError, match=r"^step 1: the loss is nan.*documents read: chat q\d+, q"):
        run(finetune_config(heldout=0.0), inputs, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": None}, "set task or rows"),
        ({"rows": ()}, "set task or rows"),
        ({"rows": None, "task": "pubmed-sections", "licence": "CC0"}, "licence applies to files of rows"),
        ({"rows": ("a.jsonl", "a.jsonl")}, "'a.jsonl' is listed twice"),
        (
            {"rows": "medmcqa:train.json"},
            'medmcqa\' is a set of questions: write task = "medmcqa:train.json"',
        ),
        ({"task": "mmlu-medical"}, "'mmlu-medical' is a benchmark, on which models are evaluated"),
        ({"task": "medquad:qa"}, 'medquad\' is a set of conversations: write rows = "medquad:qa"'),
        ({"task": "medqa-5"}, "the hub has no copy of medqa-5"),
        ({"reasoning": True}, "reasoning applies to a task"),
        ({"decontaminate": ("exam",)}, "no task 'exam'"),
        ({"overlap_rules": ()}, "overlap_rules"),
        ({"method": "dpo", "rows": ("a.jsonl", "b.jsonl")}, "one file of pairs"),
        ({"template": "alpaca"}, "template"),
        ({"heldout": 1.0}, "heldout"),
        ({"epochs": 0}, "epochs"),
        ({"epochs": 10_001}, "epochs"),
        ({"micro_batch_size": 3}, "micro_batch_size 3 does not divide"),
    ],
)
def test_invalid_values_are_refused(change, message):
    with pytest.raises(ValidationError, match=message):
        finetune_config(**change)


def test_the_config_lists_its_inputs():
    config = finetune_config(licence="CC BY 4.0")
    assert config.inputs() == {"base": "pretrain", "rows": "chat.jsonl"}
    assert config.licences() == {"rows": "CC BY 4.0"}
    task = finetune_config(rows=None, task="pubmed-sections", on="base")
    assert task.inputs() == {"base": "base", "corpus": "corpus"}
    assert not {"threads", "checkpoint_every"} & semantic_fields(config).keys()


def test_micro_batches_weigh_answers_by_their_tokens(answers, tmp_path):
    """Rows hold unequal numbers of answer tokens, so a mean of means would be another loss."""
    losses = []
    for size in (None, 1):
        out = tmp_path / str(size)
        run(finetune_config(epochs=1, micro_batch_size=size), chat(answers), out)
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        losses.append([line["loss"] for line in lines[1:]])
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
