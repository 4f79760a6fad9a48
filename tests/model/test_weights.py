"""Loading and saving: files from and for transformers, damaged and malicious files."""

import json
import shutil
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from hf_parity import SCALINGS, YARN, logits
from meditron.core.errors import InputError, SourceError, UsageError
from meditron.model.config import LlamaConfig
from meditron.model.generate import generate
from meditron.model.llama import Llama
from meditron.model.presets import PRESETS
from meditron.model.sampling import SamplingConfig
from meditron.model.weight_rows import load_config
from meditron.model.weights import load_model, save_gguf, save_hf
from meditron.release.gguf_split import split_gguf
from meditron.store.gguf import GGUF
from meditron.text.tokenizer import Tokenizer, load_tokenizer
from tiny import tiny_hf

PROMPT = [5, 90, 17, 200]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny untied Llama-2-shaped model with grouped heads that transformers wrote."""
    return tiny_hf(tmp_path_factory.mktemp("hf"))


@pytest.fixture(scope="module")
def tokenizer(folder):
    return Tokenizer.from_hf(folder)


@pytest.fixture
def copy(folder, tmp_path):
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def rewrite(folder, change):
    """Change the stored tensors of an HF folder."""
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")


def same(model, other):
    return all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


@torch.no_grad()
def check_parity(folder, dtype=torch.float32):
    ids_BS = torch.arange(64)[None] * 3
    hf = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    model = load_model(folder, dtype=dtype)
    torch.testing.assert_close(logits(model, ids_BS), hf(ids_BS).logits, atol=3e-4, rtol=0)


def test_a_folder_that_transformers_wrote(folder):
    check_parity(folder)


def test_each_weight_is_read_onto_the_device(folder):
    """The meta device has no data, so a weight left on the CPU would show."""
    model = load_model(folder, device="meta")
    assert {weight.device.type for weight in model.state_dict().values()} == {"meta"}
    assert model.state_dict().keys() == load_model(folder).state_dict().keys()


def test_a_sharded_folder(folder, tmp_path):
    hf = transformers.AutoModelForCausalLM.from_pretrained(folder)
    hf.save_pretrained(tmp_path, max_shard_size="60KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert same(load_model(tmp_path), load_model(folder))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_stored_in_half_precision(folder, tmp_path, dtype):
    transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).save_pretrained(tmp_path)
    model = load_model(tmp_path)
    assert model.head_weight.dtype == torch.float32
    assert same(model, load_model(folder, dtype=dtype).float())


def test_extra_tensors_of_older_checkpoints_are_ignored(copy):
    rewrite(copy, lambda state: state.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}))
    check_parity(copy)


def drop(state):
    del state["model.norm.weight"]


def add(state):
    state["model.layers.0.self_attn.q_proj.bias"] = torch.ones(32)


def widen(state):
    state["model.norm.weight"] = torch.ones(33)


def number(state):
    state["model.norm.weight"] = torch.ones(32, dtype=torch.int64)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (drop, "1 missing: model.norm.weight"),
        (add, "1 unexpected: model.layers.0.self_attn.q_proj.bias"),
        (widen, r"model.norm.weight.*\(33,\)"),
        (number, "model.norm.weight.*I64"),
    ],
)
def test_other_tensors_are_refused_by_name(copy, change, words):
    rewrite(copy, change)
    with pytest.raises(InputError, match=words):
        load_model(copy)


def test_a_truncated_file_is_refused(copy):
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"model\.safetensors"):
        load_model(copy)


@pytest.mark.parametrize(
    "name", ["../model.safetensors", "/etc/model.safetensors", "a/b.safetensors", "weights.bin", 7]
)
def test_an_index_may_not_lead_outside(copy, name):
    (copy / "model.safetensors").rename(copy.parent / "model.safetensors")
    shutil.copy(copy.parent / "model.safetensors", copy / "other.safetensors")
    index = {"weight_map": {"model.norm.weight": name}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match="weight_map"):
        load_model(copy)


def test_a_lost_shard_is_named(copy):
    (copy / "model.safetensors").rename(copy / "other.safetensors")
    index = {"weight_map": {"model.norm.weight": "model-00001-of-00002.safetensors"}}
    (copy / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(InputError, match="00001-of-00002"):
        load_model(copy)
    (copy / "model.safetensors.index.json").unlink()
    (copy / "other.safetensors").rename(copy / "model-00002-of-00002.safetensors")
    with pytest.raises(InputError, match=r"model\.safetensors\.index\.json is missing"):
        load_model(copy)


def test_an_export_opens_in_transformers_and_says_the_same(folder, tokenizer, tmp_path):
    model = load_model(folder)
    save_hf(model, model.config, tokenizer, tmp_path, torch.float32)
    hf = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    words = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ids = words("Metformin lowers", return_tensors="pt")
    assert ids["input_ids"][0].tolist() == tokenizer.encode("Metformin lowers")
    wanted = hf.generate(**ids, max_new_tokens=40, pad_token_id=0)[0, ids["input_ids"].shape[1] :].tolist()
    ours = list(generate(model, ids["input_ids"][0].tolist(), SamplingConfig(max_tokens=40), stop_ids={0}))
    assert ours == [word for word in wanted if word != 0]
    assert same(load_model(tmp_path), model)
    assert load_config(tmp_path) == model.config


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_same_weights_give_the_same_bytes(folder, tokenizer, tmp_path, dtype):
    model = load_model(folder)
    first, again = tmp_path / "first", tmp_path / "again"
    save_hf(model, model.config, tokenizer, first, dtype)
    save_hf(dict(reversed(model.state_dict().items())), model.config, tokenizer, again, dtype)
    files = sorted(file.name for file in first.iterdir())
    assert files == sorted(file.name for file in again.iterdir())
    for name in files:
        assert (first / name).read_bytes() == (again / name).read_bytes(), name
    assert json.loads((first / "config.json").read_text())["dtype"] == str(dtype).removeprefix("torch.")
    assert load_file(first / "model.safetensors")["model.norm.weight"].dtype == dtype
    assert same(load_model(first, dtype=dtype), load_model(folder, dtype=dtype))


def test_a_preset_is_the_same_file_from_the_same_seed(tokenizer, tmp_path):
    def file(seed):
        model = load_model("init:tiny", seed=seed)
        save_hf(model, model.config, tokenizer, tmp_path, torch.bfloat16)
        return (tmp_path / "model.safetensors").read_bytes()

    assert file(1) == file(1) != file(2)
    assert load_config("init:tiny") == PRESETS["tiny"].config
    with pytest.raises(SourceError, match="huge names no preset"):
        load_model("init:huge")


def test_a_preset_may_carry_its_seed():
    own, given = load_model("init:tiny:7", seed=1), load_model("init:tiny", seed=7)
    assert torch.equal(own.head_weight, given.head_weight)
    with pytest.raises(SourceError, match="the seed must be a number, got 'x'"):
        load_model("init:tiny:x")


def test_values_that_a_type_cannot_hold_are_refused_and_nothing_is_left(folder, tokenizer, tmp_path):
    model = load_model(folder)
    with torch.no_grad():
        model.head_weight[3, 3] = 1e6
    with pytest.raises(UsageError, match=r"lm_head\.weight"):
        save_hf(model, model.config, tokenizer, tmp_path, torch.float16)
    with pytest.raises(UsageError, match=r"lm_head\.weight"):
        save_gguf(model, model.config, tokenizer, tmp_path / "x.gguf", "F16")
    assert not [file for file in tmp_path.iterdir() if "safetensors" in file.name or "gguf" in file.name]


@pytest.mark.parametrize("tied", [False, True])
def test_gguf_and_back_is_the_same_model(tokenizer, tmp_path, tied):
    model = load_model(tiny_hf(tmp_path / "hf", tied=tied))
    save_gguf(model, model.config, tokenizer, tmp_path / "f32.gguf", "F32")
    save_gguf(model, model.config, tokenizer, tmp_path / "f16.gguf", "F16")
    assert same(load_model(tmp_path / "f32.gguf"), model)
    half = load_model(tmp_path / "f16.gguf")
    assert torch.equal(half.head_weight, model.head_weight.half().float())
    assert torch.equal(half.model.norm.weight, model.model.norm.weight)
    found = load_config(tmp_path / "f32.gguf")
    assert found.model_copy(update={"initializer_range": model.config.initializer_range}) == model.config
    with GGUF(tmp_path / "f16.gguf") as file:
        assert ("output.weight" in file.tensors) != tied
        assert file.metadata["tokenizer.ggml.tokens"][5] == tokenizer.id_to_token(5)


def test_a_split_file_is_the_same_model_through_any_part(tokenizer, tmp_path):
    model = load_model(tiny_hf(tmp_path / "hf"))
    save_gguf(model, model.config, tokenizer, tmp_path / "m.gguf", "F32")
    parts = [Path(file["path"]) for file in split_gguf(tmp_path / "m.gguf", 60_000)["files"]]
    assert len(parts) > 2
    for part in parts[:2]:
        assert same(load_model(part), model)
        assert load_config(part) == load_config(tmp_path / "m.gguf")
        assert load_tokenizer(part).digest == load_tokenizer(tmp_path / "m.gguf").digest


@pytest.mark.parametrize("scaling", [*SCALINGS, YARN], ids=lambda s: s["rope_type"])
def test_gguf_keeps_a_rotary_scaling_or_refuses_it(folder, tokenizer, tmp_path, scaling):
    model = load_model(folder)
    config = LlamaConfig.from_hf(model.config.to_hf() | {"rope_theta": 5e5, "rope_scaling": scaling})
    if scaling["rope_type"] == "dynamic" or "beta_fast" in scaling:
        with pytest.raises(UsageError, match=scaling["rope_type"]):
            save_gguf(model, config, tokenizer, tmp_path / "x.gguf", "F32")
    else:
        save_gguf(model, config, tokenizer, tmp_path / "x.gguf", "F32")
        assert load_config(tmp_path / "x.gguf").rope_scaling == config.rope_scaling


LEGACY = ["Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"]
K_TYPES = ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"]


def wide_model():
    """Rows of 256, which K types need."""
    config = LlamaConfig(
        vocab_size=32, hidden_size=256, intermediate_size=256, num_hidden_layers=1, num_attention_heads=8,
        num_key_value_heads=2, head_dim=32, max_position_embeddings=64,
    )  # fmt: skip
    model = Llama(config)
    model.init_weights(3)
    return model


def stored(kind, weight):
    """A matrix as blocks of `kind`, and the values that gguf's reference reads back from them."""
    if kind in ("F32", "F16", "BF16", *LEGACY):
        blocks = gguf.quants.quantize(weight, gguf.GGMLQuantizationType[kind])
    else:
        block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
        generator = np.random.default_rng(len(kind))
        shape = (*weight.shape[:-1], weight.shape[-1] // block, size)
        blocks = generator.integers(0, 256, shape, dtype=np.uint8)
        scales = np.array([0.01, 0.02], dtype=np.float16).view(np.uint8)
        where = {"Q2_K": -4, "Q3_K": -2, "Q4_K": 0, "Q5_K": 0, "Q6_K": -2}[kind]
        width = 2 if kind in ("Q3_K", "Q6_K") else 4
        blocks[..., where : where + width or None] = scales[:width]
        blocks = blocks.reshape(*weight.shape[:-1], -1)
    return blocks, gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[kind])


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", *LEGACY, *K_TYPES])
def test_every_type_is_read_into_the_right_rows(kind, tmp_path):
    """Written by gguf's own writer; the values and the rows' order checked by gguf's own reference."""
    model, path = wide_model(), tmp_path / "model.gguf"
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, 1)
    writer = gguf.GGUFWriter(path, "llama")
    for key, value in model.config.to_gguf().items():
        (writer.add_float32 if isinstance(value, float) else writer.add_uint32)(key, value)
    wanted = {}
    for name, weight in model.state_dict().items():
        theirs = names.get_name(name, try_suffixes=(".weight",))
        if weight.dim() == 1:
            wanted[name] = weight.numpy()
            writer.add_tensor(theirs, wanted[name])
            continue
        blocks, values = stored(kind, weight.numpy())
        heads = {"q_proj": 8, "k_proj": 2}.get(name.split(".")[-2])
        # Neighbours (2i, 2i + 1) of a head in GGUF are the pair (i, i + 16) of HF.
        order = [h * 32 + i * 2 + half for h in range(heads or 0) for half in (0, 1) for i in range(16)]
        wanted[name] = values[order] if heads else values
        writer.add_tensor(theirs, blocks, raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = load_model(path).state_dict()
    assert found.keys() == wanted.keys()
    for name, values in wanted.items():
        assert np.array_equal(found[name].numpy(), values), name


def test_a_gguf_with_other_tensors_is_refused(folder, tokenizer, tmp_path):
    model = load_model(folder)
    config = model.config.model_copy(update={"num_hidden_layers": 3})
    bigger = Llama(config)
    save_gguf(bigger, config, tokenizer, tmp_path / "x.gguf", "F32")
    data = (tmp_path / "x.gguf").read_bytes()
    key = b"llama.block_count" + (4).to_bytes(4, "little")
    assert data.count(key + (3).to_bytes(4, "little")) == 1
    (tmp_path / "y.gguf").write_bytes(
        data.replace(key + (3).to_bytes(4, "little"), key + (2).to_bytes(4, "little"))
    )
    with pytest.raises(InputError, match=r"9 unexpected: blk\.2\."):
        load_model(tmp_path / "y.gguf")


def claim_tied(folder):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tie_word_embeddings": True}))


def test_a_stored_head_that_differs_from_the_embedding_is_used(copy, capsys):
    claim_tied(copy)
    check_parity(copy)
    assert load_model(copy).lm_head is not None
    assert "lm_head.weight differs from model.embed_tokens.weight" in " ".join(
        capsys.readouterr().err.split()
    )


def test_a_stored_head_that_equals_the_embedding_is_tied(copy, capsys):
    claim_tied(copy)
    rewrite(copy, lambda state: state.update({"lm_head.weight": state["model.embed_tokens.weight"].clone()}))
    check_parity(copy)
    assert load_model(copy).lm_head is None
    assert "differs" not in capsys.readouterr().err


def test_the_index_decides_which_of_two_tensors_counts(copy):
    state = load_file(copy / "model.safetensors")
    (copy / "model.safetensors").unlink()
    stale = {"model.norm.weight": torch.full((32,), 9.0), "left.over": torch.ones(2)}
    save_file({name: w for name, w in state.items() if "layers" not in name}, copy / "model-1.safetensors")
    save_file(
        {name: w for name, w in state.items() if "layers" in name} | stale, copy / "model-2.safetensors"
    )
    places = {name: "model-2.safetensors" if "layers" in name else "model-1.safetensors" for name in state}
    (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    assert torch.equal(load_model(copy).model.norm.weight, state["model.norm.weight"])
    places["model.norm.weight"], places["lm_head.weight"] = "model-1.safetensors", "model-2.safetensors"
    (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    with pytest.raises(InputError, match=r"lm_head\.weight.*of the index is not in this file"):
        load_model(copy)


def test_a_quantized_checkpoint_is_named(copy):
    path = copy / "config.json"
    method = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": method}))
    with pytest.raises(InputError, match=r"quantization_config.*bitsandbytes"):
        load_model(copy)


def test_an_eight_bit_float_is_named(copy):
    rewrite(
        copy, lambda state: state.update({"lm_head.weight": state["lm_head.weight"].to(torch.float8_e4m3fn)})
    )
    with pytest.raises(InputError, match=r"lm_head\.weight.*F8_E4M3"):
        load_model(copy)
