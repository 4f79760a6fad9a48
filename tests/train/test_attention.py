"""Attention's gradient of matrix products against torch's own, alone and in compiled blocks."""

import pytest
import torch

from hf_parity import make_hf, our_llama
from meditron.model.llama import document_mask, sdpa
from meditron.train.attention import attend
from meditron.train.compilation import compile_blocks


def material(length, *, shared, masked, dtype=torch.float64):
    """Queries of 6 heads, keys and values of `shared`, and the additive mask of three documents or none."""
    generator = torch.Generator().manual_seed(length)
    q, k, v, d_out = (
        torch.randn(2, length, heads, 16, generator=generator).transpose(1, 2).to(dtype)
        for heads in (6, shared, shared, 6)
    )
    mask = None
    if masked:
        documents = torch.arange(length).mul(3).div(length, rounding_mode="floor")
        seen = document_mask(torch.stack((documents, documents.clamp(max=1))))
        if seen is not None:  # as where a row is one document
            mask = torch.zeros_like(seen, dtype=dtype).masked_fill_(~seen, -torch.inf)
    return [x.requires_grad_() for x in (q, k, v)], mask, d_out


def gradients(attention, operands, mask, d_out):
    """Of the three operands, and the attention itself."""
    out = attention(*operands, mask, mask is None)
    return [out.detach(), *torch.autograd.grad(out, operands, d_out)]


@pytest.mark.parametrize("masked", [False, True], ids=["causal", "documents"])
@pytest.mark.parametrize("shared", [6, 2, 1])
@pytest.mark.parametrize("length", [1, 3, 37, 64])
def test_gradients_are_those_of_torch(length, shared, masked):
    given = material(length, shared=shared, masked=masked)
    for ours, theirs in zip(gradients(attend, *given), gradients(sdpa, *given), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("masked", [False, True], ids=["causal", "documents"])
def test_the_bfloat16_error_is_at_most_that_of_torch(masked):
    def error(attention):
        operands, mask, d_out = material(256, shared=2, masked=masked, dtype=torch.bfloat16)
        wide = [x.detach().double().requires_grad_() for x in operands]
        truth = gradients(sdpa, wide, None if mask is None else mask.double(), d_out.double())
        given = gradients(attention, operands, mask, d_out)
        return sum(
            float((x - true).square().mean() / true.square().mean())
            for x, true in zip(given, truth, strict=True)
        )

    assert error(attend) <= 1.1 * error(sdpa)


@torch.no_grad()
def test_inference_uses_torchs_attention_also_with_a_kv_cache():
    (q, k, v), _, _ = material(20, shared=2, masked=False)
    new = q[:, :, -4:]
    seen = torch.ones(4, 20, dtype=torch.bool).tril(16)
    assert torch.equal(attend(new, k, v, seen, False), sdpa(new, k, v, seen, False))


@pytest.mark.filterwarnings("ignore")  # torch's own, about itself
@pytest.mark.parametrize("masked", [False, True], ids=["causal", "documents"])
def test_a_compiled_block_is_one_graph_forward_and_backward(masked):
    hf = make_hf()
    ids_BS = torch.arange(96).view(2, 48)
    mask = document_mask(torch.arange(48).div(20, rounding_mode="floor").expand(2, -1)) if masked else None
    plain, model = our_llama(hf), our_llama(hf)
    compile_blocks(model, torch.device("cpu"))
    for block in model.blocks():
        assert block.self_attn.attend is attend
        block.compile(backend="aot_eager", fullgraph=True)
    for each in (plain, model):
        each(ids_BS, mask=mask).square().mean().backward()
    theirs = dict(plain.named_parameters())
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight.grad, theirs[name].grad, atol=1e-6, rtol=1e-4)
