"""An adapter as a GGUF file: llama.cpp applies it to the base as torch does."""

import pytest
import torch

from llamacpp import llama_server
from meditron.core.errors import InputError, UsageError
from meditron.model.lora import MergedWeights, add_adapters, initialize_adapters
from meditron.model.lora_config import LoraConfig
from meditron.model.lora_files import save_adapter
from meditron.model.weights import load_model, save_hf
from meditron.release.convert import convert
from meditron.store.gguf import GGUF
from meditron.text.tokenizer import load_tokenizer
from tiny import tiny_hf

LORA = LoraConfig(rank=4, alpha=6.0)


@pytest.fixture
def finetune(tmp_path):
    """A finetune's folder: the merged model, and the adapter in `adapter/`; the base is beside it."""
    base = tiny_hf(tmp_path / "base")
    model = load_model(base)
    add_adapters(model, LORA, torch.float32)
    initialize_adapters(model, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("lora_B"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
    state, out = model.state_dict(), tmp_path / "finetune"
    merged = MergedWeights(state, model.config, LORA)
    save_hf(merged, model.config, load_tokenizer(base), out, torch.float32)
    save_adapter(out / "adapter", {k: v for k, v in state.items() if "lora_" in k}, LORA)
    return out


def test_llama_cpp_applies_the_adapter_to_the_base_as_torch_does(finetune, tmp_path):
    convert(str(tmp_path / "base"), tmp_path / "base.gguf", type="F32")
    written = convert(str(finetune / "adapter"), tmp_path / "adapter.gguf")
    assert written["bytes"] == (tmp_path / "adapter.gguf").stat().st_size
    with GGUF(tmp_path / "adapter.gguf") as gguf:
        assert gguf.metadata["general.type"] == "adapter"
        assert gguf.metadata["adapter.lora.alpha"] == 6.0
    prompt = [5, 17, 42, 99, 7]
    with llama_server(tmp_path / "base.gguf", context=64) as server:
        plain = server.greedy(prompt, 12)
    with llama_server(tmp_path / "base.gguf", context=64, lora=tmp_path / "adapter.gguf") as server:
        steps = server.greedy(prompt, 12)
    assert [step.id for step in steps] != [step.id for step in plain]
    model, ids = load_model(finetune), list(prompt)
    for step in steps:
        with torch.no_grad():
            logp = torch.log_softmax((model(torch.tensor([ids])) @ model.head_weight.T)[0, -1], -1)
        assert step.id == int(logp.argmax())
        assert abs(step.logprob - float(logp[step.id])) < 1e-3
        ids.append(step.id)


def test_an_adapter_becomes_a_gguf_file_beside_its_model_only(finetune, tmp_path):
    with pytest.raises(UsageError, match="GGUF file of type F32 only"):
        convert(str(finetune / "adapter"), tmp_path / "out")
    with pytest.raises(UsageError, match="GGUF file of type F32 only"):
        convert(str(finetune / "adapter"), tmp_path / "a.gguf", type="F16")
    (finetune / "adapter").rename(tmp_path / "alone")
    with pytest.raises(InputError, match="model is not in the folder above"):
        convert(str(tmp_path / "alone"), tmp_path / "a.gguf")
