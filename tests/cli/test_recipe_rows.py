"""`inspect RECIPE`: rows of its finetunes as training will tokenize them."""

import json
from pathlib import Path

import pytest

from command import Command
from meditron.recipe import load_recipe, run_recipe
from meditron.store.jsonl import JsonlWriter, read_jsonl
from tiny import CHAT, tiny_hf
from train.world import make_answers

RECIPE = """
base = "{folder}/base"
[[finetune]]
name = "first"
on = "base"
task = "{folder}/exam.jsonl"
rows = ["{folder}/chat.jsonl", "{folder}/alpaca.json"]
template = "meditron"
sequence_length = 128
batch_size = 4
learning_rate = 1e-3
epochs = 1
heldout = 0.2
dtype = "float32"
threads = 1
[[finetune]]
name = "second"
on = "finetune.first"
rows = "{folder}/chat.jsonl"
template = "tokenizer"
sequence_length = 128
batch_size = 4
learning_rate = 1e-3
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rows")
    make_answers(folder)
    with JsonlWriter(folder / "exam.jsonl") as file:
        for number in range(12):
            question = {"id": f"e{number}", "question": f"Which is {number}?", "gold": number % 2}
            file.write(question | {"options": ["even", "odd"]})
    rows = [{"instruction": f"Say {number}.", "output": f"It is {number}."} for number in range(3)]
    (folder / "alpaca.json").write_text(json.dumps(rows))
    (folder / "mix.toml").write_text(RECIPE.format(folder=folder))
    return folder


def test_a_row_of_each_source_is_printed_with_its_loss_mask(meditron: Command, folder: Path) -> None:
    result = meditron("inspect", folder / "mix.toml", "--out", folder / "runs").out
    assert "exam e" in result
    assert "‹user›<|im_start|>question⏎\n      Which is " in result
    assert "‹assistant›⟦A<|im_end|>⟧" in result or "‹assistant›⟦B<|im_end|>⟧" in result
    assert "chat q0: " in result
    assert "‹assistant›⟦It is 0.<|im_end|>⟧" in result
    # The second finetune reads the chat template that the first one will export.
    assert result.count("‹assistant›⟦It acts on the liver.<|im_end|>⟧") == 2
    assert result.count("|im_start|>question") == 4


def test_the_rows_are_those_of_the_training(meditron: Command, folder: Path) -> None:
    view = json.loads(
        meditron("inspect", folder / "mix.toml", "--rows", "60", "--out", folder / "runs", "--json").out
    )
    shown = [{key: row[key] for key in row if key != "spans"} for row in view["inside"][0]["rows"]]
    result = run_recipe(load_recipe(folder / "mix.toml"), out=folder / "runs", until="finetune.first")
    assert result.built_stages == ["finetune.first"]
    stage = folder / "runs/mix/finetune.first"
    assert shown == list(read_jsonl(stage / "rows.jsonl.zst"))
    metrics = json.loads((stage / "manifest.json").read_text())["metrics"]
    assert list(metrics["data"]) == ["exam", "chat", "alpaca"]
    assert [sum(counts.values()) for counts in metrics["data"].values()] == [12, 60, 3]
    assert "Rows by source" in (stage / "report.html").read_text()
    [training] = json.loads((stage / "ancestry.json").read_text())["trainings"]
    assert training["data"] == "exam+chat+alpaca"
    assert (training["task"], training["prompt_template"]) == ("exam", "letters")
    assert len(training["questions"]) == metrics["data"]["exam"]["train"]
    assert training["texts"]


def test_added_tokens_are_shown_and_kept_by_later_stages(meditron: Command, folder: Path) -> None:
    tiny_hf(folder / "plain", tied=True)
    recipe = folder / "added.toml"
    text = RECIPE.format(folder=folder).replace("/base", "/plain")
    recipe.write_text(text.replace('"meditron"', f'"meditron"\nadded_tokens = {json.dumps(CHAT)}'))
    view = json.loads(meditron("inspect", recipe, "--out", folder / "runs", "--json").out)
    first, second = view["inside"]
    assert first["facts"]["added_tokens"] == {"<|im_start|>": 320, "<|im_end|>": 321}
    assert second["rows"][0]["ids"] == first["rows"][1]["ids"]
    assert second["rows"][0]["ids"].count(320) == 2
    recipe.write_text(text)
    error = meditron("inspect", recipe, "--out", folder / "runs").err
    assert "the template 'meditron' needs the token <|im_start|>" in error
    assert 'added_tokens = ["<|im_start|>", "<|im_end|>"]' in error


def test_what_cannot_be_shown_is_an_error(meditron: Command, folder: Path) -> None:
    recipe = folder / "corpus.toml"
    recipe.write_text(
        f"""
base = "{folder}/base"
[corpus.sources.notes]
from = "{folder}/chat.jsonl"
[[finetune]]
on = "base"
task = "pubmed-sections"
sequence_length = 64
batch_size = 1
learning_rate = 1e-3
"""
    )
    result = meditron("inspect", recipe, "--out", folder / "runs")
    assert result.code == 2
    assert "finetune reads the corpus, which is not built" in result.err
    assert f"meditron run {recipe} --until corpus" in " ".join(result.err.split())
    recipe.write_text(f'base = "{folder}/base"\n[corpus.sources.notes]\nfrom = "{folder}/chat.jsonl"\n')
    assert "no [[finetune]] whose rows could be shown" in meditron("inspect", recipe).err
