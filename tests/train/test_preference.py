"""DPO: the loss and its gradients are TRL's; rows, cached references, held-out margins, resuming."""

import json
import os
import shutil
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pyarrow
import pytest
import torch
import torch.nn.functional as F
from pyarrow import parquet
from pydantic import ValidationError

from hf_parity import make_hf, our_llama
from meditron.core.errors import InputError, RecipeError
from meditron.parallel.model import ModelStage
from meditron.store.files import read_json, sha256_file
from meditron.store.jsonl import JsonlWriter, read_jsonl
from meditron.store.manifest import Artifact
from meditron.text.finetune_templates import Span, TokenizedConversation
from meditron.text.messages import Turn
from meditron.train import preference
from meditron.train.batches import collate
from meditron.train.examples import content_hash
from meditron.train.finetune import run
from meditron.train.preference import PairDataset, dpo_loss, pair_logps, read_preferences
from meditron.train.samples import IGNORE
from ranks import run_ranks
from train.world import finetune_config, one_process

CPU = torch.device("cpu")
BETA = 0.3


def conversation(prompt, answer):
    ids = [*prompt, *answer]
    spans = [Span("user", len(prompt), False), Span("assistant", len(answer), True)]
    return TokenizedConversation(ids, spans)


@pytest.fixture
def dataset():
    random = np.random.default_rng(3)
    pairs = []
    for number in range(3):
        prompt, *answers = (random.integers(5, 500, size).tolist() for size in (6 + number, 4, 7 - number))
        pairs.append((str(number), *(conversation(prompt, answer) for answer in answers)))
    data = PairDataset(pairs, name="pairs", epochs=1, batch_size=4, seed=0, length=None)
    data.references_N2[:] = random.normal(-30, 3, (3, 2))
    return data


def their_inputs(dataset):
    """The pairs as TRL's collator returns them: all chosen, then all rejected, with masks."""
    indices = [next(i for i in range(3) if dataset[k].documents == (dataset.pairs[i][0],)) for k in range(3)]
    both = [dataset.pairs[index][side] for side in (1, 2) for index in indices]
    longest = max(len(c.ids) for c in both)

    def pad(lists):
        return torch.tensor([[*map(int, values), *[0] * (longest - len(values))] for values in lists])

    references = torch.tensor(dataset.references_N2[indices])
    return {
        "input_ids": pad([c.ids for c in both]),
        "attention_mask": pad([[1] * len(c.ids) for c in both]),
        "completion_mask": pad([c.in_loss for c in both]),
        "ref_chosen_logps": references[:, 0],
        "ref_rejected_logps": references[:, 1],
    }


def ours(dataset, model):
    batch = collate([dataset[k] for k in range(4)], by_document=True, device=CPU)
    loss = dpo_loss(ModelStage(model), batch, beta=BETA) / 3
    loss.backward()
    return loss.detach()


def test_loss_and_gradients_are_those_of_the_formula_with_transformers(dataset):
    assert (dataset[3].targets_S == IGNORE).all()
    hf, model = make_hf(0, initializer_range=0.1).double(), our_llama(make_hf(0, initializer_range=0.1))
    model.double()
    inputs = their_inputs(dataset)
    logits = hf(inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits[:, :-1]
    logp = logits.log_softmax(-1).gather(2, inputs["input_ids"][:, 1:, None])[..., 0]
    chosen, rejected = (logp * inputs["completion_mask"][:, 1:]).sum(1).chunk(2)
    growth = (chosen - inputs["ref_chosen_logps"]) - (rejected - inputs["ref_rejected_logps"])
    expected = -F.logsigmoid(BETA * growth).mean()
    expected.backward()
    assert abs(float(ours(dataset, model) - expected.detach())) < 1e-5
    theirs = dict(hf.named_parameters())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, theirs[name].grad, atol=1e-4, rtol=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_the_loss_is_trls_on_the_same_batch(dataset, tmp_path):
    trl = pytest.importorskip("trl")
    import datasets
    from transformers import AutoTokenizer

    from tiny import tiny_hf

    tokenizer = AutoTokenizer.from_pretrained(tiny_hf(tmp_path / "tokenizer"))
    tokenizer.pad_token = tokenizer.eos_token
    row = {"prompt": ["Aspirin"], "chosen": [" lowers"], "rejected": [" the town"]}
    settings = {"report_to": [], "bf16": False, "fp16": False, "use_cpu": True, "disable_dropout": False}
    trainer = trl.DPOTrainer(
        model=make_hf(0, initializer_range=0.1),
        ref_model=make_hf(0, initializer_range=0.1),
        args=trl.DPOConfig(output_dir=str(tmp_path / "out"), beta=BETA, **settings),
        train_dataset=datasets.Dataset.from_dict(row),
        processing_class=tokenizer,
    )
    trainer.precompute_ref_logps = True
    inputs = {
        name: value.float() if value.is_floating_point() else value
        for name, value in their_inputs(dataset).items()
    }
    expected = float(trainer.compute_loss(trainer.model, inputs))
    assert abs(float(ours(dataset, our_llama(make_hf(0, initializer_range=0.1)))) - expected) < 1e-5 * max(
        1, expected
    )


@pytest.fixture
def pairs(answers, tmp_path):
    """A file of pairs with right and wrong answers, as an artifact, and its base."""
    path = tmp_path / "pairs.jsonl"
    with JsonlWriter(path) as file:
        for number in range(60):
            drug, right, wrong = (
                ("Aspirin", "the heart", "the liver")
                if number % 2
                else ("Metformin", "the liver", "the heart")
            )
            file.write(
                {
                    "id": f"p{number}",
                    "prompt": f"{number}. What does {drug} act on?",
                    "chosen": f"It acts on {right}.",
                    "rejected": f"It acts on {wrong}.",
                }
            )
    return {"base": answers["base"], "rows": Artifact("rows", path, "x")}


def dpo_config(**changes):
    fields = {
        "method": "dpo",
        "template": "meditron",
        "epochs": 2,
        "learning_rate": 2e-3,
        "rows": "pairs.jsonl",
    }
    return finetune_config(**fields | {"heldout": 0.2} | changes)


@pytest.mark.parametrize("lora", [None, {"rank": 8, "dropout": 0.1}])
def test_the_margin_rises_on_heldout_pairs_and_references_are_computed_once(
    pairs, tmp_path, monkeypatch, lora
):
    monkeypatch.setenv("MEDITRON_CACHE", str(tmp_path / "cache"))
    config = dpo_config(lora=lora, learning_rate=2e-3 if lora is None else 1e-2)
    pairs["base"] = replace(pairs["base"], hub_name="org/base")
    metrics = run(config, pairs, tmp_path / "out")
    if lora is not None:
        adapter = read_json(tmp_path / "out" / "adapter" / "adapter_config.json")
        assert adapter["base_model_name_or_path"] == "org/base"
    before, after = metrics["heldout"]["pairs"]
    assert before == pytest.approx(np.log(2), abs=1e-5)
    assert after < before
    assert metrics["margin"]["pairs"][0] == 0.0
    assert metrics["margin"]["pairs"][1] > 0.05
    assert metrics["preferred"]["pairs"] > 0.6
    assert metrics["pairs"]["train"] + metrics["pairs"]["heldout"] == 60
    (file,) = (tmp_path / "cache" / "reference-logprobs").iterdir()
    assert len(read_json(file)) == 60
    rows = {row["id"]: row for row in read_jsonl(tmp_path / "out" / "rows.jsonl.zst")}
    assert rows["p1/chosen"]["split"] == rows["p1/rejected"]["split"]
    # Again, with the cached references: nothing is computed, and the bytes are the same.
    forward = "meditron.train.preference.pair_logps"
    calls = []

    monkeypatch.setattr(
        forward, lambda state, samples: calls.append(len(samples)) or pair_logps(state, samples)
    )
    run(config, pairs, tmp_path / "again")
    assert calls == [metrics["pairs"]["heldout"]], "the margins only"
    assert sha256_file(tmp_path / "again" / "model.safetensors") == sha256_file(
        tmp_path / "out" / "model.safetensors"
    )


RANK_VARIABLES = {"LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}


def run_dpo(pairs, out, cache):
    os.environ.update(RANK_VARIABLES, MEDITRON_CACHE=cache)
    run(dpo_config(epochs=1), pairs, out)


def test_two_ranks_train_as_one_process(pairs, tmp_path, monkeypatch):
    monkeypatch.setenv("MEDITRON_CACHE", str(tmp_path / "cache"))
    alone = run(dpo_config(epochs=1), pairs, tmp_path / "one")
    run_ranks(2, run_dpo, pairs, tmp_path / "two", str(tmp_path / "cache"))
    one, two = (
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("one", "two")
    )
    assert len(one) == len(two) > 5
    for a, b in zip(one[1:], two[1:], strict=True):
        assert abs(a["loss"] - b["loss"]) < 1e-5
    together = read_json(tmp_path / "two" / "metrics.json")
    assert together["ranks"] == 2
    assert abs(together["margin"]["pairs"][1] - alone["margin"]["pairs"][1]) < 1e-3


def test_a_cache_that_cannot_be_written_is_a_warning(pairs, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("MEDITRON_CACHE", "/proc/none")
    metrics = run(dpo_config(epochs=1), pairs, tmp_path / "out")
    assert metrics["margin"]["pairs"][0] == 0.0
    assert "the reference log-probabilities are not cached" in capsys.readouterr().err


def test_a_cache_that_cannot_be_written_leaves_no_rank_waiting(pairs, tmp_path):
    run_ranks(2, run_dpo, pairs, tmp_path / "out", "/proc/none")
    assert read_json(tmp_path / "out" / "metrics.json")["ranks"] == 2


@pytest.mark.parametrize("damaged", [None, b"[]", b"{}", b"[[0.5]]"])
def test_a_damaged_cache_is_computed_again(pairs, tmp_path, monkeypatch, damaged):
    monkeypatch.setenv("MEDITRON_CACHE", str(tmp_path / "cache"))
    run(dpo_config(epochs=1), pairs, tmp_path / "out")
    (file,) = (tmp_path / "cache" / "reference-logprobs").iterdir()
    before = file.read_bytes()
    file.write_bytes(before[:50] if damaged is None else damaged)
    run(dpo_config(epochs=1), pairs, tmp_path / "again")
    assert file.read_bytes() == before


def refuse_tp(pairs, out):
    os.environ.update(RANK_VARIABLES)
    with pytest.raises(RecipeError, match="not supported with tp > 1 or pp > 1"):
        run(dpo_config(parallel={"tp": 2}), pairs, out)


def test_tensor_parallelism_is_refused(pairs, tmp_path):
    run_ranks(2, refuse_tp, pairs, tmp_path / "out")


GOOD = {"prompt": "q", "chosen": "a", "rejected": "b"}
ANSWER = {"role": "assistant", "content": "yes"}
NO = ANSWER | {"content": "no"}
QUESTION = {"role": "user", "content": "q"}
SHARED = {"chosen": [QUESTION, ANSWER], "rejected": [QUESTION, NO]}


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"prompt": "q", "chosen": "a"}, "rejected must be one answer"),
        (GOOD | {"rejected": "a"}, "chosen and rejected are equal"),
        ({"chosen": "a", "rejected": "b"}, "exactly one of prompt and messages"),
        (
            {"prompt": [{"role": "assistant", "content": "a"}], "chosen": "a", "rejected": "b"},
            "ends with an answer",
        ),
        (
            {"prompt": "q", "chosen": {"role": "user", "content": "a"}, "rejected": "b"},
            "no message of the assistant",
        ),
        (GOOD | {"prompt": " "}, "exactly one of prompt and messages"),
        ({"chosen": [ANSWER], "rejected": [ANSWER]}, "or as the shared beginning of chosen and rejected"),
        (SHARED | {"rejected": "no"}, "'rejected' must be a list of messages"),
        (SHARED | {"rejected": [NO]}, "the same messages before the last; they differ at message 1"),
        (SHARED | {"chosen": [QUESTION | {"content": "p"}, ANSWER]}, "they differ at message 1"),
        (SHARED | {"chosen": [QUESTION, NO, QUESTION, ANSWER]}, "they differ at message 2"),
        (SHARED | {"chosen": [QUESTION, ANSWER, QUESTION]}, "last message of chosen must be the assistant's"),
        (SHARED | {"rejected": [QUESTION, QUESTION]}, "last message of rejected must be the assistant's"),
        (SHARED | {"rejected": [QUESTION, ANSWER]}, "chosen and rejected are equal"),
        (SHARED | {"prompt": "another"}, "prompt must equal the user's last message in chosen and rejected"),
        (SHARED | {"prompt": [QUESTION | {"content": "p"}]}, "prompt must equal the messages that chosen"),
        (SHARED | {"messages": [QUESTION, NO]}, "messages must equal the messages that chosen and rejected"),
        (SHARED | {"prompt": 3}, "prompt must equal the messages that chosen and"),
        (GOOD | {"system": "You answer in one word."}, "has the key 'system'"),
        (GOOD | {"tools": [{"name": "search"}]}, "has the key 'tools'"),
        (GOOD | {"images": ["scan.png"]}, "has the key 'images'"),
        (GOOD | {"history": [["q", "a"]]}, "has the key 'history', which preference tuning does not"),
        (GOOD | {"input": "a text"}, "has the key 'input'"),
        (GOOD | {"reasoning": "because"}, "has the key 'reasoning'"),
    ],
)
def test_a_row_that_is_no_pair_is_named(tmp_path, row, problem):
    path = tmp_path / "pairs.jsonl"
    path.write_text(
        json.dumps({"prompt": "q", "chosen": "a", "rejected": "b"}) + "\n" + json.dumps(row) + "\n"
    )
    with pytest.raises(InputError, match=rf"line 2.*{problem}"):
        list(read_preferences(path))


def test_metadata_and_empty_keys_of_a_pair_are_allowed(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(GOOD | {"id": "p", "source": "s", "score": 2, "history": [], "input": " "}))
    assert [row.id for row in read_preferences(path)] == ["p"]


@pytest.mark.parametrize("indent", [None, 1])
def test_pairs_may_be_an_array_of_json(tmp_path, indent):
    path = tmp_path / "pairs.json"
    path.write_text(json.dumps([GOOD, SHARED], indent=indent))
    first, second = read_preferences(path)
    assert (first.question, first.chosen.content, first.rejected.content) == ("q", "a", "b")
    assert (second.question, second.chosen.content, second.rejected.content) == ("q", "yes", "no")
    path.write_text(json.dumps([GOOD, {}], indent=0))
    with pytest.raises(InputError, match=r"pairs\.json \(line 7, row 2\): a pair has a prompt"):
        list(read_preferences(path))


def test_pairs_may_be_a_table(tmp_path):
    (tmp_path / "pairs.csv").write_text("id,prompt,chosen,rejected,input\n1,q,a,b,\n,q,yes,no,\n")
    first, second = read_preferences(tmp_path / "pairs.csv")
    assert (first.id, first.question, first.chosen.content, first.rejected.content) == ("1", "q", "a", "b")
    assert second.id == content_hash(second.texts)[:16]
    # The columns of the published UltraFeedback pairs.
    row = SHARED | {"prompt": "q", "prompt_id": "x", "messages": SHARED["chosen"], "score_chosen": 7.0}
    parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "pairs.parquet")
    (pair,) = read_preferences(tmp_path / "pairs.parquet")
    assert (pair.question, pair.chosen.content, pair.rejected.content) == ("q", "yes", "no")


@pytest.mark.parametrize(
    "prompt",
    [
        {},
        {"prompt": "q"},
        {"prompt": ""},
        {"prompt": [{"role": "system", "content": "s"}, QUESTION, ANSWER, QUESTION]},
        {"messages": [{"role": "system", "content": "s"}, QUESTION, ANSWER, QUESTION]},
    ],
)
def test_the_prompt_may_be_the_shared_beginning_of_the_answers(tmp_path, prompt):
    shared = [{"role": "system", "content": "s"}, QUESTION, ANSWER, QUESTION]
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(prompt | {"chosen": [*shared, ANSWER], "rejected": [*shared, NO]}))
    (pair,) = read_preferences(path)
    assert [turn.role for turn in pair.prompt] == ["system", "user", "assistant", "user"]
    assert not any(turn.in_loss for turn in pair.prompt)
    assert (pair.chosen, pair.rejected) == (Turn("assistant", "yes"), Turn("assistant", "no"))


def test_messages_and_answers_may_be_those_of_trl(tmp_path):
    turns = [{"role": role, "content": role} for role in ("system", "user", "assistant", "user")]
    path = tmp_path / "pairs.jsonl"
    path.write_text(
        json.dumps({"messages": turns, "chosen": [ANSWER], "rejected": ANSWER | {"content": "no"}})
    )
    (row,) = read_preferences(path)
    assert [turn.role for turn in row.prompt] == ["system", "user", "assistant", "user"]
    assert not any(turn.in_loss for turn in row.prompt)
    assert (row.chosen.content, row.rejected.content) == ("yes", "no")


def test_pairs_that_are_too_long_and_settings_that_do_not_fit_are_refused(pairs, tmp_path):
    with pytest.raises(RecipeError, match=r"pairs has no pair to train on; 60 are too long, up to"):
        run(dpo_config(sequence_length=16), pairs, tmp_path / "out")
    with pytest.raises(ValidationError, match='method = "dpo" needs rows'):
        dpo_config(rows=None, task="pubmed-sections")
    assert dpo_config().input_kinds()["rows"].name == "preferences"


def test_a_pair_without_an_id_gets_a_hash_whether_it_is_absent_or_null(tmp_path):
    pair = {"prompt": "q", "chosen": "a", "rejected": "b"}
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps(pair) + "\n" + json.dumps(pair | {"id": None}) + "\n")
    absent, null = read_preferences(path)
    assert absent.id == null.id


def test_a_pair_that_the_chat_template_refuses_is_named(pairs, tmp_path):
    base = shutil.copytree(pairs["base"].path, tmp_path / "base")
    config = json.loads((base / "tokenizer_config.json").read_text())
    config["chat_template"] = "{{ raise_exception('no such role') }}"
    (base / "tokenizer_config.json").write_text(json.dumps(config))
    inputs = pairs | {"base": Artifact("base", base, "base")}
    with pytest.raises(InputError, match=r"pairs.jsonl \(line 1\): chat template .*no such role") as error:
        run(dpo_config(template="tokenizer"), inputs, tmp_path / "out")
    assert "chat template accepts" in error.value.hint


@pytest.mark.parametrize("change", [{"float8": True}, {"compile": True}, {"dtype": "bfloat16"}])
def test_cached_references_are_of_the_same_arithmetic(dataset, change):
    def key(**changes):
        state = SimpleNamespace(config=dpo_config(**changes), layout=one_process())
        return preference._cache_key(state, [dataset.pair(0)], "base")

    assert key() == key()
    assert key() != key(**change)
