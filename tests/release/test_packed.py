"""GPTQ and AWQ folders: names of types, refusals before any work, and what is written beside the weights.

A stand-in for GPTQModel, which rounds to the nearest value, runs in the worker's process here. With the real
library installed, `test_gptqmodel.py` compares with transformers.
"""

import json
from pathlib import Path

import pytest
import torch

from meditron.core.errors import EngineError, MissingExtra, UsageError
from meditron.model.weights import load_model
from meditron.release import packed as packed_module
from meditron.release.check import ExportError
from meditron.release.convert import convert
from meditron.release.packed import plan_packed, write_packed
from meditron.release.packed_shape import preview_packed
from meditron.release.packed_types import PackedType, parse_packed_type
from meditron.release.verify.verification import verify
from meditron.store.checksums import read_checksums
from meditron.store.files import sha256_file
from tiny import TEXTS, tiny_hf

_TESTS = Path(__file__).parents[1]
_STAND_IN = """
import shutil
from pathlib import Path
from safetensors.torch import load_file, save_file
from packed import write_packed_folder

class BACKEND:
    AUTO = AWQ_TORCH = None

class GPTQModel:
    @classmethod
    def load(cls, source, config, *, device, dtype):
        print("noise on stdout")
        Path("logs").mkdir()
        model = cls()
        model.source, model.config = source, config
        return model

    def quantize(self, chunks, *, batch_size, backend):
        assert chunks[0]["attention_mask"] == [1] * len(chunks[0]["input_ids"])
        failures = {"fails", f"fails for {self.config['method']}"}
        if any((Path(__file__).parent / name).exists() for name in failures):
            raise ValueError("Cholesky failed")
        for layer in range(2):
            self.layer_callback(layer_idx=layer, submodule_finalized=False)
            self.layer_callback(layer_idx=layer, submodule_finalized=True)

    def save(self, out):
        settings = {key: value for key, value in self.config.items() if key in ("bits", "group_size")}
        settings["act_order"] = self.config.get("desc_act", False)
        if (Path(__file__).parent / "wrong").exists():
            settings["layout"] = "gptq_v2"
        write_packed_folder(Path(self.source), Path(out), method=self.config["method"], **settings)
        if (Path(__file__).parent / "other norm").exists():
            weights = Path(out) / "model.safetensors"
            state = load_file(weights)
            state["model.layers.1.input_layernorm.weight"] *= 1.01
            save_file(state, weights, metadata={"format": "pt"})
        (Path(out) / "quantize_config.json").write_text("{}")
"""
_CONFIGS = """
def GPTQConfig(**settings):
    return {"method": "gptq", **settings}

def AWQConfig(**settings):
    return {"method": "awq", **settings}
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tiny_hf(
        tmp_path_factory.mktemp("model") / "model", hidden_size=64, intermediate_size=128,
        num_attention_heads=4, num_key_value_heads=2, head_dim=32, initializer_range=0.3,
    )  # fmt: skip
    (folder / "README.md").write_text("---\nlicense: apache-2.0\nmodel_name: Small\n---\n# Small\n")
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "medical.txt"
    path.write_text("\n".join(TEXTS) * 20, encoding="utf-8")
    return path


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """A package `gptqmodel` for this process and for the worker."""
    folder = tmp_path / "site"
    package = folder / "gptqmodel"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(_STAND_IN)
    (package / "quantization.py").write_text(_CONFIGS)
    information = folder / "gptqmodel-7.6.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: gptqmodel\nVersion: 7.6.0\n")
    monkeypatch.setenv("PYTHONPATH", f"{folder}:{_TESTS}")
    monkeypatch.syspath_prepend(folder)
    monkeypatch.chdir(tmp_path)
    return package


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("GPTQ-4bit-128g", PackedType("GPTQ", 4, 128)),
        ("gptq-4bit-32g-actorder", PackedType("GPTQ", 4, 32, act_order=True)),
        ("gptq-4bit-32g-actorder_True", PackedType("GPTQ", 4, 32, act_order=True)),
        ("gptq-8bit-64g-actorder_False", PackedType("GPTQ", 8, 64)),
        ("gptq-8bit--1g-actorder_True", PackedType("GPTQ", 8, -1, act_order=True)),
        ("GPTQ-3bit", PackedType("GPTQ", 3, -1)),
        ("awq-4bit-64g", PackedType("AWQ", 4, 64)),
    ],
)
def test_types_are_named_as_on_published_cards(name, kind):
    assert parse_packed_type(name) == kind
    assert parse_packed_type(str(kind)) == kind


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("GPTQ", "unknown type 'GPTQ'"),
        ("GPTQ-5bit-128g", "GPTQ has 2, 3, 4, 8 bits, got 5"),
        ("AWQ-8bit-128g", "AWQ has 4 bits, got 8"),
        ("GPTQ-4bit-48g", "a group size of 48 is not supported"),
        ("AWQ-4bit", "no group size is not supported"),
        ("AWQ-4bit-32g-actorder", "AWQ has no act-order"),
    ],
)
def test_unknown_types_are_refused(name, problem):
    with pytest.raises(UsageError, match=problem):
        parse_packed_type(name)


def test_what_cannot_be_written_is_refused_before_any_work(model, text, tmp_path, stand_in):
    def plan(kind, **changes):
        options = {"spec": str(model), "out": tmp_path / "out", "calibrate": text} | changes
        return plan_packed(kinds=[parse_packed_type(kind)], **options)

    with pytest.raises(UsageError, match=r"q_proj\.weight have 64 values.*multiple of 128") as refused:
        plan("GPTQ-4bit-128g")
    assert refused.value.hint == "group sizes that fit: 32, 64"
    with pytest.raises(UsageError, match="needs a calibration text"):
        plan("GPTQ-4bit-32g", calibrate=None)
    narrow = tiny_hf(
        tmp_path / "narrow", hidden_size=64, intermediate_size=80, num_attention_heads=4,
        num_key_value_heads=2, head_dim=16,
    )  # fmt: skip
    with pytest.raises(UsageError, match=r"80 .*not a multiple of 32"):
        plan("GPTQ-4bit", spec=str(narrow))
    with pytest.raises(UsageError, match=r"k_proj\.weight has 32 rows, which is not a multiple of 64"):
        plan("AWQ-4bit-32g", spec=str(narrow))
    (tmp_path / "out/Small-GPTQ-4bit-32g").mkdir(parents=True)
    with pytest.raises(UsageError, match="already exists"):
        plan("GPTQ-4bit-32g")
    with pytest.raises(UsageError, match="is not a model folder"):
        plan("GPTQ-4bit-32g", force=True)
    assert not any((tmp_path / "out/Small-GPTQ-4bit-32g").iterdir())


def test_a_missing_library_is_one_line(model, text, tmp_path, monkeypatch):
    monkeypatch.setattr(packed_module.importlib.util, "find_spec", lambda _: None)
    with pytest.raises(MissingExtra, match="GPTQModel is not installed") as missing:
        plan_packed(str(model), [parse_packed_type("GPTQ-4bit-32g")], tmp_path, text)
    assert missing.value.hint == "pip install 'meditron[gptq]'"


def test_folders_are_complete_and_checked(model, text, tmp_path, stand_in, capfd):
    kinds = [parse_packed_type(name) for name in ("GPTQ-4bit-32g-actorder", "AWQ-4bit-64g")]
    result = write_packed(plan_packed(str(model), kinds, Path("out"), text, threads=1))
    assert {path.name for path in tmp_path.iterdir()} == {"out", "site"}
    assert [Path(file["path"]).name for file in result["files"]] == [f"Small-{kind}" for kind in kinds]
    previews = preview_packed(str(model), kinds)
    for file, preview in zip(result["files"], previews, strict=True):
        folder = Path(file["path"])
        names = {path.name for path in folder.iterdir()}
        assert {"config.json", "tokenizer.json", "tokenizer_config.json", "README.md"} <= names
        assert {"generation_config.json", "SHA256SUMS", "model.safetensors"} <= names
        assert "quantize_config.json" not in names  # it has paths of this machine, and no reader needs it
        assert read_checksums(folder) == {name: sha256_file(folder / name) for name in names - {"SHA256SUMS"}}
        assert file["sha256"] == sha256_file(folder / "SHA256SUMS")
        assert file["bpw"] == preview["bpw"]
        header = int.from_bytes((folder / "model.safetensors").read_bytes()[:8], "little") + 8
        assert (folder / "model.safetensors").stat().st_size - header == preview["bytes"]
        assert file["check"] == "passed"
        assert 0 < file["kl"] < 2
        assert (folder / "README.md").read_text() == (model / "README.md").read_text()
        assert verify(folder)["problems"] == []
    quantization = json.loads((folder / "config.json").read_text())["quantization_config"]
    calibration = quantization["meta"].pop("calibration")
    assert quantization["meta"] == {"quantizer": ["gptqmodel:7.6.0"]}
    assert calibration.pop("chunks") > 0
    assert calibration == {"file": "medical.txt", "sha256": sha256_file(text), "chunk_size": 256}
    assert [path.name for path in (tmp_path / "out").glob(".*")] == []
    assert "noise" not in capfd.readouterr().out
    # A packed folder is a MODEL: here the source of a conversion, which compares all weights.
    convert(str(folder), tmp_path / "again.gguf", type="F32")
    first, again = load_model(folder).state_dict(), load_model(tmp_path / "again.gguf").state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_a_failure_leaves_nothing_behind(model, text, tmp_path, stand_in):
    plan = plan_packed(str(model), [parse_packed_type("GPTQ-4bit-32g")], tmp_path / "out", text, threads=1)
    (stand_in / "fails").touch()
    with pytest.raises(EngineError, match=r"Small-GPTQ-4bit-32g: GPTQModel failed: ValueError: Cholesky"):
        write_packed(plan)
    (stand_in / "fails").unlink()
    (stand_in / "wrong").touch()  # zero points as in another layout than the config's
    with pytest.raises(ExportError, match="KL divergence"):
        write_packed(plan)
    (stand_in / "wrong").unlink()
    (stand_in / "other norm").touch()
    with pytest.raises(ExportError, match=r"layers\.1\.input_layernorm\.weight: value 0"):
        write_packed(plan)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_failure_keeps_the_folders_that_were_complete(model, text, tmp_path, stand_in):
    kinds = [parse_packed_type(name) for name in ("GPTQ-4bit-32g", "AWQ-4bit-32g")]
    plan = plan_packed(str(model), kinds, tmp_path / "out", text, threads=1)
    (stand_in / "fails for awq").touch()
    with pytest.raises(EngineError, match=r"Small-AWQ-4bit-32g: GPTQModel failed") as failed:
        write_packed(plan)
    assert failed.value.hint == "it was not written; folders and files that were written before it are kept"
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["Small-GPTQ-4bit-32g"]
    assert verify(tmp_path / "out/Small-GPTQ-4bit-32g")["problems"] == []
