"""The chunked loss against torch's own, and held-out documents against scoring them one by one."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_parity import logits, make_hf, our_llama
from meditron.model.nll import document_nll, nll_sum, token_nll

MODEL = our_llama(make_hf())


def inputs(dtype=torch.float32, rows=(3, 50), width=32, vocabulary=300):
    generator = torch.Generator().manual_seed(5)
    hidden_BSD = torch.randn(*rows, width, generator=generator).to(dtype).requires_grad_()
    weight_VD = torch.randn(vocabulary, width, generator=generator).to(dtype).requires_grad_()
    targets_BS = torch.randint(0, vocabulary, rows, generator=generator)
    targets_BS[0, :7] = -100
    return hidden_BSD, weight_VD, targets_BS


def reference(hidden_BSD, weight_VD, targets_BS):
    logits_NV = (hidden_BSD @ weight_VD.T).flatten(0, 1)
    return F.cross_entropy(logits_NV, targets_BS.flatten(), reduction="sum")


@pytest.mark.parametrize("chunk", [1, 16, 1024])
def test_sum_and_gradients_equal_cross_entropy(chunk):
    hidden_BSD, weight_VD, targets_BS = inputs()
    wanted = reference(hidden_BSD, weight_VD, targets_BS)
    wanted_grads = torch.autograd.grad(wanted / 143, (hidden_BSD, weight_VD))
    total, count = nll_sum(hidden_BSD, weight_VD, targets_BS, chunk=chunk)
    grads = torch.autograd.grad(total / count, (hidden_BSD, weight_VD))
    assert count == 143
    assert total.item() == pytest.approx(wanted.item(), rel=1e-6)
    for found, right in zip(grads, wanted_grads, strict=True):
        torch.testing.assert_close(found, right, atol=1e-6, rtol=1e-5)


def test_gradients_by_finite_differences():
    hidden_BSD, weight_VD, targets_BS = inputs(torch.float64, rows=(2, 9), width=5, vocabulary=11)
    assert torch.autograd.gradcheck(
        lambda hidden, weight: nll_sum(hidden, weight, targets_BS, chunk=4)[0] * 0.3, (hidden_BSD, weight_VD)
    )


def test_bfloat16_is_as_near_the_truth_as_cross_entropy_in_bfloat16():
    hidden_BSD, weight_VD, targets_BS = inputs(torch.bfloat16)
    wide = [tensor.detach().float().requires_grad_() for tensor in (hidden_BSD, weight_VD)]
    truth = torch.autograd.grad(reference(*wide, targets_BS), wide)
    plain = torch.autograd.grad(reference(hidden_BSD, weight_VD, targets_BS).float(), (hidden_BSD, weight_VD))
    ours = torch.autograd.grad(
        nll_sum(hidden_BSD, weight_VD, targets_BS, chunk=16)[0], (hidden_BSD, weight_VD)
    )
    for right, theirs, found in zip(truth, plain, ours, strict=True):
        assert found.dtype == torch.bfloat16
        assert (found.float() - right).norm() <= 1.2 * (theirs.float() - right).norm()


def test_no_targets_no_loss_and_no_gradient():
    hidden_BSD, weight_VD, targets_BS = inputs()
    total, count = nll_sum(hidden_BSD, weight_VD, torch.full_like(targets_BS, -100))
    total.backward()
    assert (total.item(), count) == (0.0, 0)
    assert not hidden_BSD.grad.any()
    assert not weight_VD.grad.any()


def test_a_tied_weight_gets_both_gradients():
    model = our_llama(make_hf(tie_word_embeddings=True))
    ids_BS = torch.arange(60).reshape(2, 30)
    total, _ = nll_sum(model(ids_BS), model.head_weight, ids_BS.roll(-1, 1))
    (ours,) = torch.autograd.grad(total, [model.head_weight])
    (wanted,) = torch.autograd.grad(
        reference(model(ids_BS), model.head_weight, ids_BS.roll(-1, 1)), [model.head_weight]
    )
    torch.testing.assert_close(ours, wanted, atol=1e-4, rtol=1e-4)


def alone(row):
    ids_BS = torch.tensor([row[: MODEL.config.max_position_embeddings]])
    with torch.no_grad():
        return F.cross_entropy(
            logits(MODEL, ids_BS[:, :-1])[0].double(), ids_BS[0, 1:], reduction="sum"
        ).item()


@given(
    st.lists(st.lists(st.integers(0, 511), max_size=80), max_size=8),
    st.integers(1, 200),
)
@settings(max_examples=25, deadline=None)
def test_documents_in_batches_score_as_alone(rows, batch_tokens):
    nll, tokens = document_nll(MODEL, rows, batch_tokens=batch_tokens)
    assert tokens.tolist() == [max(min(len(row), 64) - 1, 0) for row in rows]
    for found, row in zip(nll, rows, strict=True):
        assert found == pytest.approx(alone(row) if len(row) > 1 else 0.0, rel=1e-5, abs=1e-4)


def test_held_out_loss_repeats_to_the_bit_and_leaves_no_trace():
    rows = [list(range(start, start + 5 * start)) for start in (3, 9, 1, 12, 7)]
    first, again = document_nll(MODEL, rows)[0], document_nll(MODEL, rows)[0]
    assert np.array_equal(first, again)
    assert all(weight.grad is None for weight in MODEL.parameters())


def test_max_length_truncates():
    row = list(range(40))
    (nll,), (tokens,) = document_nll(MODEL, [row], max_length=10)
    assert tokens == 9
    assert nll == pytest.approx(alone(row[:10]), rel=1e-5)


# dynamo looks at .grad of what comes in and warns about it itself
@pytest.mark.filterwarnings("ignore:The .grad attribute")
def test_compiled_blocks_score_eagerly():
    model = our_llama(make_hf())
    for block in model.blocks():
        block.compile(backend="eager", fullgraph=True)
    model(torch.arange(20)[None])
    rows = [list(range(length)) for length in (5, 11, 30)]
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounter()
    for block in model.blocks():
        block.compile(backend=counter)
    assert np.allclose(document_nll(model, rows)[0], document_nll(MODEL, rows)[0])
    assert counter.frame_count == 0


@pytest.mark.parametrize("chunk", [3, 1024])
def test_the_loss_of_each_token_and_its_weighted_gradient_are_torchs(chunk):
    torch.manual_seed(0)
    hidden, head = torch.randn(7, 16, requires_grad=True), torch.randn(31, 16, requires_grad=True)
    targets, weights = torch.randint(0, 31, (7,)), torch.randn(7)
    ours = token_nll(hidden, head, targets, chunk=chunk)
    mine = torch.autograd.grad((ours * weights).sum(), (hidden, head))
    theirs = torch.nn.functional.cross_entropy(hidden @ head.T, targets, reduction="none")
    torch.testing.assert_close(ours, theirs)
    for a, b in zip(mine, torch.autograd.grad((theirs * weights).sum(), (hidden, head)), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
