"""`imatrix`, and `quantize` with what it wrote, as they are typed."""

import json
from pathlib import Path

import pytest

from command import Command
from tiny import tiny_hf


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_hf(tmp_path_factory.mktemp("model") / "tiny")


def test_a_matrix_is_computed_and_used(meditron: Command, model: Path, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("The patient has a fever and a cough. " * 40)
    command = ("imatrix", model, tmp_path / "text.txt", tmp_path / "x.imatrix", "--chunk-size", "32")
    computed = meditron(*command, "--max-chunks", "2", "--json")
    assert computed.code == 0, computed.err
    told = json.loads(computed.out)
    assert (told["chunks"], told["tokens"]) == (2, 64)
    assert meditron(*command).code == 2  # the file exists
    made = meditron(
        "quantize", model, "IQ3_XXS", "--imatrix", tmp_path / "x.imatrix", "--out", tmp_path, "--json"
    )
    assert made.code == 0, made.err
    again = meditron("quantize", model, "Q8_0", "--imatrix", tmp_path / "text.txt", "--out", tmp_path)
    assert again.code == 1
    assert "text.txt" in again.err


def test_a_dry_run_writes_nothing(meditron: Command, model: Path, tmp_path: Path) -> None:
    told = meditron("quantize", model, "q4_k_m", "--dry-run", "--mix", "2023", "--out", tmp_path, "--json")
    assert told.code == 0, told.err
    (file,) = json.loads(told.out)["files"]
    assert {"type", "bytes", "bpw", "fallbacks"} <= file.keys()
    assert not {"path", "sha256"} & file.keys()
    assert not list(tmp_path.iterdir())
    refused = meditron("quantize", model, "--target-size", "4GB", "--out", tmp_path)
    assert refused.code == 2
    assert "needs calibrate" in refused.err
