"""Changes to a model's blocks for speed: attention by device, and float8."""

import pytest
import torch

from hf_parity import make_hf, our_llama
from meditron.core.errors import MissingExtra, RecipeError
from meditron.model.flex_attention import attend_to_blocks
from meditron.model.llama import sdpa
from meditron.parallel.model import apply_activation_checkpointing
from meditron.train import compilation
from meditron.train.attention import attend
from meditron.train.compilation import compile_blocks, use_device_attention, use_float8

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


@pytest.mark.parametrize(
    ("device", "compiled", "expected"),
    [(CPU, False, sdpa), (CPU, True, attend), (GPU, False, attend_to_blocks), (GPU, True, attend_to_blocks)],
)
def test_attention_is_that_of_the_device(device, compiled, expected):
    model = our_llama(make_hf())
    use_device_attention(model, device, compiled=compiled)
    assert all(block.self_attn.attend is expected for block in model.blocks())


@pytest.fixture
def hopper(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100")


def test_float8_needs_a_gpu_that_has_it(monkeypatch):
    model = our_llama(make_hf())
    with pytest.raises(RecipeError, match=r"float8 needs a GPU .* not a CPU"):
        use_float8(model, CPU)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA A100")
    with pytest.raises(RecipeError, match="not NVIDIA A100") as error:
        use_float8(model, GPU)
    assert error.value.hint == "set float8 = false in the stage's table"


@pytest.mark.usefixtures("hopper")
def test_without_torchao_the_error_is_the_install_command(monkeypatch):
    monkeypatch.setattr(compilation, "find_spec", lambda name: None)
    with pytest.raises(MissingExtra, match="torchao") as error:
        use_float8(our_llama(make_hf()), GPU)
    assert error.value.hint == "pip install 'meditron[gpu]'"


@pytest.mark.usefixtures("hopper")
@pytest.mark.filterwarnings("ignore")  # torchao's own
def test_float8_replaces_the_matrices_of_the_blocks_and_keeps_their_weights():
    float8 = pytest.importorskip("torchao.float8.float8_linear", reason="needs the extra gpu")
    hf = make_hf()
    model, plain = our_llama(hf), our_llama(hf)
    use_float8(model, GPU)
    for block in model.blocks():
        matrices = [module for module in block.modules() if isinstance(module, torch.nn.Linear)]
        assert len(matrices) == 7
        assert all(isinstance(module, float8.Float8Linear) for module in matrices)
    assert not isinstance(model.lm_head, float8.Float8Linear)
    theirs = plain.state_dict()
    assert {name: weight.shape for name, weight in model.state_dict().items()} == {
        name: weight.shape for name, weight in theirs.items()
    }
    assert all(torch.equal(weight, theirs[name]) for name, weight in model.state_dict().items())


@pytest.mark.filterwarnings("ignore")  # torch's own, about itself
@pytest.mark.parametrize("mode", ["none", "selective", "full"])
def test_blocks_with_activation_checkpointing_are_compiled_as_one_graph(mode):
    hf = make_hf()
    ids_BS = torch.arange(96).view(2, 48)
    plain, model = our_llama(hf), our_llama(hf)
    apply_activation_checkpointing(model, mode)
    compile_blocks(model, CPU)
    for block in model.blocks():
        # Without `fullgraph` a block that cannot be compiled runs uncompiled, and nothing says so.
        block.compile(backend="aot_eager", fullgraph=True)
    for each in (plain, model):
        each(ids_BS).square().mean().backward()
    theirs = dict(plain.named_parameters())
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight.grad, theirs[name].grad, atol=1e-6, rtol=1e-4)
