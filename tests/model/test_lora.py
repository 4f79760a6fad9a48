"""LoRA against peft: equal layers, files that peft opens, merged weights; the adapter GGUF in llama.cpp."""

import peft
import pytest
import torch

from hf_parity import logits, make_hf, our_llama
from meditron.core.errors import InputError
from meditron.model.lora import (
    LoraLinear,
    MergedWeights,
    WeightsWithAdapters,
    adapter_names,
    adapter_shapes,
    add_adapters,
    initialize_adapters,
)
from meditron.model.lora_config import LORA_MODULES, LoraConfig
from meditron.model.lora_files import read_adapter, save_adapter
from meditron.store.files import read_json, write_json

CONFIG = LoraConfig(rank=4, alpha=6.0)
IDS = torch.arange(5, 45)[None]


def adapted(hf, config=CONFIG):
    """Our model with adapters that change it: B is random too."""
    model = our_llama(hf)
    add_adapters(model, config, torch.float32)
    initialize_adapters(model, seed=3)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("lora_B"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model


def adapters_of(model):
    return {name: tensor for name, tensor in model.state_dict().items() if "lora_" in name}


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])
def test_peft_opens_the_adapter_and_agrees_with_ours_and_with_the_merged_model(family, tmp_path):
    model = adapted(make_hf(0, family))
    save_adapter(tmp_path, adapters_of(model), CONFIG)
    theirs = peft.PeftModel.from_pretrained(make_hf(0, family), tmp_path).eval()
    merged = our_llama(make_hf(0, family))
    merged.load_state_dict(dict(MergedWeights(model.state_dict(), model.config, CONFIG)))
    with torch.no_grad():
        plain = logits(our_llama(make_hf(0, family)), IDS)
        ours, by_peft, by_merged = logits(model, IDS), theirs(IDS).logits, logits(merged, IDS)
    assert (ours - plain).abs().max() > 0.1
    torch.testing.assert_close(ours, by_peft, atol=1e-4, rtol=0)
    torch.testing.assert_close(by_merged, by_peft, atol=1e-4, rtol=0)


def test_the_merged_weights_are_those_of_peft(tmp_path):
    model = adapted(make_hf(0))
    save_adapter(tmp_path, adapters_of(model), CONFIG)
    theirs = peft.PeftModel.from_pretrained(make_hf(0), tmp_path).merge_and_unload().state_dict()
    ours = MergedWeights(model.state_dict(), model.config, CONFIG)
    assert list(ours) == sorted(ours)
    for name, weight in ours.items():
        torch.testing.assert_close(weight, theirs[name], atol=1e-6, rtol=1e-6)


def test_gradients_are_those_of_peft_and_frozen_weights_have_none(tmp_path):
    model = adapted(make_hf(0))
    save_adapter(tmp_path, adapters_of(model), CONFIG)
    theirs = peft.PeftModel.from_pretrained(make_hf(0), tmp_path, is_trainable=True)
    logits(model, IDS).square().mean().backward()
    theirs(IDS).logits.square().mean().backward()
    expected = dict(theirs.named_parameters())
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert set(trained) == set(adapter_shapes(model.config, CONFIG))
    for name, parameter in trained.items():
        gradient = expected[f"base_model.model.{name}.default.weight"].grad
        torch.testing.assert_close(parameter.grad, gradient, atol=1e-5, rtol=1e-4)
    assert all(parameter.grad is None for name, parameter in model.named_parameters() if name not in trained)


def test_new_adapters_change_nothing_and_depend_on_seed_and_name_alone():
    hf = make_hf(0)
    model = our_llama(hf)
    before = logits(model, IDS)
    config = LoraConfig(rank=2, modules=("v_proj", "down_proj"))
    add_adapters(model, config, torch.float64)
    initialize_adapters(model, seed=7)
    assert {type(module).__name__ for module in model.modules() if isinstance(module, LoraLinear)}
    weights = WeightsWithAdapters(our_llama(hf).state_dict(), model.config, config, seed=7)
    assert len(weights) == len(list(weights))
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(weights[name].double(), tensor.double(), atol=0, rtol=0)
    model.double()
    torch.testing.assert_close(logits(model, IDS).float(), before, atol=1e-4, rtol=0)
    a, _ = adapter_names("model.layers.0.self_attn.v_proj.weight")
    other = WeightsWithAdapters({}, model.config, config, seed=8)
    assert not torch.equal(other[a], weights[a])
    bound = model.config.hidden_size**-0.5
    assert 0.9 * bound < weights[a].abs().max() <= bound


def test_dropout_is_for_training_only():
    model = adapted(make_hf(0), LoraConfig(rank=4, dropout=0.5))
    assert not torch.equal(logits(model, IDS), logits(model, IDS))
    model.eval()
    assert torch.equal(logits(model, IDS), logits(model, IDS))


def test_an_adapter_written_by_peft_is_read(tmp_path):
    hf = make_hf(0)
    theirs = peft.get_peft_model(
        hf, peft.LoraConfig(r=3, lora_alpha=5, target_modules=["q_proj", "up_proj"], task_type="CAUSAL_LM")
    )
    theirs.save_pretrained(tmp_path)
    shape = our_llama(make_hf(0)).config
    adapter = read_adapter(tmp_path, shape)
    assert adapter.config == LoraConfig(rank=3, alpha=5.0, modules=("q_proj", "up_proj"))
    state = theirs.state_dict()
    for name, tensor in adapter.tensors.items():
        assert torch.equal(tensor, state[f"base_model.model.{name}.default.weight"])


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"use_dora": True}, "use_dora = True is not supported"),
        ({"r": 8}, "shape"),
        ({"target_modules": ["q_proj", "lm_head"]}, "lm_head|q_proj"),
        ({"peft_type": "PREFIX_TUNING"}, "not the config of a LoRA adapter"),
        ({"target_modules": ["q_proj"]}, "unexpected"),
    ],
)
def test_an_adapter_that_is_something_else_is_refused(tmp_path, change, problem):
    model = adapted(make_hf(0))
    save_adapter(tmp_path, adapters_of(model), CONFIG)
    path = tmp_path / "adapter_config.json"
    write_json(path, read_json(path) | change)
    with pytest.raises(InputError, match=problem):
        read_adapter(tmp_path, model.config)


def test_a_module_that_is_named_twice_is_refused():
    with pytest.raises(ValueError, match="q_proj"):
        LoraConfig(modules=("q_proj", "q_proj"))
    assert LoraConfig().modules == LORA_MODULES
    assert LoraConfig(rank=8, alpha=4).scale == 0.5
