"""SmolLM2-135M, whose 9 heads and 3 key/value heads tensor parallelism cannot divide, at dp2 × tp2."""

import json
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from word_corpus import write_recipe

ROOT = Path(__file__).resolve().parents[2]
STEPS = 5


def losses(recipe: Path, out: Path, *words: str) -> list[float]:
    command = [sys.executable, "-m", "meditron", "run", str(recipe), "--out", str(out), "--until", "pretrain"]
    command += ["--set", "pretrain.checkpoint_every=100"]  # each has 1.6 GB
    done = subprocess.run([*command, *words], capture_output=True, text=True, timeout=540, check=False)
    assert done.returncode == 0, done.stderr
    lines = (out / "recipe/pretrain/metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [row["loss"] for row in map(json.loads, lines) if "loss" in row]


@pytest.mark.network
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_five_steps_of_smollm2_equal_one_process(tmp_path: Path) -> None:
    base = tomllib.loads((ROOT / "recipes/quickstart.toml").read_text(encoding="utf-8"))["base"]
    recipe = write_recipe(tmp_path, base, steps=STEPS, learning_rate=2e-5, documents=60)
    expected = losses(recipe, tmp_path / "one")
    layout = ["--set", "pretrain.parallel.dp_shard=2", "--set", "pretrain.parallel.tp=2"]
    measured = losses(recipe, tmp_path / "four", "--nproc", "4", *layout)
    assert len(measured) == len(expected) == STEPS
    assert max(abs(a - b) for a, b in zip(measured, expected, strict=True)) <= 5e-6
    assert measured != expected, "bit-equal: was --nproc ignored?"
