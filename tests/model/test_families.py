"""Model families against transformers and llama.cpp: configs, logits, parameters, files both ways."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from hf_parity import SHAPE, logits, make_hf, our_llama
from llamacpp import llama_server
from meditron.core.errors import InputError, UsageError
from meditron.model.config import LlamaConfig
from meditron.model.families import FAMILIES
from meditron.model.generate import generate
from meditron.model.llama import Llama, RMSNorm
from meditron.model.sampling import SamplingConfig
from meditron.model.shapes import parameter_shapes
from meditron.model.weight_rows import load_config
from meditron.model.weights import load_model, save_gguf, save_hf
from meditron.store.gguf import GGUF
from meditron.text.tokenizer import Tokenizer
from tiny import tiny_hf

NEW = [name for name in FAMILIES if name != "llama"]
# Qwen3's heads are wider than the width divided by the heads, as in its published models.
SHAPES: dict[str, dict[str, Any]] = {"llama": {}, "mistral": {}, "qwen2": {}, "qwen3": {"head_dim": 24}}
IDS_BS = torch.randint(0, 512, (2, 48), generator=torch.Generator().manual_seed(3))
PROMPT = [5, 90, 17, 200]


def hf_config(family: str, **changes: Any) -> dict[str, Any]:
    return {"architectures": [FAMILIES[family].architectures[0]], "model_type": family, **SHAPE, **changes}


@pytest.fixture(scope="module", params=NEW)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model of a family, as transformers writes it."""
    return tiny_hf(tmp_path_factory.mktemp(request.param), family=request.param, **SHAPES[request.param])


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", NEW)
@torch.no_grad()
def test_logits_and_names_equal_transformers(family: str, tied: bool) -> None:
    hf = make_hf(family=family, tie_word_embeddings=tied, **SHAPES[family])
    model = our_llama(hf)
    assert model.config.model_type == family
    torch.testing.assert_close(logits(model, IDS_BS), hf(IDS_BS).logits, atol=3e-4, rtol=0)
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in hf.named_parameters()]


@pytest.mark.parametrize("family", NEW)
def test_gradients_equal_transformers(family: str) -> None:
    hf = make_hf(family=family, **SHAPES[family])
    model = our_llama(hf)
    hf(IDS_BS).logits.square().mean().backward()
    logits(model, IDS_BS).square().mean().backward()
    theirs = dict(hf.named_parameters())
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight.grad, theirs[name].grad, atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("family", list(FAMILIES))
def test_counts_and_shapes_are_those_of_the_model(family: str, tied: bool) -> None:
    config = LlamaConfig.from_hf(hf_config(family, tie_word_embeddings=tied, **SHAPES[family]))
    model = Llama(config)
    assert config.parameter_count == sum(weight.numel() for weight in model.parameters())
    assert parameter_shapes(config) == {name: tuple(w.shape) for name, w in model.named_parameters()}
    scores = 12 * config.num_hidden_layers * config.num_attention_heads * config.head_dim * 64
    assert config.flops_per_token(64) == 6 * config.parameter_count + scores


def test_published_sizes() -> None:
    """Parameter counts as the models' cards and their safetensors indices have them."""
    qwen3 = {"vocab_size": 151_936, "hidden_size": 4096, "intermediate_size": 12_288, "num_hidden_layers": 36}
    qwen3 |= {"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128}
    qwen25 = {
        "vocab_size": 152_064,
        "hidden_size": 3584,
        "intermediate_size": 18_944,
        "num_hidden_layers": 28,
    }
    qwen25 |= {"num_attention_heads": 28, "num_key_value_heads": 4}
    mistral = {
        "vocab_size": 32_000,
        "hidden_size": 4096,
        "intermediate_size": 14_336,
        "num_hidden_layers": 32,
    }
    mistral |= {"num_attention_heads": 32, "num_key_value_heads": 8}
    shapes = {"qwen3": qwen3, "qwen2": qwen25, "mistral": mistral}
    counts = {
        name: LlamaConfig.from_hf(hf_config(name, **shape)).parameter_count for name, shape in shapes.items()
    }
    assert counts == {"qwen3": 8_190_735_360, "qwen2": 7_615_616_512, "mistral": 7_241_732_096}


@pytest.mark.parametrize("family", list(FAMILIES))
def test_initial_weights(family: str) -> None:
    model = Llama(LlamaConfig.from_hf(hf_config(family, **SHAPES[family], initializer_range=0.02)))
    model.init_weights(1)
    for name, weight in model.named_parameters():
        if weight.dim() == 1:
            assert weight.unique().tolist() == [0.0 if name.endswith("bias") else 1.0], name
        else:
            assert float(weight.detach().std()) == pytest.approx(0.02, rel=0.1), name


@pytest.mark.parametrize("family", list(FAMILIES))
@torch.no_grad()
def test_fp64_is_kept_and_agrees_with_fp32(family: str) -> None:
    model = our_llama(make_hf(family=family, **SHAPES[family]))
    hidden_BSD = model(IDS_BS)
    wide_BSD = model.double()(IDS_BS)
    assert wide_BSD.dtype == torch.float64
    torch.testing.assert_close(wide_BSD.float(), hidden_BSD, atol=1e-4, rtol=1e-4)
    norm, x_D = RMSNorm(64, 1e-5).double(), torch.randn(64, dtype=torch.float64)
    torch.testing.assert_close(
        norm(x_D), torch.nn.functional.rms_norm(x_D, (64,), eps=1e-5), atol=0, rtol=1e-14
    )


@torch.no_grad()
def test_a_folder_both_ways(folder: Path, tmp_path: Path) -> None:
    hf = transformers.AutoModelForCausalLM.from_pretrained(folder)
    model = load_model(folder)
    save_hf(model, model.config, Tokenizer.from_hf(folder), tmp_path, torch.float32)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(again) is type(hf)
    ids_BS = torch.arange(64)[None] * 3
    torch.testing.assert_close(logits(model, ids_BS), hf(ids_BS).logits, atol=3e-4, rtol=0)
    assert torch.equal(again(ids_BS).logits, hf(ids_BS).logits)
    assert load_config(tmp_path) == model.config


@torch.no_grad()
def test_gguf_both_ways(folder: Path, tmp_path: Path) -> None:
    """transformers, llama.cpp and our reader open the file, and continue a text with the same 32 tokens."""
    model, path = load_model(folder), tmp_path / "model.gguf"
    save_gguf(model, model.config, Tokenizer.from_hf(folder), path, "F32")
    again = load_model(path)
    assert again.config.family.gguf == model.config.family.gguf
    for ours, theirs in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    # transformers 5.17 reads no key_length for Qwen3, so every Qwen3 has heads of 128 there.
    if model.config.model_type != "qwen3":
        hf = transformers.AutoModelForCausalLM.from_pretrained(
            tmp_path, gguf_file="model.gguf", dtype="float32"
        )
        ids_BS = torch.arange(64)[None] * 3
        torch.testing.assert_close(logits(model, ids_BS), hf(ids_BS).logits, atol=3e-4, rtol=0)
    ours = list(generate(model, PROMPT, SamplingConfig(max_tokens=32)))
    source = transformers.AutoModelForCausalLM.from_pretrained(folder)
    theirs_BS = source.generate(torch.tensor([PROMPT]), max_new_tokens=32, do_sample=False, eos_token_id=None)
    assert ours == theirs_BS[0, len(PROMPT) :].tolist()
    # Not `greedy`: the server lists no probabilities for a token that is a part of a character.
    request = {"n_predict": 32, "temperature": 0.0, "ignore_eos": True, "return_tokens": True}
    with llama_server(path) as server:
        assert server.post("/completion", prompt=PROMPT, **request)["tokens"] == ours


@torch.no_grad()
def test_transformers_opens_a_qwen3_gguf_with_heads_of_the_published_width(tmp_path: Path) -> None:
    folder = tiny_hf(tmp_path / "hf", family="qwen3", head_dim=128)
    model = load_model(folder)
    save_gguf(model, model.config, Tokenizer.from_hf(folder), tmp_path / "model.gguf", "F32")
    hf = transformers.AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype="float32")
    ids_BS = torch.arange(64)[None] * 3
    torch.testing.assert_close(logits(model, ids_BS), hf(ids_BS).logits, atol=3e-4, rtol=0)


def test_the_architecture_of_a_gguf_file(folder: Path, tmp_path: Path) -> None:
    model, path = load_model(folder), tmp_path / "model.gguf"
    save_gguf(model, model.config, Tokenizer.from_hf(folder), path)
    with GGUF(path) as gguf:
        architecture = gguf.metadata["general.architecture"]
        assert architecture == {"mistral": "llama"}.get(model.config.model_type, model.config.model_type)
        assert gguf.metadata[f"{architecture}.block_count"] == 2
        assert {info.type for info in gguf.tensors.values() if len(info.shape) == 1} == {"F32"}


@pytest.mark.parametrize(
    ("family", "change", "word"),
    [
        ("qwen2", {"use_sliding_window": True}, "use_sliding_window"),
        ("qwen3", {"use_sliding_window": True}, "use_sliding_window"),
        ("qwen3", {"attention_bias": True}, "attention_bias"),
        ("qwen2", {"layer_types": ["full_attention", "sliding_attention", "full_attention"]}, "layer_types"),
        ("qwen2", {"layer_types": 7}, "layer_types"),
        ("mistral", {"sliding_window": -1}, "sliding_window"),
        ("mistral", {"sliding_window": "4096"}, "sliding_window"),
        ("mistral", {"sliding_window": 8, "rope_scaling": {"type": "dynamic", "factor": 2.0}}, "dynamic"),
        ("mistral", {"model_type": "llama"}, "model_type"),
        ("qwen2", {"architectures": ["Qwen2MoeForCausalLM"]}, "Qwen2MoeForCausalLM"),
        ("qwen2", {"architectures": None, "model_type": "qwen2_moe"}, "qwen2_moe"),
        ("qwen2", {"architectures": None, "model_type": None}, "model_type"),
    ],
)
def test_variants_are_refused_by_name(family: str, change: dict[str, Any], word: str) -> None:
    with pytest.raises(InputError, match=word) as caught:
        LlamaConfig.from_hf(hf_config(family) | change, "somewhere/config.json")
    assert "somewhere/config.json" in caught.value.message
    if {"architectures", "model_type"} & change.keys() and "does not match" not in caught.value.message:
        assert all(known.architectures[0] in str(caught.value.hint) for known in FAMILIES.values())


def test_an_unknown_gguf_architecture_is_refused_with_the_list() -> None:
    with pytest.raises(InputError, match="'gemma3' is not supported") as caught:
        LlamaConfig.from_gguf({"general.architecture": "gemma3"}, tied=True)
    assert all(known.architectures[0] in str(caught.value.hint) for known in FAMILIES.values())


@pytest.mark.parametrize(
    ("family", "change"),
    [
        ("qwen2", {"use_sliding_window": False, "sliding_window": 131_072, "max_window_layers": 28}),
        ("qwen2", {"architectures": None, "layer_types": ["full_attention"] * 3}),
        ("qwen3", {"attention_bias": False, "attention_dropout": 0.0, "sliding_window": None}),
        ("mistral", {"sliding_window": 64}),
        ("mistral", {"sliding_window": 4096}),
        ("mistral", {"sliding_window": 0}),
    ],
)
def test_public_configs_are_read_as_the_same_model(family: str, change: dict[str, Any]) -> None:
    plain = hf_config(family, **({"sliding_window": None} if family == "mistral" else {}))
    assert LlamaConfig.from_hf(plain | change) == LlamaConfig.from_hf(plain)


@pytest.mark.parametrize("family", NEW)
def test_absent_keys_have_transformers_defaults(family: str) -> None:
    kept = ("architectures", "model_type", "vocab_size", "intermediate_size", "num_hidden_layers")
    config = {key: value for key, value in hf_config(family).items() if key in kept}
    config |= {"num_attention_heads": 32, "hidden_size": 4096}
    ours, theirs = LlamaConfig.from_hf(config), transformers.AutoConfig.for_model(family)
    for name in ("num_key_value_heads", "rms_norm_eps", "tie_word_embeddings", "initializer_range"):
        assert getattr(ours, name) == getattr(theirs, name), name
    assert ours.head_dim == getattr(theirs, "head_dim", 128)
    window = theirs.sliding_window or theirs.max_position_embeddings
    assert ours.max_position_embeddings == min(theirs.max_position_embeddings, window)


@torch.no_grad()
def test_within_its_window_a_mistral_is_causal_and_beyond_it_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tiny_hf(tmp_path / "window", family="mistral", sliding_window=16)
    model = load_model(folder)
    assert model.config.max_position_embeddings == 16
    assert "window of 16 tokens" in capsys.readouterr().err
    hf = transformers.AutoModelForCausalLM.from_pretrained(folder)
    ids_BS = torch.arange(24)[None] * 3
    ours_BSV, theirs_BSV = logits(model, ids_BS), hf(ids_BS).logits
    torch.testing.assert_close(ours_BSV[:, :16], theirs_BSV[:, :16], atol=3e-4, rtol=0)
    assert (ours_BSV[:, 16:] - theirs_BSV[:, 16:]).abs().max() > 1e-2, "the 17th token would see too much"
    with pytest.raises(UsageError, match="context is 16"):
        list(generate(model, list(range(20)), SamplingConfig(max_tokens=1)))


def test_the_config_is_read_without_torch() -> None:
    code = "import sys, meditron.model.families, meditron.model.config; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, env=os.environ, timeout=60)


def test_written_configs_name_their_variant() -> None:
    written = LlamaConfig.from_hf(hf_config("mistral", sliding_window=None)).to_hf()
    assert json.loads(json.dumps(written))["sliding_window"] is None
    assert LlamaConfig.from_hf(hf_config("qwen3")).to_hf()["use_sliding_window"] is False
    assert LlamaConfig.from_hf(hf_config("llama")).to_hf()["mlp_bias"] is False
