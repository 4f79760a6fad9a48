"""The training of a recipe that `plan` predicts."""

from pathlib import Path

import pytest

from meditron.core.errors import RecipeError, SourceError
from meditron.plan.architectures import KNOWN
from meditron.recipe.schema import Recipe, load_recipe
from meditron.recipe.training_job import training_job, training_stage

FINETUNES = """
base = "hf:Qwen/Qwen3-8B"

[[finetune]]
name = "first"
on = "base"
rows = "rows.jsonl"
sequence_length = 1024
batch_size = 8
learning_rate = 1e-5
dtype = "float32"

[[finetune]]
name = "second"
on = "finetune.first"
rows = "rows.jsonl"
sequence_length = 2048
batch_size = 8
learning_rate = 1e-5
compile = true
"""


def recipe(tmp_path: Path, text: str) -> Recipe:
    path = tmp_path / "mine.toml"
    path.write_text(text, encoding="utf-8")
    return load_recipe(path)


def test_the_base_is_found_through_the_stages_before(tmp_path: Path) -> None:
    loaded = recipe(tmp_path, FINETUNES)
    spec, _ = training_stage(loaded, "finetune.second")
    job = training_job(loaded, spec, tokens=1000)
    assert job.config == KNOWN["Qwen/Qwen3-8B"]
    assert (job.sequence_length, job.tokens, job.narrow, job.compiled) == (2048, 1000, True, True)


def test_the_first_training_is_the_default(tmp_path: Path) -> None:
    loaded = recipe(tmp_path, FINETUNES)
    spec, _ = training_stage(loaded, None)
    assert spec.name == "finetune.first"
    job = training_job(loaded, spec)
    assert job.tokens is None, "the data set their number"
    assert not job.narrow
    assert job.method.name == "full"


def test_what_cannot_be_planned_is_refused(tmp_path: Path) -> None:
    loaded = recipe(tmp_path, FINETUNES)
    with pytest.raises(RecipeError, match="no training stage 'pretrain'"):
        training_stage(loaded, "pretrain")
    without = recipe(tmp_path, FINETUNES.replace('base = "hf:Qwen/Qwen3-8B"', ""))
    with pytest.raises(RecipeError, match="the recipe has none"):
        training_job(without, training_stage(without, None)[0])
    unknown = recipe(tmp_path, FINETUNES.replace("Qwen3-8B", "Qwen9-8B"))
    with pytest.raises(SourceError, match="are not known"):
        training_job(unknown, training_stage(unknown, None)[0])
    quantize = recipe(tmp_path, 'base = "hf:a/b"\n[quantize]\non = "base"\ntypes = ["Q8_0"]\n')
    with pytest.raises(RecipeError, match="no training stage to plan"):
        training_stage(quantize, None)
