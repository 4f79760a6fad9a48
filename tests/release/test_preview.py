"""The dry run: sizes and types from a config alone."""

import json
import shutil
from pathlib import Path

import pytest

from meditron.core.errors import UsageError
from meditron.release.preview import preview
from meditron.release.quantize import QuantizeOptions, quantize
from meditron.release.types import GGUFType

CARD = [
    "Q2_K",
    "Q3_K_S",
    "Q3_K_M",
    "Q3_K_L",
    "Q4_0",
    "Q4_K_S",
    "Q4_K_M",
    "Q5_0",
    "Q5_K_S",
    "Q5_K_M",
    "Q6_K",
    "Q8_0",
]
PUBLISHED = {  # GB, of the quantized releases of Llama-2's 70B and 7B shapes
    70: (29.28, 29.92, 33.19, 36.15, 38.87, 39.07, 41.42, 47.46, 47.46, 48.75, 56.59, 73.29),
    7: (2.83, 2.95, 3.30, 3.60, 3.83, 3.86, 4.08, 4.65, 4.65, 4.78, 5.53, 7.16),
}
SHAPES = {70: (8192, 28672, 80, 64, 8), 7: (4096, 11008, 32, 32, 32)}


def config_folder(folder: Path, billions: int) -> Path:
    width, inner, blocks, heads, shared = SHAPES[billions]
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 32000,
        "hidden_size": width, "intermediate_size": inner, "num_hidden_layers": blocks,
        "num_attention_heads": heads, "num_key_value_heads": shared, "max_position_embeddings": 4096,
    }  # fmt: skip
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("billions", [70, 7])
def test_the_sizes_of_the_published_files(tmp_path: Path, billions: int) -> None:
    model = config_folder(tmp_path / "model", billions)
    result = preview(str(model), CARD, QuantizeOptions(mix="2023"))
    sizes = {file["type"]: file["bytes"] / 1e9 for file in result["files"]}
    assert sizes == pytest.approx(dict(zip(CARD, PUBLISHED[billions], strict=True)), abs=0.011)
    assert not {"path", "sha256"} & result["files"][0].keys()
    assert "no tokenizer" in result["notes"][0]
    if billions == 70:
        current = preview(str(model), ["Q2_K"])["files"][0]["bytes"] / 1e9
        assert current == pytest.approx(25.46, abs=0.01)


def test_the_bytes_of_the_real_files(wide: Path, tmp_path: Path) -> None:
    types: list[GGUFType] = ["F16", "Q4_K_M", "IQ4_NL"]
    planned = preview(str(wide), types)
    made = quantize(str(wide), types, tmp_path / "out")
    shared = ("type", "bytes", "bpw", "fallbacks", "ram", "context", "cost")
    assert [{key: file[key] for key in shared} for file in planned["files"]] == [
        {key: file[key] for key in shared} for file in made["files"]
    ]
    assert planned["notes"] == []
    # Without weights the same.
    bare = Path(shutil.copytree(wide, tmp_path / "model", ignore=shutil.ignore_patterns("*.safetensors")))
    assert preview(str(bare), types)["files"] == planned["files"]


def test_refused(tmp_path: Path) -> None:
    model = str(config_folder(tmp_path / "model", 7))
    with pytest.raises(UsageError, match="IQ4_XS did not exist in 2023"):
        preview(model, ["IQ4_XS"], QuantizeOptions(mix="2023"))
    with pytest.raises(UsageError, match="reads no weights"):
        preview(model, [], QuantizeOptions(target_size="4GB", calibrate=tmp_path))
    assert "IQ2_M needs an importance matrix" in preview(model, ["IQ2_M"])["notes"][-1]
