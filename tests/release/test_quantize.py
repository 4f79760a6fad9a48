import hashlib
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from llamacpp_each import continuations
from meditron.core.errors import InputError, MissingExtra, SourceError, UsageError
from meditron.model.generate import generate
from meditron.model.sampling import SamplingConfig
from meditron.model.weight_rows import WeightRows
from meditron.model.weights import load_model
from meditron.release import encode as encode_module
from meditron.release.config import QuantizeConfig
from meditron.release.ggml import load_ggml
from meditron.release.imatrix_file import read_imatrix, write_imatrix
from meditron.release.quantize import QuantizeOptions, run
from meditron.release.quantize import quantize as quantize_model
from meditron.release.types import GGUFType
from meditron.store.gguf import GGUF
from meditron.store.gguf_types import TensorType
from meditron.store.manifest import Artifact
from meditron.store.model_memory import HEADER_BYTES, shape_of_gguf_header
from quantized import FAST_TYPES, digest, golden, seeded_imatrix

TYPES: tuple[GGUFType, ...] = ("F32", "F16", "BF16", *FAST_TYPES)


def quantize(model: Path, out: Path, *types: str, threads: int = 2) -> dict[str, Any]:
    config = QuantizeConfig.model_validate({"types": types, "threads": threads})
    return run(config, {"model": Artifact("pretrain", model, "digest")}, out)


@pytest.fixture(scope="module")
def made(wide: Path, odd: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Any]]:
    """Each model in every type: the folder of the files and what was told of them."""
    folders = {model: tmp_path_factory.mktemp(model) for model in ("wide", "odd")}
    return {
        name: (folders[name], quantize(model, folders[name], *TYPES))
        for name, model in (("wide", wide), ("odd", odd))
    }


@pytest.mark.parametrize("model", ["wide", "odd"])
def test_the_tensors_are_llama_cpps_to_the_byte(made: Any, model: str) -> None:
    """Held to what its own quantizer made of the same weights, which `test_llama_cpp` can make anew."""
    folder, _ = made[model]
    assert {kind: digest(folder / f"{kind}.gguf") for kind in TYPES if kind != "F32"} == golden()[model]


@pytest.mark.parametrize("model", ["wide", "odd"])
def test_with_an_importance_matrix_too(model: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    source = request.getfixturevalue(model)
    options = QuantizeOptions(imatrix=seeded_imatrix(source, tmp_path / "seeded.imatrix"), check=False)
    made = quantize_model(str(source), FAST_TYPES, tmp_path, options)["files"]
    found = {file["type"]: digest(Path(file["path"])) for file in made}
    assert found == golden()[f"{model}, imatrix"]
    with GGUF(Path(made[0]["path"])) as gguf:
        recorded = {key: gguf.metadata[key] for key in gguf.metadata if key.startswith("quantize.imatrix.")}
    assert recorded == {
        "quantize.imatrix.file": "seeded.imatrix",
        "quantize.imatrix.dataset": "seeded",
        "quantize.imatrix.entries_count": 21 if model == "wide" else 7,
        "quantize.imatrix.chunks_count": 1,
    }


def test_columns_that_the_text_never_used_keep_their_weights(wide: Path, tmp_path: Path) -> None:
    """Quantizers set a block without importance to zero, which the check refuses."""
    matrix = read_imatrix(seeded_imatrix(wide, tmp_path / "seeded.imatrix"))
    for sums in matrix.sums.values():
        sums[:128] = 0
    write_imatrix(tmp_path / "partial.imatrix", matrix)
    options = QuantizeOptions(imatrix=tmp_path / "partial.imatrix")
    quantize_model(str(wide), ["Q2_K", "Q4_K_M", "Q4_0", "IQ4_XS"], tmp_path, options)


@pytest.mark.parametrize("model", ["wide", "odd"])
def test_what_is_told_of_a_file_is_in_it(made: Any, model: str) -> None:
    folder, metrics = made[model]
    assert [file["path"] for file in metrics["files"]] == [f"{kind}.gguf" for kind in TYPES]
    for file in metrics["files"]:
        path = folder / file["path"]
        reader = gguf.GGUFReader(path)
        types = {t.name: t.tensor_type.name for t in reader.tensors if len(t.shape) > 1}
        norms = {t.tensor_type.name for t in reader.tensors if len(t.shape) == 1}
        weights = sum(int(np.prod(t.shape)) for t in reader.tensors)
        assert norms == {"F32"}
        assert file["bytes"] == path.stat().st_size
        assert file["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        assert file["bpw"] == pytest.approx(8 * sum(t.n_bytes for t in reader.tensors) / weights)
        assert file["fallbacks"].items() <= types.items()
        said = reader.fields["general.file_type"].contents()
        name = "ALL_F32" if file["type"] == "F32" else f"MOSTLY_{file['type']}"
        assert said == gguf.LlamaFileType[name]
        assert reader.fields["general.quantization_version"].contents() == 2
        assert reader.fields["general.name"].contents() == "model"
    assert metrics["peak_rss"] > 10_000_000
    assert "norms" in metrics["notes"][0]


def test_fallbacks_are_told_tensor_by_tensor(
    made: Any, capsys: pytest.CaptureFixture[str], odd: Path
) -> None:
    folder, metrics = made["odd"]
    fallbacks = {file["type"]: file["fallbacks"] for file in metrics["files"]}
    # Six matrices of the block have rows of 576; those of ffn_down are 768, whole blocks.
    assert Counter(fallbacks["Q4_K_M"].values()) == {"Q5_0": 5, "Q8_0": 2}
    assert fallbacks["Q4_K_M"]["token_embd.weight"] == "Q8_0"
    assert "blk.0.ffn_down.weight" not in fallbacks["Q2_K"]
    assert not any(fallbacks[kind] for kind in ("F32", "F16", "BF16", "Q8_0"))
    assert fallbacks["Q4_0"] == {"token_embd.weight": "Q8_0"}
    assert not any(file["fallbacks"] for file in made["wide"][1]["files"])
    quantize(odd, folder, "Q4_K_M")
    said = capsys.readouterr().err
    assert "Q4_K_M: fallback types 5 × Q5_0, 2 × Q8_0" in " ".join(said.split())


def test_the_memory_column_is_the_file_and_all_that_llama_cpp_needs_beside_it(made: Any) -> None:
    folder, metrics = made["odd"]
    for file in metrics["files"]:
        assert file["context"] == 256
        # keys and values, 2 bytes, of one block with three heads of 64
        assert file["context_bytes"] == 1_000 * 2 * 2 * 3 * 64
        shape = shape_of_gguf_header((folder / file["path"]).read_bytes()[:HEADER_BYTES])
        assert shape is not None
        assert file["ram"] == shape.ram_bytes(file["bytes"])
        assert [level["layers"] for level in file["offload"]] == [0, 1, 2]
        assert file["offload"][0]["ram"] == file["ram"]


@pytest.mark.parametrize("model", ["wide", "odd"])
def test_llama_cpp_loads_every_file_and_goes_on_from_a_prompt(made: Any, model: str) -> None:
    folder, _ = made[model]
    prompt = [5, 6, 7]
    said = dict(
        zip(TYPES, continuations([folder / f"{kind}.gguf" for kind in TYPES], prompt, 4), strict=True)
    )
    ours = list(generate(load_model(folder / "F32.gguf"), prompt, SamplingConfig(max_tokens=4), stop_ids=()))
    assert said["F32"] == said["Q8_0"] == ours
    assert all(len(tokens) == 4 for tokens in said.values())


def test_logits_of_the_dequantized_weights_are_near_the_f16_ones(made: Any) -> None:
    folder, _ = made["wide"]
    ids = torch.arange(64)[None]

    @torch.no_grad()
    def logits(kind: str) -> torch.Tensor:
        model = load_model(folder / f"{kind}.gguf")
        return model(ids) @ model.head_weight.T

    whole = logits("F16")

    def error(kind: str) -> float:
        return float((logits(kind) - whole).norm() / whole.norm())

    measured = {kind: error(kind) for kind in ("Q8_0", "Q6_K", "Q4_K_M", "Q3_K_S", "Q2_K")}
    assert list(measured.values()) == sorted(measured.values()), "fewer bits, more lost"
    assert measured["Q8_0"] < 0.01
    assert measured["Q4_K_M"] < 0.1


def test_neither_threads_nor_the_number_format_of_the_source_move_a_byte(
    made: Any, wide: Path, tmp_path: Path
) -> None:
    folder, _ = made["wide"]
    for threads in (1, 3):
        quantize(wide, tmp_path / str(threads), "Q4_K_M", threads=threads)
        assert digest(tmp_path / str(threads) / "Q4_K_M.gguf") == digest(folder / "Q4_K_M.gguf")
    weights = load_file(wide / "model.safetensors")
    for dtype in (torch.bfloat16, torch.float16):
        rounded = {name: weight.to(dtype) for name, weight in weights.items()}
        narrow, again = tmp_path / str(dtype), tmp_path / f"{dtype}-wide"
        for place, content in (
            (narrow, rounded),
            (again, {name: weight.float() for name, weight in rounded.items()}),
        ):
            shutil.copytree(wide, place)
            save_file(content, place / "model.safetensors")
            quantize(place, place, "Q8_0")
        assert digest(narrow / "Q8_0.gguf") == digest(again / "Q8_0.gguf")


def test_weights_are_read_once_and_a_shared_encoding_is_computed_once(
    wide: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, encode = WeightRows.read, encode_module.quantize
    reads, encoded = [], []

    def counted_read(weight: WeightRows, rows: Any) -> Any:
        reads.append(weight.shape)
        return read(weight, rows)

    def counted_encode(values: np.ndarray, kind: TensorType, importance: Any) -> Any:
        encoded.append((values.shape, kind))
        return encode(values, kind, importance)

    monkeypatch.setattr(WeightRows, "read", counted_read)
    monkeypatch.setattr(encode_module, "quantize", counted_encode)
    unchecked = QuantizeOptions(check=False)
    quantize_model(str(wide), ["Q4_K_S"], tmp_path / "one", unchecked)
    once, alone = len(reads), list(encoded)
    reads.clear()
    encoded.clear()
    made = quantize_model(str(wide), ["Q4_K_S", "Q4_K_M", "F16"], tmp_path / "three", unchecked)
    assert len(reads) == once
    # Only the matrices to which Q4_K_M gives more bits are encoded twice.
    with GGUF(Path(made["files"][0]["path"])) as small, GGUF(Path(made["files"][1]["path"])) as medium:
        differing = [name for name, info in small.tensors.items() if info.type != medium.tensors[name].type]
    assert len(differing) > 1
    assert len(encoded) == len(alone) + len(differing)


def test_torch_is_not_imported(wide: Path, tmp_path: Path) -> None:
    code = (
        "import sys\nfrom pathlib import Path\nfrom meditron.release.preview import preview\n"
        "from meditron.release.quantize import quantize\n"
        f"preview({str(wide)!r}, ['Q4_K_M'])\n"
        f"quantize({str(wide)!r}, ['Q4_K_M', 'BF16'], Path({str(tmp_path)!r}))\n"
        "sys.exit('torch' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


def test_a_finished_file_is_kept_and_only_missing_ones_are_written(tiny: Path, tmp_path: Path) -> None:
    first = quantize(tiny, tmp_path, "F16")["files"]
    before = (tmp_path / "F16.gguf").stat().st_mtime_ns
    second = quantize(tiny, tmp_path, "F16", "Q8_0")["files"]
    assert second[:1] == first
    assert (tmp_path / "F16.gguf").stat().st_mtime_ns == before
    # All files are there: the model is not even looked for.
    assert quantize(tmp_path / "gone", tmp_path, "F16", "Q8_0")["files"] == second


def test_nothing_to_quantize(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="gone"):
        quantize(tmp_path / "gone", tmp_path / "out", "F16")


def broken(model: Path, folder: Path, value: float) -> Path:
    """A copy of the model with one weight replaced."""
    shutil.copytree(model, folder)
    weights = load_file(model / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 5] = value
    save_file(weights, folder / "model.safetensors")
    return folder


@pytest.mark.parametrize("kind", ["F16", "Q8_0"])
@pytest.mark.parametrize(
    ("value", "said"),
    [(float("nan"), "NaN or infinity"), (float("-inf"), "NaN or infinity"), (1e6, "cannot represent")],
)
def test_values_that_cannot_be_stored_are_refused_and_nothing_is_left(
    tiny: Path, tmp_path: Path, kind: str, value: float, said: str
) -> None:
    model = broken(tiny, tmp_path / "model", value)
    (tmp_path / "out").mkdir()
    with pytest.raises(UsageError, match=rf"layers\.1\.mlp\.up_proj\.weight.*{said}"):
        quantize(model, tmp_path / "out", kind)
    assert not list((tmp_path / "out").iterdir())


def test_bf16_and_f32_hold_what_f16_cannot(tiny: Path, tmp_path: Path) -> None:
    model = broken(tiny, tmp_path / "model", 1e6)
    quantize(model, tmp_path, "F32", "BF16")
    found = load_model(tmp_path / "BF16.gguf").state_dict()["model.layers.1.mlp.up_proj.weight"]
    assert found[3, 5] == torch.tensor(1e6).bfloat16().float()


def test_without_the_compiled_quantizers_only_floats_can_be_written(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    load_ggml.cache_clear()
    with pytest.raises(MissingExtra, match="xllamacpp") as refused:
        quantize(tiny, tmp_path, "F16", "Q8_0")
    assert "meditron[release]" in str(refused.value.hint)
    assert not list(tmp_path.iterdir())
    quantize(tiny, tmp_path, "F16", "BF16")


def test_a_tensor_of_integers_is_refused_by_name(tiny: Path, tmp_path: Path) -> None:
    quantize(tiny, tmp_path, "F16")
    content = bytearray((tmp_path / "F16.gguf").read_bytes())
    name = b"blk.0.attn_q.weight"
    kind = content.index(name) + len(name) + 4 + 2 * 8  # after the number of dimensions and two sizes
    assert content[kind] == 1
    content[kind] = 25  # I16
    (tmp_path / "damaged.gguf").write_bytes(content)
    with pytest.raises(InputError, match=r"damaged.gguf \(blk.0.attn_q.weight\): .* type I16"):
        quantize_model(str(tmp_path / "damaged.gguf"), ["Q8_0"], tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.gguf"))


class TestVerb:
    def test_files_are_called_after_the_model(self, tiny: Path, tmp_path: Path) -> None:
        shutil.copytree(tiny, tmp_path / "My model (v2)")
        files = quantize_model(str(tmp_path / "My model (v2)"), ["Q8_0"], tmp_path / "new" / "out")["files"]
        assert [Path(file["path"]) for file in files] == [tmp_path / "new/out/My-model-v2-Q8_0.gguf"]
        with GGUF(Path(files[0]["path"])) as written:
            assert written.metadata["general.name"] == "My model (v2)"

    def test_a_gguf_file_is_a_source_too_and_keeps_its_name(
        self, wide: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        first = Path(quantize_model(str(wide), ["F32"], tmp_path / "a")["files"][0]["path"])
        second = Path(quantize_model(str(first), ["Q8_0"], tmp_path / "b")["files"][0]["path"])
        assert (first.name, second.name) == ("model-F32.gguf", "model-Q8_0.gguf")
        assert digest(second) == golden()["wide"]["Q8_0"]
        assert "already quantized" not in capsys.readouterr().err
        quantize_model(str(second), ["Q4_0"], tmp_path / "c")
        assert "already quantized (Q8_0)" in " ".join(capsys.readouterr().err.split())

    def test_nothing_is_overwritten_unasked(self, tiny: Path, tied: Path, tmp_path: Path) -> None:
        path = Path(quantize_model(str(tiny), ["F16"], tmp_path)["files"][0]["path"])
        with pytest.raises(UsageError, match="already exists") as refused:
            quantize_model(str(tied), ["Q8_0", "F16"], tmp_path)
        assert "--force" in str(refused.value.hint)
        assert [file.name for file in tmp_path.iterdir()] == ["model-F16.gguf"]
        with pytest.raises(UsageError, match="is the model itself"):
            quantize_model(str(path), ["F16"], tmp_path, force=True)
        quantize_model(str(tied), ["F16"], tmp_path, force=True)
        with GGUF(path) as written:
            assert "output.weight" not in written.tensors

    def test_replacing_fails_as_a_whole(self, tiny: Path, tmp_path: Path) -> None:
        path = Path(quantize_model(str(tiny), ["F16"], tmp_path)["files"][0]["path"])
        before = path.read_bytes()
        (tmp_path / "other").mkdir()
        model = broken(tiny, tmp_path / "other" / "model", 1e6)
        with pytest.raises(UsageError, match="cannot represent"):
            quantize_model(str(model), ["F16"], tmp_path, force=True)
        assert path.read_bytes() == before


def test_seeded_weights_are_the_same_everywhere(wide: Path) -> None:
    """What the golden digests stand on."""
    weights = load_file(wide / "model.safetensors")
    head = weights["lm_head.weight"]
    assert hashlib.sha256(head.numpy().tobytes()).hexdigest() == golden()["lm_head.weight of wide"]
