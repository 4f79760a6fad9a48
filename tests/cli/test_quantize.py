"""`quantize` as it is typed."""

import json
from pathlib import Path

import pytest

from command import Command
from meditron.release.config import QuantizeConfig
from meditron.store.gguf import GGUF
from tiny import tiny_hf


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_hf(tmp_path_factory.mktemp("model") / "tiny")


def test_files_their_sizes_and_what_fell_back(meditron: Command, model: Path, tmp_path: Path) -> None:
    said = meditron("quantize", model, "--type", "Q4_K_M", "--type", "Q8_0", "--out", tmp_path)
    assert said.code == 0, said.err
    assert "Q4_K_M.gguf" in said.out
    assert "RAM, 256 tokens" in said.out
    assert "fallback types 13 × Q5_0, 3 × Q8_0" in said.err
    with GGUF(tmp_path / "tiny-Q4_K_M.gguf") as file:
        assert file.tensors["blk.0.attn_q.weight"].type == "Q5_0"


def test_a_dry_run_shows_the_memory_with_layers_on_a_gpu(meditron: Command, model: Path) -> None:
    said = meditron("quantize", model, "--type", "Q8_0", "--dry-run")
    assert said.code == 0, said.err
    assert "layers: VRAM" in said.out
    (file,) = json.loads(meditron("quantize", model, "--type", "Q8_0", "--dry-run", "--json").out)["files"]
    none, half, every = file["offload"]
    assert (none["vram"], none["ram"]) == (0, file["ram"])
    assert 0 < half["vram"] < every["vram"]


def test_json_is_all_there_is_on_stdout(meditron: Command, model: Path, tmp_path: Path) -> None:
    said = meditron("quantize", model, "--type", "Q8_0", "--out", tmp_path, "--threads", "1", "--json")
    told = json.loads(said.out)
    (file,) = told["files"]
    assert {"path", "type", "bytes", "bpw", "fallbacks", "sha256", "cost"} <= file.keys()
    assert file["cost"]["measured"] is False
    assert told["recommended"] == "Q8_0"
    assert {"seconds", "peak_rss"} <= told.keys()
    assert Path(file["path"]).stat().st_size == file["bytes"]


def test_what_is_there_stays_and_a_wrong_type_is_told(meditron: Command, model: Path, tmp_path: Path) -> None:
    assert meditron("quantize", model, "--type", "F16", "--out", tmp_path).code == 0
    refused = meditron("quantize", model, "--type", "F16", "--out", tmp_path)
    assert refused.code == 2
    assert "--force" in refused.err
    assert meditron("quantize", model, "--type", "F16", "--out", tmp_path, "--force").code == 0
    wrong = meditron("quantize", model, "--type", "Q9", "--out", tmp_path)
    assert wrong.code == 2
    assert "Q4_K_M" in wrong.err
    assert meditron("quantize", model, "--threads", "0", "--out", tmp_path).code == 2


def test_types_in_any_case_and_as_arguments(meditron: Command, model: Path, tmp_path: Path) -> None:
    said = meditron("quantize", model, "q4_k_m", "F16", "--type", "q8_0", "--out", tmp_path)
    assert said.code == 0, said.err
    names = {f"tiny-{kind}.gguf" for kind in ("Q4_K_M", "F16", "Q8_0")}
    assert {file.name for file in tmp_path.iterdir()} == names
    wrong = meditron("quantize", model, "q4_k_x", "--out", tmp_path)
    assert wrong.code == 2
    assert "unknown GGUF type 'q4_k_x': did you mean Q4_K_" in wrong.err
    assert "types: F32, F16," in wrong.err
    wrong = meditron("quantize", model, "q8_0", "--out", tmp_path / "model.gguf")
    assert wrong.code == 2
    assert "--out must be a folder" in wrong.err
    assert not (tmp_path / "model.gguf").exists()


def test_convert_takes_a_type_in_any_case_and_a_skipped_check(
    meditron: Command, model: Path, tmp_path: Path
) -> None:
    said = meditron("convert", model, tmp_path / "a.gguf", "--type", "f32", "--no-check", "--json")
    assert said.code == 0, said.err
    assert json.loads(said.out)["type"] == "F32"
    assert json.loads(said.out)["check"] == "skipped"
    said = meditron("convert", tmp_path / "a.gguf", tmp_path / "b", "--json")
    assert json.loads(said.out)["check"] == "passed"
    wrong = meditron("convert", model, tmp_path / "c.gguf", "--type", "q8_0")
    assert wrong.code == 2
    assert "F16, F32" in wrong.err


def test_a_type_that_convert_leaves_to_quantize_is_told_so(
    meditron: Command, model: Path, tmp_path: Path
) -> None:
    said = meditron("convert", model, tmp_path / "x.gguf", "--type", "q4_k_m")
    assert said.code == 2
    assert "type must be one of F16, F32, got Q4_K_M" in said.err
    assert "meditron quantize MODEL --type Q4_K_M" in said.err


def test_without_types_the_default_of_the_stage_is_written(
    meditron: Command, model: Path, tmp_path: Path
) -> None:
    assert meditron("quantize", model, "--out", tmp_path).code == 0
    (default,) = QuantizeConfig().types
    assert [file.name for file in tmp_path.iterdir()] == [f"tiny-{default}.gguf"]


def test_gptq_and_awq_are_types_too(meditron: Command, tmp_path: Path) -> None:
    model = tiny_hf(
        tmp_path / "model", hidden_size=64, intermediate_size=128, num_attention_heads=4,
        num_key_value_heads=2, head_dim=32,
    )  # fmt: skip
    planned = meditron("quantize", model, "q8_0", "--type", "awq-4bit-32g", "--dry-run", "--json")
    files = json.loads(planned.out)["files"]
    assert [file["type"] for file in files] == ["Q8_0", "AWQ-4bit-32g"]
    # llama.cpp's memory is known for GGUF files only.
    assert files[0].keys() - {"types", "context_bytes", "offload"} == files[1].keys()
    refused = meditron("quantize", model, "AWQ-4bit-32g", "--mix", "2023")
    assert refused.code == 2
    assert "--mix is for GGUF files, not for AWQ-4bit-32g" in refused.err
    refused = meditron("quantize", model, "AWQ-4bit-32g", "--out", tmp_path)
    assert refused.code == 2
    assert "needs a calibration text" in refused.err
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
