"""Matrices that GPTQ or AWQ packed: what they mean, in both readers, and files that are not well-formed."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import Qwen2Config, Qwen2ForCausalLM

from meditron.core.errors import InputError
from meditron.model.packed_weights import unpack_values
from meditron.model.weight_rows import open_weight_rows
from meditron.model.weights import load_model
from meditron.release.convert import convert
from packed import AWQ_ORDER, pack_bits, write_packed_folder
from tiny import tiny_hf

LAYERS = "model.layers.0."


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Rows of 64 and 128: two groups or more."""
    return tiny_hf(
        tmp_path_factory.mktemp("plain"), hidden_size=64, intermediate_size=128, num_hidden_layers=1,
        num_attention_heads=4, num_key_value_heads=2, head_dim=16,
    )  # fmt: skip


@pytest.fixture
def packed(plain, tmp_path):
    write_packed_folder(plain, tmp_path / "packed")
    return tmp_path / "packed"


def rewrite(folder, change):
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")


def rewrite_config(folder, **changes):
    path = folder / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"quantization_config": config["quantization_config"] | changes}))


@given(st.sampled_from([2, 3, 4, 8]), st.integers(1, 3), st.integers(1, 2), st.data())
@settings(max_examples=30, deadline=None)
def test_values_are_unpacked(bits, rows, blocks, data):
    count = 32 * blocks
    value = st.integers(0, (1 << bits) - 1)
    row = st.lists(value, min_size=count, max_size=count)
    values = np.array(data.draw(st.lists(row, min_size=rows, max_size=rows)))
    assert np.array_equal(unpack_values(pack_bits(values, bits), bits, count), values)


@pytest.mark.parametrize(
    "layout",
    [
        {"bits": 4},
        {"bits": 8, "group_size": -1},
        {"bits": 3, "act_order": True},
        {"bits": 2, "group_size": 64},
        {"bits": 4, "act_order": True, "layout": "gptq_v2"},
        {"method": "awq"},
        {"method": "awq", "group_size": 64},
    ],
    ids=str,
)
def test_a_folder_is_read_as_the_integers_mean(plain, tmp_path, layout):
    meant = write_packed_folder(plain, tmp_path / "packed", **layout)
    state = load_model(tmp_path / "packed").state_dict()
    original = load_model(plain).state_dict()
    with open_weight_rows(tmp_path / "packed") as (_, rows):
        for name, weight in state.items():
            if name in meant:
                np.testing.assert_array_equal(weight.numpy(), meant[name])
                np.testing.assert_array_equal(rows[name].read(slice(None)), meant[name])
                np.testing.assert_array_equal(rows[name].read(slice(3, 5)), meant[name][3:5])
            else:
                assert torch.equal(weight, original[name])
    assert len(meant) == 7


def test_one_word_of_awq_by_hand():
    """AutoAWQ's gemm layout: the lowest four bits are row 0, the next four are row 2."""
    from meditron.model.packed_weights import _awq_rows

    word = sum(row << (4 * place) for place, row in enumerate(AWQ_ORDER))
    words = np.array([[word]], dtype=np.uint32).view(np.int32)
    assert _awq_rows(words, np.arange(8))[:, 0].tolist() == list(range(8))


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_a_zero_point_of_0_was_stored_as_the_largest_value(plain, tmp_path, bits):
    """GPTQ stores zero points less 1, in as many bits as a value."""
    write_packed_folder(plain, tmp_path, bits=bits)
    name = f"{LAYERS}mlp.gate_proj."
    before = load_model(tmp_path).state_dict()[f"{name}weight"]
    state = load_file(tmp_path / "model.safetensors")
    scales_RC = state[f"{name}scales"].float().T.repeat_interleave(32, dim=1)
    rewrite(tmp_path, lambda state: state.update({f"{name}qzeros": state[f"{name}qzeros"].fill_(-1)}))
    after = load_model(tmp_path).state_dict()[f"{name}weight"]
    assert torch.equal(after, before + (1 << (bits - 1)) * scales_RC)


def test_a_missing_group_index_means_groups_in_order(plain, packed, tmp_path):
    """AutoGPTQ wrote none at first, if the columns are not permuted."""
    expected = load_model(packed).state_dict()
    rewrite(packed, lambda state: [state.pop(name) for name in list(state) if name.endswith("g_idx")])
    state = load_model(packed).state_dict()
    assert all(torch.equal(state[name], expected[name]) for name in expected)


def test_biases_of_zeros_are_left_out(packed, tmp_path):
    """AutoGPTQ stored one for each matrix of a model without biases."""
    expected = load_model(packed).state_dict()
    name = f"{LAYERS}self_attn.q_proj.bias"
    rewrite(packed, lambda state: state.update({name: torch.zeros(64, dtype=torch.float16)}))
    assert load_model(packed).state_dict().keys() == expected.keys()
    convert(str(packed), tmp_path / "back", dtype="float32")  # which compares all tensors
    assert load_model(tmp_path / "back").state_dict().keys() == expected.keys()
    rewrite(packed, lambda state: state.update({name: torch.ones(64, dtype=torch.float16)}))
    with pytest.raises(InputError, match=r"unexpected.*q_proj\.bias"):
        load_model(packed)


def test_biases_of_zeros_of_a_model_with_biases_are_read(tmp_path):
    config = Qwen2Config(
        vocab_size=64, hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    model = Qwen2ForCausalLM(config)  # its biases begin as zeros
    model.save_pretrained(tmp_path)
    write_packed_folder(tmp_path, tmp_path)
    state = load_model(tmp_path).state_dict()
    assert torch.equal(state[f"{LAYERS}self_attn.q_proj.bias"], torch.zeros(64))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"quant_method": "bitsandbytes"}, "quantized with bitsandbytes, which is not supported"),
        ({"quant_method": "compressed-tensors"}, "quantized with compressed-tensors"),
        ({"quant_method": "awq", "checkpoint_format": "gemv"}, "gemv"),
        ({"quant_method": "awq", "checkpoint_format": None, "version": "gemv"}, "gemv"),
        ({"quant_method": "awq", "checkpoint_format": "gemm", "bits": 8}, "AWQ with 8 bits"),
        ({"checkpoint_format": "marlin"}, "marlin"),
        ({"bits": 5}, "bits"),
        ({"bits": None}, "bits"),
        ({"group_size": 0}, "group_size must be at least 1"),
        ({"dynamic": {"-:.*down.*": {}}}, "dynamic"),
    ],
    ids=str,
)
def test_other_layouts_are_refused(packed, changes, problem):
    rewrite_config(packed, **changes)
    with pytest.raises(InputError, match=rf"config\.json \(quantization_config.*{problem}"):
        load_model(packed)


@pytest.mark.parametrize(
    ("part", "change", "problem"),
    [
        ("g_idx", lambda parts: parts + 2, "not one of the 2"),
        ("g_idx", lambda parts: parts - 1, "not one of the 2"),
        ("g_idx", lambda parts: parts[:-1], r"has shape \(63,\)"),
        ("g_idx", lambda parts: parts[None], r"has shape \(1, 64\)"),
        ("scales", lambda parts: parts[:1], r"has shape \(1, 128\)"),
        ("qzeros", lambda parts: parts[:, 1:], r"has shape \(2, 15\)"),
        ("qweight", lambda parts: parts[1:], "shape"),
        ("qweight", lambda parts: parts.float(), "F32 is not supported; only I32 is"),
        ("scales", lambda parts: parts.int(), "I32 is not supported"),
    ],
)
def test_parts_that_do_not_fit_are_refused(packed, part, change, problem):
    name = f"{LAYERS}mlp.gate_proj.{part}"
    rewrite(packed, lambda state: state.update({name: change(state[name]).contiguous()}))
    for read in (load_model, lambda folder: open_weight_rows(folder).__enter__()):
        with pytest.raises(InputError, match=rf"gate_proj.*{problem}"):
            read(packed)


def test_a_missing_part_is_named(packed):
    rewrite(packed, lambda state: state.pop(f"{LAYERS}mlp.gate_proj.qzeros"))
    with pytest.raises(InputError, match=r"mlp\.gate_proj\.qzeros is missing"):
        load_model(packed)


def test_a_packed_matrix_of_another_size_is_refused(packed, tmp_path):
    config = json.loads((packed / "config.json").read_text())
    (packed / "config.json").write_text(json.dumps(config | {"intermediate_size": 160}))
    with pytest.raises(InputError, match=r"gate_proj\.weight.*\(128, 64\).*\(160, 64\)"):
        load_model(packed)


def test_the_copy_is_not_the_original(plain, tmp_path):
    """The fixtures share a folder: a test must not change it."""
    assert "quantization_config" not in json.loads((Path(plain) / "config.json").read_text())
    shutil.rmtree(tmp_path)
