"""GGUF keys: those with an effect in llama.cpp are read or refused, those without are ignored."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hf_parity import logits
from llamacpp import llama_server
from meditron.core.errors import InputError, UsageError
from meditron.model.config import LlamaConfig
from meditron.model.gguf_shape import NEUTRAL_VALUES
from meditron.model.weights import load_model, save_gguf
from meditron.store.gguf import GGUF, LazyTensor, write_gguf
from meditron.text.tokenizer import Tokenizer
from tiny import tiny_hf

PLAIN = {
    "general.architecture": "llama",
    "llama.embedding_length": 64,
    "llama.feed_forward_length": 176,
    "llama.block_count": 3,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.context_length": 64,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "tokenizer.ggml.tokens": [str(index) for index in range(512)],
}
SCALING = "llama.rope.scaling."


def read(changes: dict[str, Any], **options: Any) -> LlamaConfig:
    return LlamaConfig.from_gguf({**PLAIN, **changes}, tied=True, **options)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("llama.attention.causal", False),
        ("llama.attention.scale", 0.01),
        ("llama.attention.sliding_window", "16"),
        ("llama.attention.clamp_kqv", 0.1),
        ("llama.attention.max_alibi_bias", 8.0),
        ("llama.attention.value_length", 8),
        ("llama.attention.key_length", 32),
        ("llama.rope.dimension_count", 8),
        ("llama.logit_scale", 0.1),
        ("llama.embedding_scale", 3.0),
        ("llama.residual_scale", 0.2),
        ("llama.final_logit_softcapping", 1.0),
        ("llama.expert_count", 8),
        ("llama.use_parallel_residual", True),
        ("llama.attention.head_count_kv", [2, 2, 1]),
        ("llama.rope.freq_base", 0.0),
        ("llama.rope.scaling.type", "longrope"),
        ("llama.rope.scaling.type", "dynamic"),
        ("llama.rope.scaling.attn_factor", 1.5),
        ("llama.rope.scaling.yarn_beta_fast", 8.0),
        ("llama.something_new", 1),
    ],
)
def test_a_key_that_may_change_the_model_is_refused_by_name(key: str, value: object) -> None:
    field = {"llama.attention.head_count_kv": "num_key_value_heads", "llama.rope.freq_base": "rope_theta"}
    field["llama.attention.key_length"] = "llama.attention.value_length"
    with pytest.raises(InputError, match=field.get(key, key).replace(".", r"\.")):
        read({key: value})


@pytest.mark.parametrize("key", sorted(NEUTRAL_VALUES))
def test_a_key_without_effect_is_ignored(key: str) -> None:
    allowed = NEUTRAL_VALUES[key]
    assert read({f"llama.{key}": "anything" if allowed is None else allowed[0]}) == read({})


@pytest.mark.parametrize("key", [key for key in PLAIN if key.startswith("llama.") and "kv" not in key])
def test_a_key_that_llama_cpp_requires_is_required(key: str) -> None:
    with pytest.raises(InputError, match=key.replace(".", r"\.")):
        LlamaConfig.from_gguf({k: v for k, v in PLAIN.items() if k != key}, tied=True)


def test_a_sliding_window_limits_the_context(capsys: pytest.CaptureFixture[str]) -> None:
    for window, context in ((0, 64), (16, 16), (64, 64), (128, 64)):
        assert read({"llama.attention.sliding_window": window}).max_position_embeddings == context
    assert "window of 16 tokens" in capsys.readouterr().err


def test_equal_numbers_per_block_are_one_number() -> None:
    assert read({"llama.attention.head_count_kv": [2, 2, 2]}) == read({})
    assert read({"llama.feed_forward_length": [176] * 3}) == read({})


def test_scalings_as_llama_cpp_reads_them() -> None:
    assert read({SCALING + "factor": 4.0}) == read({SCALING + "factor": 4.0, SCALING + "type": "linear"})
    assert read({SCALING + "factor": 4.0}).rope_scaling.factor == 4.0
    assert (
        read({SCALING + "factor": 4.0, SCALING + "type": "none"})
        == read({})
        == read({SCALING + "factor": 0.0})
    )
    yarn = {SCALING + "factor": 4.0, SCALING + "type": "yarn", SCALING + "original_context_length": 32}
    assert read({**yarn, SCALING + "attn_factor": 1.0}) == read(yarn)
    with pytest.raises(InputError, match="together with rope_freqs"):
        read({SCALING + "factor": 4.0}, rope_factors=(1.0,) * 8)


def test_a_scaling_that_gguf_has_no_keys_for_is_refused() -> None:
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 20.0}
    hf = {"architectures": ["LlamaForCausalLM"], "vocab_size": 9, "hidden_size": 64, "intermediate_size": 8}
    hf |= {"num_hidden_layers": 1, "num_attention_heads": 4, "rope_scaling": scaling}
    with pytest.raises(UsageError, match="beta_fast"):
        LlamaConfig.from_hf(hf).to_gguf()
    defaults = scaling | {"beta_fast": 32.0, "beta_slow": 1.0}
    assert LlamaConfig.from_hf(hf | {"rope_scaling": defaults}).to_gguf()["llama.rope.scaling.type"] == "yarn"


def test_an_attention_factor_means_what_it_means_to_llama_cpp(tmp_path: Path) -> None:
    folder = tiny_hf(tmp_path / "hf")
    model = load_model(folder)
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    config = LlamaConfig.from_hf(
        model.config.to_hf() | {"rope_scaling": {**scaling, "attention_factor": 1.5}, "rope_theta": 1e4}
    )
    path = tmp_path / "x.gguf"
    save_gguf(model, config, Tokenizer.from_hf(folder), path, "F32")
    scaled = load_model(path)
    assert scaled.config.rope_scaling is not None
    assert scaled.config.rope_scaling.attention_factor == pytest.approx(1.5)
    ids = [(i * 7) % 300 for i in range(100)]
    with torch.no_grad():
        logp = logits(scaled, torch.tensor([ids]))[0, -1].log_softmax(-1)
    with llama_server(path, context=256) as server:
        steps = server.greedy(ids, 1, top=5)
    for token, value in steps[0].top:
        assert float(logp[token]) == pytest.approx(value, abs=2e-3)


def test_one_part_of_a_split_file_is_refused(tmp_path: Path) -> None:
    folder = tiny_hf(tmp_path / "hf")
    model = load_model(folder)
    save_gguf(model, model.config, Tokenizer.from_hf(folder), tmp_path / "x.gguf", "F32")
    with GGUF(tmp_path / "x.gguf") as whole:
        tensors = [
            (name, LazyTensor(info.shape, "F32", lambda name=name: whole.dequantize(name)))
            for name, info in whole.tensors.items()
        ]
        part = tmp_path / "m-00001-of-00002.gguf"
        write_gguf(
            part, whole.metadata | {"split.count": np.uint16(2), "split.no": np.uint16(0)}, tensors[:5]
        )
    with pytest.raises(InputError, match="part 1 of a model split into 2 files"):
        load_model(part)
    copy = tmp_path / "m-00002-of-00002.gguf"
    copy.write_bytes(part.read_bytes())
    for spec in (part, copy):
        with pytest.raises(InputError, match="is part 1 of 2, expected part 2 of 2"):
            load_model(spec)
