"""The finetune stage with added tokens: full and with adapters, its exports, resuming, what is refused."""

import json
import time

import peft
import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load_file
from tests.llamacpp import llama_server
from transformers import AutoModelForCausalLM, AutoTokenizer

from meditron.core.errors import InputError, UsageError
from meditron.release.convert import convert
from meditron.store.files import remove_temporaries, sha256_file
from meditron.store.gguf import GGUF
from meditron.store.jsonl import read_jsonl
from meditron.store.manifest import Artifact
from meditron.text.gguf_keys import TokenType
from meditron.text.tokenizer import load_tokenizer
from meditron.train.finetune import run
from tiny import CHAT, tiny_hf
from train.child import start
from train.world import finetune_config, recorded

TOKENS = 320
"""Tokens of the base model, which has none of ChatML's."""


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Base models by name; `padded` has ten rows more than tokens."""
    folder = tmp_path_factory.mktemp("bases")
    tiny_hf(folder / "tied", tied=True)
    tiny_hf(folder / "untied")
    tiny_hf(folder / "padded", vocab_size=TOKENS + 10)
    return folder


def inputs(bases, base, answers):
    return {"base": Artifact("base", bases / base, base), "rows": answers["rows"]}


def config(**changes):
    fields = {"template": "meditron", "added_tokens": CHAT, "epochs": 8, "learning_rate": 1e-2}
    return finetune_config(**fields | changes)


@pytest.fixture(scope="module", params=["tied", "untied", "padded"])
def tuned(request, bases, answers, tmp_path_factory):
    """A full finetune: (the base's name, its folder, its metrics)."""
    out = tmp_path_factory.mktemp(request.param)
    return request.param, out, run(config(), inputs(bases, request.param, answers), out)


def rows_of(name):
    return max(TOKENS + 2, TOKENS + 10 if name == "padded" else 0)


def test_the_new_tokens_are_learned_and_exported(tuned):
    name, out, metrics = tuned
    before, after = metrics["heldout"]["chat"]
    assert after < before / 2
    model, tokenizer = AutoModelForCausalLM.from_pretrained(out), AutoTokenizer.from_pretrained(out)
    assert tokenizer.convert_tokens_to_ids(list(CHAT)) == [TOKENS, TOKENS + 1]
    assert model.config.vocab_size == rows_of(name) == len(model.get_input_embeddings().weight)
    assert len(model.get_output_embeddings().weight) == rows_of(name)
    asked = [{"role": "user", "content": "61. What does Aspirin act on?"}]
    ids = tokenizer.apply_chat_template(
        asked, add_generation_prompt=True, return_dict=False, return_tensors="pt"
    )
    assert ids[0].tolist().count(TOKENS) == 2
    made = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=30, do_sample=False, pad_token_id=0
    )
    assert tokenizer.decode(made[0, ids.shape[1] :]).startswith("It acts on the")
    assert made[0, -1] == TOKENS + 1, "the exported generation config stops at the new token"
    trained = [row for row in read_jsonl(out / "rows.jsonl.zst") if row["split"] == "train"]
    turns = sum(row["ids"].count(TOKENS) for row in trained)
    assert metrics["added_tokens"] == [
        {"token": token, "id": TOKENS + place, "new": True, "count": turns}
        for place, token in enumerate(CHAT)
    ]
    assert "Added tokens" in (out / "report.html").read_text()


@pytest.mark.parametrize("base", ["tied", "padded"])
def test_new_rows_begin_as_the_mean_and_other_rows_are_kept(base, bases, answers, tmp_path):
    run(config(epochs=1, learning_rate=1e-12), inputs(bases, base, answers), tmp_path)
    stored, before = load_file(tmp_path / "model.safetensors"), load_file(bases / base / "model.safetensors")
    assert stored.keys() == before.keys()
    for name in {"model.embed_tokens.weight", "lm_head.weight"} & stored.keys():
        expected = before[name][:TOKENS].mean(0).expand(2, -1)
        torch.testing.assert_close(stored[name][TOKENS : TOKENS + 2], expected, atol=1e-6, rtol=0)
        torch.testing.assert_close(stored[name][:TOKENS], before[name][:TOKENS], atol=1e-6, rtol=0)
        padding = before[name][TOKENS + 2 :]
        torch.testing.assert_close(stored[name][TOKENS + 2 :], padding, atol=1e-6, rtol=0)


def test_llama_cpp_reads_the_new_tokens(tuned, tmp_path):
    _, out, _ = tuned
    convert(str(out), tmp_path / "model.gguf", type="F32")
    with GGUF(tmp_path / "model.gguf") as gguf:
        assert gguf.metadata["tokenizer.ggml.token_type"][TOKENS : TOKENS + 2] == [TokenType.CONTROL] * 2
    tokenizer, model = AutoTokenizer.from_pretrained(out), AutoModelForCausalLM.from_pretrained(out)
    asked = [{"role": "user", "content": "62. What does Metformin act on?"}]
    prompt = tokenizer.apply_chat_template(asked, add_generation_prompt=True, tokenize=False)
    ids = tokenizer(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"]
    made = model.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=0)[0, ids.shape[1] :].tolist()
    with llama_server(tmp_path / "model.gguf") as server:
        assert server.tokenize(prompt, special=True, bos=False) == ids[0].tolist()
        steps = server.greedy(ids[0].tolist(), 12)
    assert [step.id for step in steps] == [i for i in made if i != TOKENS + 1][: len(steps)]


def test_a_later_finetune_has_the_tokens(tuned, answers, tmp_path):
    name, out, metrics = tuned
    later = {"base": Artifact("x", out, "y"), "rows": answers["rows"]}
    again = run(config(epochs=1, template="tokenizer", learning_rate=1e-12), later, tmp_path)
    assert abs(again["heldout"]["chat"][0] - metrics["heldout"]["chat"][1]) < 1e-5
    assert [entry["new"] for entry in again["added_tokens"]] == [False, False]
    assert json.loads((tmp_path / "config.json").read_text())["vocab_size"] == rows_of(name)
    assert load_tokenizer(tmp_path).digest == load_tokenizer(out).digest


@pytest.mark.parametrize(
    ("method", "base"), [("lora", "tied"), ("lora", "untied"), ("lora", "padded"), ("qlora", "tied")]
)
def test_adapters_train_the_embeddings_and_open_in_peft(method, base, bases, answers, tmp_path):
    settings = {"method": method, "lora": {"rank": 8}, "learning_rate": 2e-2}
    metrics = run(config(**settings), inputs(bases, base, answers), tmp_path)
    before, after = metrics["heldout"]["chat"]
    assert after < before / 2
    merged = AutoModelForCausalLM.from_pretrained(tmp_path)
    embeddings = (1 if base == "tied" else 2) * rows_of(base) * 32
    assert metrics["trained_parameters"] == 2 * 8 * (2 * 64 + 2 * 48 + 3 * 96) + embeddings
    saved = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    stored = load_file(tmp_path / "model.safetensors")
    name = "model.embed_tokens.weight"
    torch.testing.assert_close(saved[f"base_model.model.{name}"], stored[name], atol=0, rtol=0)
    if method == "lora":
        # Rows are added as peft's users do; its auto class does it by the tokenizer beside the adapter.
        model = AutoModelForCausalLM.from_pretrained(bases / base)
        model.resize_token_embeddings(rows_of(base))
        ids = torch.tensor([[TOKENS, 5, 6, TOKENS + 1, 7, 8, 9]])
        content = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
        (tmp_path / "adapter/adapter_config.json").write_text(
            json.dumps(content | {"base_model_name_or_path": str(bases / base)})
        )
        with torch.no_grad():
            expected = merged(ids).logits
            adapted = peft.PeftModel.from_pretrained(model, tmp_path / "adapter").eval()(ids).logits
            automatic = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter").eval()(ids).logits
        torch.testing.assert_close(adapted, expected, atol=1e-4, rtol=0)
        torch.testing.assert_close(automatic, expected, atol=1e-4, rtol=0)
    with pytest.raises(
        InputError, match=r"modules_to_save.* has a trained embedding, which an adapter in a GGUF"
    ):
        convert(str(tmp_path / "adapter"), tmp_path / "adapter.gguf")
    assert not (tmp_path / "adapter.gguf").exists()


@pytest.mark.parametrize("changes", [{"dtype": "bfloat16"}, {"method": "qlora", "lora": {"rank": 4}}])
def test_a_killed_run_resumes_to_the_same_bytes(changes, bases, answers, tmp_path):
    settings, given = config(epochs=4, **changes), inputs(bases, "untied", answers)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run(settings, given, whole)
    child = start(given, killed, settings, "finetune")
    while child.is_alive() and max(recorded(killed), default=-1) < 6:
        time.sleep(0.01)
    child.kill()
    child.join()
    assert child.exitcode != 0
    assert list((killed / "checkpoints").iterdir())
    remove_temporaries(killed)
    run(settings, given, killed)
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert sha256_file(killed / name) == sha256_file(whole / name)


def test_a_token_that_no_row_contains_is_warned_of(bases, answers, tmp_path, capsys):
    metrics = run(
        config(added_tokens=(*CHAT, "<|tool|>"), epochs=1), inputs(bases, "tied", answers), tmp_path
    )
    assert metrics["added_tokens"][2] == {"token": "<|tool|>", "id": TOKENS + 2, "new": True, "count": 0}
    assert "no training row contains <|tool|>" in capsys.readouterr().err


@pytest.mark.parametrize("added", [(), CHAT[1:], CHAT[:1]])
def test_a_template_without_its_tokens_is_refused(added, bases, answers, tmp_path):
    with pytest.raises(UsageError, match="the template 'meditron' needs the token") as caught:
        run(config(added_tokens=added), inputs(bases, "tied", answers), tmp_path)
    assert 'added_tokens = ["<|im_start|>", "<|im_end|>"]' in caught.value.hint
    assert not (tmp_path / "rows.jsonl.zst").exists()


@pytest.mark.parametrize(
    ("tokens", "problem"),
    [
        ([""], "'' is empty"),
        ([" \t"], "is whitespace only"),
        (["<a> "], "begins or ends with whitespace"),
        (["<a\nb>"], "has a character that cannot be printed"),
        (["<\ufdd1>"], "has a character that cannot be printed"),
        (["<" + "x" * 300], "has more than 256 characters"),
        (["<a>", "<b>", "<a>"], "'<a>' is listed twice"),
        ([f"<{number}>" for number in range((1 << 16) + 1)], "at most 65536 items"),
        ("<a>", "tuple"),
    ],
)
def test_texts_that_cannot_be_tokens_are_refused(tokens, problem):
    with pytest.raises(ValidationError, match=problem):
        config(added_tokens=tokens)


def test_dpo_does_not_add_tokens():
    with pytest.raises(ValidationError, match='added_tokens is not supported with method = "dpo"'):
        config(method="dpo")
