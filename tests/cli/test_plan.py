"""`plan` as it is typed."""

import json
import os
from pathlib import Path

import pytest

from command import Command

ROOT = Path(__file__).parents[2]
A100, H100 = ROOT / "recipes/clusters/a100-80.toml", ROOT / "recipes/clusters/h100.toml"
RECIPE = """
base = "hf:meta-llama/Llama-2-70b-hf"

[corpus.sources.papers]
from = "data/papers"
domain = "medical"
licence = "mixed"

[tokenize]

[pretrain]
tokens = 48_045_000_000
sequence_length = 4096
batch_size = 512
micro_batch_size = 2
learning_rate = 1.5e-4
dtype = "bfloat16"
parallel = { dp_replicate = 2, dp_shard = 1, tp = 8, pp = 8, activation_checkpointing = "selective" }

[[finetune]]
name = "answers"
on = "pretrain"
rows = "answers.jsonl"
sequence_length = 2048
batch_size = 64
micro_batch_size = 1
learning_rate = 1e-5
parallel = { tp = 8, pp = 4, activation_checkpointing = "full" }
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "continued.toml"
    path.write_text(RECIPE, encoding="utf-8")
    return path


def test_json_has_the_fields_that_scripts_rely_on(meditron: Command, recipe: Path) -> None:
    said = meditron("plan", recipe, "--cluster", A100, "--json")
    assert said.code == 0, said.err
    told = json.loads(said.out)
    assert {
        "parameters", "parameters_per_rank", "memory", "tokens_per_second", "mfu", "hours",
        "gpu_hours", "kgco2e", "cost",
    } <= told.keys()  # fmt: skip
    assert len(told["parameters_per_rank"]) == 128
    assert told["stage"] == "pretrain"


def test_a_measured_rate_replaces_the_predicted_one(meditron: Command, recipe: Path) -> None:
    told = json.loads(
        meditron("plan", recipe, "--cluster", A100, "--tokens-per-second", "40200", "--json").out
    )
    assert told["tokens_per_second"] == 40_200
    assert told["predicted_tokens_per_second"] != 40_200
    assert told["gpu_hours"] == pytest.approx(42_496, rel=0.01)
    assert told["kgco2e"] == pytest.approx(486, rel=0.01)


def test_tables_have_the_answer_first(meditron: Command, recipe: Path) -> None:
    said = meditron("plan", recipe, "--cluster", A100)
    assert said.code == 0, said.err
    for text in ("68,976,648,192", "tokens per second", "kg CO2e", "activations", "pipeline bubble", "qlora"):
        assert text in said.out
    assert said.out.index("tokens per second") < said.out.index("activations")


def test_a_layout_that_does_not_fit_ends_with_one_and_a_hint(meditron: Command, recipe: Path) -> None:
    said = meditron("plan", recipe, "--cluster", H100, "--set", "pretrain.parallel.tp=3")
    assert said.code == 1
    assert "tp 3 does not divide" in said.err
    assert "hint: tp may be 1, 2, 4, 7, 8" in said.err
    assert "nodes would be enough" in said.err
    wide = meditron("plan", recipe, "--cluster", H100, "--nodes", "16")
    assert wide.code == 0, wide.err


def test_a_finetuning_needs_its_number_of_tokens(meditron: Command, recipe: Path) -> None:
    words = ("plan", recipe, "--cluster", A100, "--only", "finetune.answers")
    assert "--tokens gives their number" in meditron(*words).out
    told = json.loads(meditron(*words, "--tokens", "1000000", "--nodes", "4", "--json").out)
    assert told["gpus"] == 32
    assert told["hours"] > 0
    part = meditron(*words, "--set", "finetune.answers.parallel.dp_shard=1", "--json")
    assert "32 of the cluster's 128 GPUs" in json.loads(part.out)["notes"][0]


def test_wrong_input_is_named(meditron: Command, recipe: Path, tmp_path: Path) -> None:
    absent = meditron("plan", recipe, "--cluster", tmp_path / "none.toml")
    assert (absent.code, "no such file" in absent.err) == (2, True)
    stage = meditron("plan", recipe, "--cluster", A100, "--only", "corpus")
    assert (stage.code, "no training stage 'corpus'" in stage.err) == (2, True)
    unknown = meditron("plan", recipe, "--cluster", A100, "--set", "base=hf:someone/Else-9b")
    assert unknown.code == 2
    assert "the sizes of hf:someone/Else-9b are not known" in unknown.err
    assert "Llama-2-70b" in unknown.err


def test_a_script_starts_the_ranks_of_the_layout(meditron: Command, recipe: Path, tmp_path: Path) -> None:
    script = tmp_path / "job.sh"
    words = ("plan", recipe, "--cluster", A100, "--slurm", script)
    fewer = meditron(*words, "--set", "pretrain.parallel.dp_replicate=1")
    assert fewer.code == 0, fewer.err
    text = script.read_text(encoding="utf-8")
    assert "#SBATCH --nodes=8\n#SBATCH --ntasks-per-node=8\n" in text, "64 of the cluster's 128 GPUs"
    impossible = meditron(*words, "--set", "pretrain.parallel.tp=3")
    assert impossible.code == 1
    assert "is not written: the layout is impossible" in impossible.err
    assert script.read_text(encoding="utf-8") == text


def test_a_script_replaces_no_folder_link_or_device(meditron: Command, recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("target")
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "link", tmp_path / "pipe", ""):
        said = meditron("plan", recipe, "--cluster", A100, "--slurm", path)
        assert (said.code, "not a regular file" in said.err) == (2, True)
    assert (tmp_path / "pipe").is_fifo()


def test_a_script_replaces_neither_recipe_nor_cluster_file(
    meditron: Command, recipe: Path, tmp_path: Path
) -> None:
    cluster = tmp_path / "cluster.toml"
    cluster.write_bytes(A100.read_bytes())
    for path in (recipe, cluster):
        before = path.read_bytes()
        said = meditron("plan", recipe, "--cluster", cluster, "--slurm", path)
        assert (said.code, "would overwrite the input" in said.err) == (2, True)
        assert path.read_bytes() == before


@pytest.mark.parametrize("rate", ["0", "nan", "inf", "1e-320"])
def test_a_rate_without_a_meaning_is_refused(meditron: Command, recipe: Path, rate: str) -> None:
    said = meditron("plan", recipe, "--cluster", A100, "--tokens-per-second", rate)
    assert (said.code, "--tokens-per-second" in said.err) == (2, True)


def test_a_model_on_this_machine_is_read(meditron: Command, tmp_path: Path) -> None:
    plain = RECIPE.replace("hf:meta-llama/Llama-2-70b-hf", "init:tiny").partition("[[finetune]]")[0]
    path = tmp_path / "small.toml"
    path.write_text(plain.partition("parallel =")[0], encoding="utf-8")
    told = json.loads(
        meditron("plan", path, "--cluster", ROOT / "recipes/clusters/laptop.toml", "--json").out
    )
    assert 3e6 < told["parameters"] < 4e6
    assert told["gpus"] == 1
