"""Model configs: values that are read, refused and computed."""

import math
import tomllib
from pathlib import Path

import pytest
import transformers
from hypothesis import example, given
from hypothesis import strategies as st
from pydantic import ValidationError

from hf_parity import SCALINGS, SHAPE
from meditron.core.errors import InputError
from meditron.model.config import LlamaConfig, llama3_rope_divisors
from meditron.model.llama import Llama
from meditron.model.presets import PRESETS

LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **SHAPE}
GGUF = {
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


@pytest.mark.parametrize("scaling", [None, *SCALINGS], ids=lambda s: s["rope_type"] if s else "plain")
def test_old_and_new_rotary_keys_give_the_same_config(scaling):
    old = LLAMA | {"rope_theta": 5e4, "rope_scaling": scaling}
    oldest = LLAMA | {
        "rope_theta": 5e4,
        "rope_scaling": scaling and {**scaling, "type": scaling["rope_type"]},
    }
    new = LLAMA | {"rope_parameters": {"rope_theta": 5e4, **(scaling or {"rope_type": "default"})}}
    first = LlamaConfig.from_hf(old)
    assert first == LlamaConfig.from_hf(oldest) == LlamaConfig.from_hf(new)
    by_attention = {"rope_parameters": {"full_attention": new["rope_parameters"]}}
    assert first == LlamaConfig.from_hf(LLAMA | by_attention)
    assert first.rope_theta == 5e4
    assert (first.rope_scaling is None) == (scaling is None)


@pytest.mark.parametrize("scaling", [None, *SCALINGS], ids=lambda s: s["rope_type"] if s else "plain")
def test_transformers_reads_what_is_written(scaling):
    config = LlamaConfig.from_hf(LLAMA | {"rope_theta": 5e4, "rope_scaling": scaling})
    theirs = transformers.LlamaConfig(**config.to_hf())
    wanted = {"rope_theta": 5e4, **(scaling or {"rope_type": "default"})}
    assert {key: theirs.rope_parameters[key] for key in wanted} == wanted
    assert LlamaConfig.from_hf(theirs.to_dict() | {"architectures": ["LlamaForCausalLM"]}) == config


def test_defaults_of_heads_are_derived():
    shape = {key: value for key, value in LLAMA.items() if key != "num_key_value_heads"}
    config = LlamaConfig.from_hf(shape)
    assert (config.num_key_value_heads, config.head_dim) == (4, 16)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"architectures": ["MistralForCausalLM"]}, "MistralForCausalLM"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
        ({"architectures": None, "model_type": "gpt2"}, "gpt2"),
        ({"architectures": 7}, "architectures"),
        ({"attention_bias": True}, "attention_bias"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"hidden_act": "gelu"}, "hidden_act"),
        ({"hidden_size": -64}, "hidden_size"),
        ({"hidden_size": 65}, "head_dim"),
        ({"hidden_size": 1 << 40}, "hidden_size"),
        ({"hidden_size": "64"}, "hidden_size"),
        ({"vocab_size": 0}, "vocab_size"),
        ({"num_attention_heads": 0}, "num_attention_heads"),
        ({"num_key_value_heads": 3}, "evenly"),
        ({"num_hidden_layers": 1e9}, "num_hidden_layers"),
        ({"hidden_size": 1 << 20, "intermediate_size": 1 << 20, "num_hidden_layers": 4096}, "parameters"),
        ({"rms_norm_eps": math.nan}, "rms_norm_eps"),
        ({"rope_theta": math.inf}, "rope_theta"),
        ({"rope_scaling": {"rope_type": "longrope", "factor": 2.0}}, "rope_scaling"),
        ({"rope_scaling": {"rope_type": "linear", "factor": -1.0}}, "factor"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "low_freq_factor"),
        ({"rope_scaling": ["linear", 2.0]}, "rope_parameters"),
        ({"rope_parameters": {"full_attention": 5}}, "rope_parameters.full_attention"),
        ({"partial": 0, "rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "part"),
        ({"head_dim": 15}, "halves"),
        ({"eos_token_id": -1}, "eos_token_id"),
        ({"rope_theta": 0}, "rope_theta"),
        ({"rope_theta": 0.5}, "rope_theta"),
        ({"rope_parameters": {"rope_type": "default", "rope_theta": 0.0}}, "rope_theta"),
        ({"rope_theta": 1, "rope_scaling": {"type": "yarn", "factor": 2.0}}, "greater than 1 with yarn"),
        ({"head_dim": 2, "rope_scaling": {"type": "dynamic", "factor": 2.0}}, "greater than 2 with dynamic"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"model_type": "mistral"}, "mistral"),
        ({"rope_scaling": {"rope_type": ["linear"]}}, "rope_type"),
    ],
)
def test_impossible_values_are_refused_by_name(change, word):
    with pytest.raises(InputError, match=word) as caught:
        LlamaConfig.from_hf(LLAMA | change, "somewhere/config.json")
    assert "somewhere/config.json" in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize(
    "change",
    [
        {"pad_token_id": -1},
        {"hidden_act": "swish"},
        {"hidden_act": None},
        {"architectures": ["LLaMAForCausalLM"]},
        {"head_dim": None, "mlp_bias": None, "attention_bias": None, "rope_scaling": None},
        {"mlp_bias": False, "attention_bias": False, "pretraining_tp": 2, "torch_dtype": "float16"},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}, "dtype": "bfloat16"},
        {"rope_scaling": {"type": "default"}, "partial_rotary_factor": 1.0},
        {"model_type": "llama", "architectures": None},
    ],
)
def test_public_configs_are_read_as_the_same_model(change):
    assert LlamaConfig.from_hf(LLAMA | change) == LlamaConfig.from_hf(LLAMA)


def test_fields_that_a_scaling_does_not_use_are_ignored_as_in_transformers():
    linear = {"type": "linear", "factor": 2.0}
    more = {"rope_type": "linear", "finetuned": True, "original_max_position_embeddings": 32, "beta_fast": 8}
    assert LlamaConfig.from_hf(LLAMA | {"rope_scaling": linear | more}) == LlamaConfig.from_hf(
        LLAMA | {"rope_scaling": linear}
    )


json_values = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.integers())


@given(
    st.dictionaries(
        st.sampled_from([*sorted(LLAMA), "head_dim", "rope_scaling", "rope_parameters"]), json_values
    )
)
def test_any_table_gives_a_config_or_an_input_error(changes):
    try:
        config = LlamaConfig.from_hf(LLAMA | changes)
    except InputError:
        return
    assert config.parameter_count > 0


@given(
    st.dictionaries(
        st.sampled_from([*sorted(GGUF), "llama.rope.scaling.type", "llama.rope.freq_base"]), json_values
    )
)
@example({"llama.rope.freq_base": 1e300})  # no fp32
def test_any_metadata_gives_a_config_or_an_input_error(changes):
    try:
        config = LlamaConfig.from_gguf(GGUF | changes, tied=True)
    except InputError:
        return
    assert config.parameter_count > 0


def test_gguf_metadata_gives_the_same_config():
    plain = {
        "general.architecture": "llama",
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
    }
    config = LlamaConfig.from_hf(LLAMA | {"initializer_range": 0.02})
    assert LlamaConfig.from_gguf(plain | config.to_gguf(), tied=False) == config
    assert LlamaConfig.from_gguf(GGUF, tied=True).vocab_size == 512


def test_gguf_scalings():
    linear = GGUF | {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    assert LlamaConfig.from_gguf(linear, tied=True).rope_scaling.factor == 4.0
    oldest = GGUF | {"llama.rope.scale_linear": 4.0}
    assert LlamaConfig.from_gguf(oldest, tied=True) == LlamaConfig.from_gguf(linear, tied=True)
    llama3 = LlamaConfig.from_hf(LLAMA | {"rope_scaling": SCALINGS[2]})
    factors = tuple(llama3_rope_divisors(llama3.rope_theta, llama3.head_dim, llama3.rope_scaling))
    assert LlamaConfig.from_gguf(GGUF, tied=True, rope_factors=factors).rope_scaling == llama3.rope_scaling
    with pytest.raises(InputError, match="rotary scaling"):
        LlamaConfig.from_gguf(GGUF, tied=True, rope_factors=(8.0,) * 8)
    with pytest.raises(InputError, match="longrope"):
        LlamaConfig.from_gguf(GGUF | {"llama.rope.scaling.type": "longrope"}, tied=True)


def test_parameter_counts_of_published_models():
    llama2 = {"vocab_size": 32_000, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5}
    seven = LlamaConfig.from_hf(
        LLAMA | llama2 | {
            "hidden_size": 4096, "intermediate_size": 11_008, "num_hidden_layers": 32,
            "num_attention_heads": 32, "num_key_value_heads": 32,
        }
    )  # fmt: skip
    seventy = LlamaConfig.from_hf(
        LLAMA | llama2 | {
            "hidden_size": 8192, "intermediate_size": 28_672, "num_hidden_layers": 80,
            "num_attention_heads": 64, "num_key_value_heads": 8,
        }
    )  # fmt: skip
    assert (seven.parameter_count, seventy.parameter_count) == (6_738_415_616, 68_976_648_192)
    assert seven.flops_per_token(4096) == pytest.approx(46.9e9, rel=1e-3)


def test_parameters_are_those_of_the_model():
    for tied in (True, False):
        config = LlamaConfig.from_hf(LLAMA | {"tie_word_embeddings": tied, "head_dim": 20})
        assert config.parameter_count == sum(weight.numel() for weight in Llama(config).parameters())


def test_presets_start_with_the_quickstart_tokenizer():
    recipe = Path(__file__).parents[2] / "recipes/quickstart.toml"
    assert PRESETS["tiny"].tokenizer == tomllib.loads(recipe.read_text(encoding="utf-8"))["base"]
    with pytest.raises(ValidationError):
        PRESETS["tiny"].config.vocab_size = 3
