"""`convert`, `generate`, `compare` as they are typed, on real small models."""

import json
from pathlib import Path

import pytest

from command import Command
from tiny import tiny_hf


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_hf(tmp_path_factory.mktemp("model") / "tiny")


def test_convert_there_and_back_keeps_the_weights(meditron: Command, model: Path, tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load_file

    gguf, back = tmp_path / "x.gguf", tmp_path / "back"
    said = meditron("convert", model, gguf, "--type", "F32", "--json")
    assert said.code == 0, said.err
    assert json.loads(said.out)["type"] == "F32"
    assert meditron("convert", gguf, back).code == 0
    before, after = load_file(model / "model.safetensors"), load_file(back / "model.safetensors")
    assert all(torch.equal(before[name], after[name]) for name in before)
    refused = meditron("convert", model, gguf)
    assert refused.code == 2
    assert "--force" in refused.err
    assert meditron("convert", model, gguf, "--force").code == 0
