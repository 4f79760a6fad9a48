"""A run whose finetune adds tokens: quantized, and evaluated beside its base, whose vocabulary is smaller."""

import json
from pathlib import Path

import pytest

from meditron.core.errors import MeditronError
from meditron.recipe import load_recipe, run_recipe
from meditron.store.gguf import GGUF
from meditron.store.jsonl import JsonlWriter
from tiny import tiny_hf
from train.world import make_answers

RECIPE = """
base = "{folder}/plain"
[corpus]
heldout = 0.5
min_characters = 1
[corpus.sources.notes]
from = "{folder}/notes.jsonl"
[[finetune]]
name = "chat"
on = "base"
rows = "{folder}/chat.jsonl"
template = "chatml"
added_tokens = ["<|im_start|>", "<|im_end|>"]
sequence_length = 128
batch_size = 4
learning_rate = 1e-2
dtype = "float32"
threads = 1
[quantize]
on = "finetune.chat"
types = ["Q8_0"]
[evaluate]
models = ["base", "finetune.chat", "quantize:Q8_0"]
tasks = ["{folder}/exam.jsonl"]
dtype = "float32"
"""


@pytest.mark.timeout(300)
def test_base_and_finetune_are_compared_and_fidelity_refuses(tmp_path: Path) -> None:
    make_answers(tmp_path)
    tiny_hf(tmp_path / "plain", tied=True)
    with JsonlWriter(tmp_path / "exam.jsonl") as file:
        for number in range(12):
            question = {"id": f"e{number}", "question": f"Which is {number}?", "gold": number % 2}
            file.write(question | {"options": ["even", "odd"]})
    with JsonlWriter(tmp_path / "notes.jsonl") as file:
        for number in range(40):
            about = f"the {number % 7} drugs that lower the glucose of patient {number}"
            file.write({"text": f"Note {number} is about {about}."})
    recipe = tmp_path / "added.toml"
    recipe.write_text(RECIPE.format(folder=tmp_path))
    run_recipe(load_recipe(recipe), out=tmp_path / "runs")
    stage = tmp_path / "runs/added"
    scores = json.loads((stage / "evaluate/manifest.json").read_text())["metrics"]
    assert all(name in json.dumps(scores) for name in ("base", "finetune.chat", "quantize:Q8_0"))
    [file_path] = (stage / "quantize").glob("*.gguf")
    with GGUF(file_path) as gguf:
        assert gguf.metadata["tokenizer.ggml.tokens"][320:] == ["<|im_start|>", "<|im_end|>"]
        assert gguf.metadata["tokenizer.ggml.token_type"][320:] == [3, 3]
    text = recipe.read_text() + 'fidelity = [{ model = "finetune.chat", against = "base" }]\n'
    recipe.write_text(text.replace("tasks =", "fidelity_documents = 6\ntasks ="))
    with pytest.raises(MeditronError, match=r"has a vocabulary of 322 tokens and .* one of 320") as caught:
        run_recipe(load_recipe(recipe), out=tmp_path / "runs2")
    assert "Traceback" not in caught.value.message
