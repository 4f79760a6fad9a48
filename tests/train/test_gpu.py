"""Training on a GPU against the CPU; skipped without one. The other files test on a CPU all that can be."""

import pytest
import torch

from hf_parity import make_hf, our_llama
from meditron.model.flex_attention import attend_to_blocks, document_block_mask
from meditron.model.llama import document_mask, sdpa
from meditron.model.nll import nll_sum
from meditron.train.batches import StepBatches
from meditron.train.compilation import compile_blocks, use_device_attention
from meditron.train.optimizer import MasterAdamW
from meditron.train.runtime import deterministic, peak_memory_bytes
from train.test_batches import make_data
from train.world import make_config

if not torch.cuda.is_available():
    pytest.skip("needs a GPU", allow_module_level=True)

GPU = torch.device("cuda", 0)


def losses(device, dtype, *, compiled=False, state_dtype=torch.float32):
    """Train a small model on packed documents: the loss of each step, and the weights."""
    config = make_config(sequence_length=200, tokens=8 * 4 * 200, micro_batch_size=2, dtype="float32")
    model = our_llama(make_hf(0, tie_word_embeddings=True)).to(device)
    if compiled:
        compile_blocks(model, device)
    else:
        use_device_attention(model, device, compiled=False)
    optimizer = MasterAdamW(
        model,
        dtype=dtype,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
        state_dtype=state_dtype,
    )
    found = []
    with deterministic(0, 1, device):
        for step in StepBatches(make_data(config), config, start_step=0, rank=0, size=1, device=device):
            for batch in step.batches:
                hidden = model(batch.ids_BS, positions_BS=batch.positions_BS, mask=batch.mask)
                loss = nll_sum(hidden, model.head_weight, batch.targets_BS)[0] / step.targets
                loss.backward()
                found.append(loss.item())
            optimizer.step(3e-3, optimizer.gradient_norm(), 1.0)
    return found, [weight.detach().cpu() for weight in model.parameters()]


@pytest.mark.filterwarnings("ignore")  # torch's compiler, about itself
@pytest.mark.parametrize("compiled", [False, True])
def test_losses_are_those_of_a_cpu(compiled):
    ours, _ = losses(GPU, torch.float32, compiled=compiled)
    theirs, _ = losses(torch.device("cpu"), torch.float32)
    assert ours == pytest.approx(theirs, abs=1e-4)
    assert peak_memory_bytes(GPU) > 0


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("state_dtype", [torch.float32, torch.bfloat16])
def test_the_same_run_twice_is_the_same_to_the_bit(state_dtype):
    one, first = losses(GPU, torch.bfloat16, compiled=True, state_dtype=state_dtype)
    two, second = losses(GPU, torch.bfloat16, compiled=True, state_dtype=state_dtype)
    assert one == two
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("length", [256, 300])
def test_gradients_of_block_attention_are_those_of_explicit_masks(length):
    documents_BS = (torch.rand(2, length, device=GPU) < 0.02).long().cumsum(1)
    operands = [torch.randn(2, heads, length, 64, device=GPU, requires_grad=True) for heads in (4, 2, 2)]
    explicit = sdpa(*operands, document_mask(documents_BS), False)
    blocks = attend_to_blocks(*operands, document_block_mask(documents_BS), False)
    weights = torch.randn_like(explicit)
    for ours, theirs in zip(
        torch.autograd.grad((blocks * weights).sum(), operands),
        torch.autograd.grad((explicit * weights).sum(), operands),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=5e-3)
