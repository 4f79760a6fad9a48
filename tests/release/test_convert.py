from functools import partial
from math import prod
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from meditron.core.errors import SourceError, UsageError
from meditron.model import gguf_weights
from meditron.model.config import LlamaConfig
from meditron.model.families import FamilyName
from meditron.model.gguf_layout import gguf_header, gguf_tensor_name
from meditron.model.shapes import parameter_shapes
from meditron.model.tensors import DTYPES
from meditron.model.weight_rows import load_config
from meditron.release.check import ExportError
from meditron.release.convert import convert
from meditron.release.quant_recipes import QUANT_RECIPES
from meditron.release.quantize import quantize
from meditron.store.gguf import GGUF, LazyTensor, write_gguf
from meditron.store.gguf_blocks import BLOCK_FIELDS
from meditron.store.gguf_types import FLOAT_TYPES, tensor_type
from meditron.text.tokenizer import load_tokenizer
from tiny import tiny_hf

TEXT = "Metformin lowers hepatic glucose; 37 °C, naïve α-blocker."


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("model", ["tiny", "tied"])
def test_hf_to_f32_gguf_and_back_is_the_same_to_the_last_bit(
    model: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    source: Path = request.getfixturevalue(model)
    convert(str(source), tmp_path / "model.gguf", type="F32")
    convert(str(tmp_path / "model.gguf"), tmp_path / "back")
    assert same(load_file(source / "model.safetensors"), load_file(tmp_path / "back" / "model.safetensors"))
    assert load_tokenizer(tmp_path / "back").encode(TEXT) == load_tokenizer(source).encode(TEXT)


def test_what_comes_back_opens_in_transformers(tiny: Path, tmp_path: Path) -> None:
    convert(str(tiny), tmp_path / "model.gguf", type="F32")
    convert(str(tmp_path / "model.gguf"), tmp_path / "back")
    ids = AutoTokenizer.from_pretrained(tiny)(TEXT, return_tensors="pt")["input_ids"]
    assert AutoTokenizer.from_pretrained(tmp_path / "back")(TEXT, return_tensors="pt")["input_ids"].equal(ids)
    with torch.no_grad():
        ours = AutoModelForCausalLM.from_pretrained(tmp_path / "back", dtype=torch.float32)(ids).logits
        theirs = AutoModelForCausalLM.from_pretrained(tiny, dtype=torch.float32)(ids).logits
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize(
    ("family", "changes"), [("mistral", {"sliding_window": 64}), ("qwen2", {}), ("qwen3", {"head_dim": 24})]
)
def test_every_family_is_the_same_to_the_last_bit_and_is_checked(
    family: str, changes: dict[str, int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tiny_hf(tmp_path / "source", family=family, **changes)
    convert(str(source), tmp_path / "model.gguf", type="F32")
    convert(str(source), tmp_path / "again")
    convert(str(tmp_path / "model.gguf"), tmp_path / "back")
    weights = load_file(source / "model.safetensors")
    for folder in (tmp_path / "again", tmp_path / "back"):
        assert same(weights, load_file(folder / "model.safetensors"))
        assert load_config(folder).max_position_embeddings == (64 if family == "mistral" else 256)
    assert load_config(tmp_path / "again").model_type == family


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_a_scaling_that_llama_cpp_does_not_read_in_a_family_is_refused(family: str, tmp_path: Path) -> None:
    """llama.cpp refuses a Qwen file with the tensor of Llama 3's scaling: it expects fewer tensors."""
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    scaling |= {"original_max_position_embeddings": 64, "rope_theta": 1e4}
    source = tiny_hf(tmp_path / "source", family=family, rope_parameters=scaling)
    for command in (
        lambda: convert(str(source), tmp_path / "model.gguf"),
        lambda: quantize(str(source), ["Q8_0"], tmp_path / "files"),
    ):
        with pytest.raises(UsageError, match="no rotary scaling llama3 for Qwen"):
            command()


@pytest.mark.parametrize("name", ["self_attn.k_proj.bias", "self_attn.q_norm.weight"])
def test_a_lost_bias_or_norm_is_found(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = tiny_hf(tmp_path / "source", family="qwen2" if name.endswith("bias") else "qwen3")
    encode = gguf_weights.encode_floats

    def lose(tensor: str, weight: torch.Tensor, kind: str):
        return encode(tensor, torch.zeros_like(weight) if tensor.endswith(name) else weight, kind)

    monkeypatch.setattr(gguf_weights, "encode_floats", lose)
    with pytest.raises(ExportError, match=name):
        convert(str(source), tmp_path / "model.gguf", type="F32")


def test_f16_rounds_each_weight_once(tiny: Path, tmp_path: Path) -> None:
    written = convert(str(tiny), tmp_path / "model.gguf")
    assert written["type"] == "F16"
    assert written["path"] == str(tmp_path / "model.gguf")
    convert(str(tmp_path / "model.gguf"), tmp_path / "back")
    back = load_file(tmp_path / "back" / "model.safetensors")
    for name, weight in load_file(tiny / "model.safetensors").items():
        assert torch.equal(back[name], weight.half().float() if weight.dim() > 1 else weight), name


STORED = sorted({recipe.base_type for recipe in QUANT_RECIPES.values()})
"""All ggml types of the matrices that we write."""


def random_blocks(kind: str, rows: int, columns: int, random: np.random.Generator) -> np.ndarray:
    """Return random blocks of a type with scales of ordinary size, in which every bit of a block counts."""
    form = tensor_type(kind)
    if kind in FLOAT_TYPES:
        values = torch.from_numpy(random.standard_normal((rows, columns), dtype=np.float32))
        raw = values.to(DTYPES[kind]).view(torch.uint8).numpy()
        return raw if kind == "BF16" else raw.view({"F32": "<f4", "F16": "<f2"}[kind])
    blocks = random.integers(0, 256, (rows * columns // form.block_size, form.block_bytes), dtype=np.uint8)
    for field in BLOCK_FIELDS[kind]:
        if field.reach:
            scales = random.uniform(1e-3, 2e-3, (len(blocks), 1)).astype(field.dtype)
            blocks[:, field.offset : field.offset + scales.itemsize] = scales.view(np.uint8)
    if kind == "IQ1_M":  # the highest bits of four numbers are the F16 scale: 0x16.. is about 0.001
        blocks[:, 49:56:2] = blocks[:, 49:56:2] & 0x0F | np.array([0, 0, 0x60, 0x10], np.uint8)
    return blocks.reshape(rows, -1)


@pytest.mark.parametrize(("kind", "family"), [*((kind, "llama") for kind in STORED), ("Q8_0", "qwen2")])
def test_a_file_of_every_type_becomes_its_dequantized_weights(
    kind: str, family: FamilyName, tiny: Path, tmp_path: Path
) -> None:
    """Queries and keys of Llama are in another order of rows in GGUF: (2i, 2i + 1) are rotated together."""
    words, random = load_tokenizer(tiny), np.random.default_rng(7)
    config = LlamaConfig(
        model_type=family, vocab_size=words.vocab_size, hidden_size=256, intermediate_size=256,
        num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=2, head_dim=64,
        max_position_embeddings=64,
    )  # fmt: skip
    tensors, expected = [], {}
    for name, shape in parameter_shapes(config).items():
        stored = kind if len(shape) > 1 else "F32"
        blocks = random_blocks(stored, prod(shape[:-1]), shape[-1], random)
        load = partial(blocks.reshape, shape if stored in ("F32", "F16") else -1)
        tensors.append((gguf_tensor_name(name), LazyTensor(shape, stored, load)))
        values = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[stored]).reshape(shape)
        if family == "llama" and name.endswith(("q_proj.weight", "k_proj.weight")):
            values = values.reshape(-1, 32, 2, 256).swapaxes(1, 2).reshape(shape)
        expected[name] = torch.from_numpy(values)
    write_gguf(tmp_path / "model.gguf", gguf_header(config, words, "model"), tensors)
    convert(str(tmp_path / "model.gguf"), tmp_path / "back", check=False)
    assert same(load_file(tmp_path / "back" / "model.safetensors"), expected)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_folder_in_another_dtype(tiny: Path, tmp_path: Path, dtype: str) -> None:
    written = convert(str(tiny), tmp_path / "narrow", dtype=dtype)
    weights = load_file(tmp_path / "narrow" / "model.safetensors")
    wide = load_file(tiny / "model.safetensors")
    assert same(weights, {name: weight.to(getattr(torch, dtype)) for name, weight in wide.items()})
    assert written["bytes"] == sum(file.stat().st_size for file in (tmp_path / "narrow").iterdir())


def test_llama_cpp_runs_the_file_and_says_what_we_say(smollm2_gguf: Path, tmp_path: Path) -> None:
    from llamacpp import llama_server
    from meditron.model.generate import generate
    from meditron.model.sampling import SamplingConfig
    from meditron.model.weights import load_model

    path = tmp_path / "F16.gguf"
    convert(str(smollm2_gguf), path)
    tokenizer, prompt = load_tokenizer(path), "Aspirin is used to treat"
    ids = tokenizer.encode(prompt)
    ours = list(generate(load_model(path), ids, SamplingConfig(max_tokens=8), stop_ids=tokenizer.stop_ids))
    with llama_server(path) as server:
        steps = server.greedy(ids, 8)
    for mine, step in zip(ours, steps, strict=True):
        if mine != step.id:  # only where the two best are as good as equal
            (first, best), (second, next_best) = step.top[:2]
            assert {mine, step.id} == {first, second}
            assert best - next_best < 0.05
            break


def test_nothing_is_overwritten_unasked(tiny: Path, tied: Path, tmp_path: Path) -> None:
    for out in (tmp_path / "model.gguf", tmp_path / "folder"):
        convert(str(tiny), out)
        with pytest.raises(UsageError, match="already exists") as refused:
            convert(str(tied), out)
        assert "--force" in str(refused.value.hint)
        convert(str(tied), out, force=True)
    with GGUF(tmp_path / "model.gguf") as written:
        assert "output.weight" not in written.tensors


def test_force_leaves_no_description_of_the_old_model(tiny: Path, tied: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    convert(str(tiny), folder)
    for name in ("README.md", "SHA256SUMS", "model.sig", "model.safetensors.sig"):
        (folder / name).write_text("of the old model")
    (folder / "notes.txt").write_text("the user's own")
    (folder / "other.gguf.sig").write_text("signature of a file that stays")
    file, signature = tmp_path / "model.gguf", tmp_path / "model.gguf.sig"
    convert(str(tiny), file)
    signature.write_text("of the old model")
    convert(str(tied), folder, force=True)
    convert(str(tied), file, force=True)
    assert not signature.exists()
    assert (folder / "other.gguf.sig").is_file()
    left = {file.name for file in folder.iterdir() if file.read_bytes() == b"of the old model"}
    assert not left
    assert (folder / "notes.txt").is_file()


def test_the_suffix_of_a_gguf_file_may_be_in_upper_case(tiny: Path, tmp_path: Path) -> None:
    out = tmp_path / "MODEL.GGUF"
    convert(str(tiny), out)
    assert out.is_file()
    with pytest.raises(UsageError, match="already exists"):
        convert(str(tiny), out)
    convert(str(tiny), out, force=True)
    with pytest.raises(UsageError, match="is for HF folders"):
        convert(str(tiny), tmp_path / "OTHER.GGUF", dtype="float16")


def test_force_does_not_replace_what_is_no_model(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers" / "thesis.txt").write_text("five years of work")
    (tmp_path / "folder.gguf").mkdir()
    (tmp_path / "folder.gguf" / "thesis.txt").write_text("five years of work")
    for name in ("papers", "folder.gguf"):
        with pytest.raises(UsageError, match="is not a"):
            convert(str(tiny), tmp_path / name, force=True)
    assert (tmp_path / "papers" / "thesis.txt").is_file()


def test_a_model_is_not_written_over_itself(tiny: Path, tmp_path: Path) -> None:
    convert(str(tiny), tmp_path / "model.gguf")
    with pytest.raises(UsageError, match="is the model itself, or contains it"):
        convert(str(tmp_path / "model.gguf"), tmp_path / "model.gguf", force=True)
    with pytest.raises(UsageError, match="is the model itself, or contains it"):
        convert(str(tiny), tiny, force=True)


def test_wrong_use_is_said_before_anything_is_read(tiny: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        convert(str(tiny), tmp_path / "no" / "such" / "model.gguf")
    with pytest.raises(UsageError, match="--type F32 is for GGUF files"):
        convert(str(tiny), tmp_path / "folder", type="F32")
    with pytest.raises(UsageError, match="--dtype float16 is for HF folders"):
        convert(str(tiny), tmp_path / "model.gguf", dtype="float16")
    with pytest.raises(SourceError):
        convert(str(tmp_path / "gone"), tmp_path / "model.gguf")
    assert not list(tmp_path.iterdir())
