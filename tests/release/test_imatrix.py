"""The computation of an importance matrix; transformers' activations are the reference."""

import hashlib
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from meditron.core.errors import InputError, UsageError
from meditron.model.gguf_layout import gguf_tensor_name
from meditron.release import imatrix as imatrix_module
from meditron.release.config import QuantizeConfig
from meditron.release.imatrix import compute_imatrix
from meditron.release.imatrix_file import read_imatrix
from meditron.release.quantize import QuantizeOptions, quantize, run
from meditron.store.gguf import GGUF
from meditron.store.manifest import Artifact
from meditron.text.tokenizer import load_tokenizer

TEXT = "The patient has a fever and a cough. " * 40


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "medical.txt"
    path.write_text(TEXT)
    return path


def test_the_sums_are_those_of_transformers_inputs(tiny: Path, text: Path, tmp_path: Path) -> None:
    import transformers

    out = tmp_path / "x.imatrix"
    result = compute_imatrix(str(tiny), text, out, chunk_size=32)
    found = read_imatrix(out)
    model = transformers.LlamaForCausalLM.from_pretrained(tiny).eval()
    sums: dict[str, torch.Tensor] = {}

    def add(name: str, inputs: tuple[torch.Tensor, ...]) -> None:
        sums[name] = sums.get(name, 0) + inputs[0].double().square().sum((0, 1))

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and ".layers." in name:
            key = gguf_tensor_name(f"{name}.weight")
            module.register_forward_pre_hook(lambda _, inputs, key=key: add(key, inputs))
    tokenizer = load_tokenizer(tiny)
    ids = tokenizer.encode(TEXT)
    chunks = [ids[place : place + 32] for place in range(0, len(ids) - 31, 32)]
    with torch.no_grad():
        for chunk in chunks:
            if tokenizer.adds_bos:
                chunk = [tokenizer.special.bos, *chunk[1:]]
            model(torch.tensor([chunk]))
    assert found.sums.keys() == sums.keys()
    for name, expected in sums.items():
        assert found.sums[name] == pytest.approx(expected.numpy(), rel=1e-4), name
    assert set(found.counts.values()) == {32.0 * len(chunks)}
    assert result["chunks"] == found.chunks == len(chunks)
    assert result["text_sha256"] == found.text_sha256 == hashlib.sha256(TEXT.encode()).hexdigest()
    assert found.datasets == ("medical.txt",)


def test_a_stopped_computation_continues_with_the_same_result(
    tiny: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compute_imatrix(str(tiny), text, tmp_path / "whole", chunk_size=32)
    monkeypatch.setattr(imatrix_module, "_SAVE_SECONDS", 0.0)
    real, calls = imatrix_module._write_partial, []

    def stop(*given: Any) -> None:
        real(*given)
        calls.append(given[2])
        if len(calls) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(imatrix_module, "_write_partial", stop)
    with pytest.raises(KeyboardInterrupt):
        compute_imatrix(str(tiny), text, tmp_path / "parts", chunk_size=32)
    assert not (tmp_path / "parts").exists()
    # Sums over three chunks are no part of those over two.
    shutil.copy(tmp_path / "parts.partial", tmp_path / "fewer.partial")
    for name in ("fewer", "fresh"):
        compute_imatrix(str(tiny), text, tmp_path / name, chunk_size=32, max_chunks=2)
    assert (tmp_path / "fewer").read_bytes() == (tmp_path / "fresh").read_bytes()
    del calls[3:]
    compute_imatrix(str(tiny), text, tmp_path / "parts", chunk_size=32)
    assert calls[:4] == [1, 2, 3, 4]
    assert (tmp_path / "parts").read_bytes() == (tmp_path / "whole").read_bytes()
    assert not list(tmp_path.glob("*.partial"))


def test_refused(tiny: Path, text: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="a chunk has 4096"):
        compute_imatrix(str(tiny), text, tmp_path / "x", chunk_size=4096)
    (tmp_path / "latin1.txt").write_bytes("fièvre".encode("latin-1"))
    with pytest.raises(InputError, match="not UTF-8"):
        compute_imatrix(str(tiny), tmp_path / "latin1.txt", tmp_path / "x")
    with pytest.raises(UsageError, match="already exists"):
        compute_imatrix(str(tiny), text, text)
    (tmp_path / "x.partial").write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"x\.partial.*cannot be read"):
        compute_imatrix(str(tiny), text, tmp_path / "x", chunk_size=32)


def test_a_matrix_of_another_model_is_refused(tiny: Path, wide: Path, text: Path, tmp_path: Path) -> None:
    compute_imatrix(str(tiny), text, tmp_path / "x", chunk_size=32)
    with pytest.raises(InputError, match="columns, the model 256"):
        quantize(str(wide), ["Q4_K_M"], tmp_path / "out", QuantizeOptions(imatrix=tmp_path / "x"))


def test_a_matrix_is_used_again_for_the_same_model_and_text_only(
    wide: Path, text: Path, tmp_path: Path
) -> None:
    model, out = tmp_path / "model", tmp_path / "out"
    shutil.copytree(wide, model)
    options = QuantizeOptions(calibrate=text)
    quantize(str(model), ["Q4_K_M"], out, options)
    first = (out / "model.imatrix").read_bytes()
    before = read_imatrix(out / "model.imatrix").model_digest
    quantize(str(model), ["Q5_K_M"], out, options)
    assert (out / "model.imatrix").read_bytes() == first
    weights = load_file(model / "model.safetensors")
    save_file({name: 2 * tensor for name, tensor in weights.items()}, model / "model.safetensors")
    with pytest.raises(UsageError, match="of another text or model"):
        quantize(str(model), ["Q6_K"], out, options)
    assert (out / "model.imatrix").read_bytes() == first
    quantize(str(model), ["Q6_K"], out, options, force=True)
    assert read_imatrix(out / "model.imatrix").model_digest != before
    (out / "model.imatrix").write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"model\.imatrix"):
        quantize(str(model), ["Q8_0"], out, options)
    quantize(str(model), ["Q8_0"], out, options, force=True)


def test_a_matrix_of_a_part_of_the_text_or_of_other_chunks_is_not_used_again(
    wide: Path, text: Path, tmp_path: Path
) -> None:
    model, out = tmp_path / "model", tmp_path / "out"
    shutil.copytree(wide, model)
    out.mkdir()
    matrix = out / "model.imatrix"
    longer = tmp_path / "longer.txt"
    longer.write_text(text.read_text() * 20)
    options = QuantizeOptions(calibrate=longer)
    for chunks in ({"max_chunks": 1}, {"chunk_size": 256}):
        compute_imatrix(str(model), longer, matrix, force=True, **chunks)
        before = matrix.read_bytes()
        with pytest.raises(UsageError, match="or of other chunks"):
            quantize(str(model), ["Q4_K_M"], out, options)
        assert matrix.read_bytes() == before
    quantize(str(model), ["Q4_K_M"], out, options, force=True)
    assert read_imatrix(matrix).chunk_size == 512
    assert read_imatrix(matrix).chunks > 1


@pytest.mark.parametrize("old", ["damaged", "of a part", "of another text"])
def test_a_stage_computes_its_matrix_again_if_it_does_not_match(
    wide: Path, text: Path, tmp_path: Path, old: str
) -> None:
    longer, out = tmp_path / "longer.txt", tmp_path / "out"
    longer.write_text(text.read_text() * 20)
    out.mkdir()
    compute_imatrix(str(wide), longer, tmp_path / "right")
    matrix = out / "calibration.imatrix"
    if old == "damaged":
        matrix.write_bytes(b"damaged")
    elif old == "of a part":
        compute_imatrix(str(wide), longer, matrix, max_chunks=1)
    else:
        compute_imatrix(str(wide), text, matrix, chunk_size=32)
    config = QuantizeConfig.model_validate({"types": ["Q4_K_M"], "calibrate": "text"})
    inputs = {"model": Artifact("pretrain", wide, "d"), "calibrate": Artifact("text", longer, "d")}
    run(config, inputs, out)
    assert matrix.read_bytes() == (tmp_path / "right").read_bytes()


def test_types_that_need_one_are_refused_without_it(wide: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="IQ2_XXS needs an importance matrix"):
        quantize(str(wide), ["Q8_0", "IQ2_XXS"], tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_quantize_computes_one_and_picks_types_under_a_size(wide: Path, text: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="smallest mix"):
        quantize(str(wide), [], tmp_path, QuantizeOptions(calibrate=text, target_size="10kB"))
    options = QuantizeOptions(calibrate=text, target_size="1.3MB")
    made = quantize(str(wide), ["Q4_K_M"], tmp_path, options)["files"]
    assert [file["type"] for file in made] == ["Q4_K_M", "1.3MB"]
    assert 1.2e6 < made[1]["bytes"] <= 1.3e6
    assert read_imatrix(tmp_path / "model.imatrix").text_sha256 == hashlib.sha256(TEXT.encode()).hexdigest()
    with GGUF(Path(made[1]["path"])) as gguf:
        assert gguf.metadata["meditron.quantize.target_size"] == 1_300_000
        assert gguf.metadata["quantize.imatrix.dataset"] == "medical.txt"
        kinds = {info.type for info in gguf.tensors.values() if len(info.shape) > 1}
    assert len(kinds) > 1
    assert np.isfinite(made[1]["bpw"])
