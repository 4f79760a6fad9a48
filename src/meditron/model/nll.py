"""Negative log-likelihood: chunked linear cross-entropy for training, and the loss of held-out documents."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch import Tensor

from meditron.core.console import progress
from meditron.model.head import Head
from meditron.model.llama import Llama
from meditron.model.tensors import require_finite

__all__ = ["document_nll", "nll_sum", "token_nll"]

# Shapes: B batch, S sequence, D width, V vocabulary, N rows that have a target, C rows of a chunk, R rows of
# a softmax.

# The softmax is computed for this many rows at a time: the fp32 copy of their logits (12 MB for 49,152
# tokens) stays in a CPU's cache, while that of a whole chunk would pass through memory several times.
_SOFTMAX_ROWS = 64


def nll_sum(
    hidden_BSD: Tensor, head_weight_VD: Tensor, targets_BS: Tensor, *, ignore: int = -100, chunk: int = 1024
) -> tuple[Tensor, int]:
    """Return the summed negative log-likelihood (nats, fp32) and the number of targets.

    Differentiable in the hidden states and the head. The logits of only `chunk` rows exist at a time, in the
    weight's dtype, with the softmax in fp32. Gradients are computed in the forward pass, from the same
    logits. Positions whose target is `ignore` are neither computed nor counted.
    """
    targets_N = targets_BS.reshape(-1)
    hidden_ND = hidden_BSD.reshape(-1, hidden_BSD.shape[-1])
    kept = (targets_N != ignore).nonzero()[:, 0]
    if len(kept) < len(targets_N):
        hidden_ND, targets_N = hidden_ND[kept], targets_N[kept]
    total: Tensor = _LinearCrossEntropy.apply(hidden_ND, head_weight_VD, targets_N, chunk)  # type: ignore[no-untyped-call]
    return total, len(kept)


def token_nll(hidden_ND: Tensor, head_weight_VD: Tensor, targets_N: Tensor, *, chunk: int = 1024) -> Tensor:
    """Return the negative log-likelihood of each target (N,), in nats, in fp32 or wider.

    Differentiable in the hidden states and the head, for losses that weight the targets differently. The
    logits of only `chunk` rows exist at a time: the backward pass computes them again.
    """
    nll_N: Tensor = _TokenCrossEntropy.apply(hidden_ND, head_weight_VD, targets_N, chunk)  # type: ignore[no-untyped-call]
    return nll_N


class _TokenCrossEntropy(torch.autograd.Function):
    """−log softmax(hidden · Wᵀ)[target] of each row."""

    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, chunk: int) -> Tensor:  # noqa: ANN401
        ctx.save_for_backward(hidden_ND, weight_VD, targets_N)
        ctx.chunk = chunk
        wide = torch.promote_types(weight_VD.dtype, torch.float32)
        nll_N = hidden_ND.new_empty(len(targets_N), dtype=wide)
        for start in range(0, len(targets_N), chunk):
            part = slice(start, start + chunk)
            logits_CV = (hidden_ND[part] @ weight_VD.T).to(wide)
            nll_N[part] = -torch.log_softmax(logits_CV, dim=-1).gather(1, targets_N[part, None])[:, 0]
        return nll_N

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:  # noqa: ANN401
        hidden_ND, weight_VD, targets_N = ctx.saved_tensors
        (d_nll_N,) = gradients
        wide = d_nll_N.dtype
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        d_hidden_ND = torch.zeros_like(hidden_ND) if wants_hidden else None
        d_weight_VD = torch.zeros_like(weight_VD, dtype=wide) if wants_weight else None
        for start in range(0, len(targets_N), ctx.chunk):
            part = slice(start, start + ctx.chunk)
            softmax_CV = torch.softmax((hidden_ND[part] @ weight_VD.T).to(wide), dim=-1)
            targets_C1 = targets_N[part, None]
            softmax_CV.scatter_add_(1, targets_C1, -torch.ones_like(targets_C1, dtype=wide))
            d_logits_CV = (softmax_CV * d_nll_N[part, None]).to(weight_VD.dtype)
            if d_hidden_ND is not None:
                torch.mm(d_logits_CV, weight_VD, out=d_hidden_ND[part])
            if d_weight_VD is not None:
                d_weight_VD += d_logits_CV.T @ hidden_ND[part]
        return d_hidden_ND, None if d_weight_VD is None else d_weight_VD.to(weight_VD.dtype), None, None


class _LinearCrossEntropy(torch.autograd.Function):
    """Σ −log softmax(hidden · Wᵀ)[target]; gradients in the forward pass as in Liger (Hsu et al. 2024)."""

    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, chunk: int) -> Tensor:  # noqa: ANN401
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        wide = torch.promote_types(weight_VD.dtype, torch.float32)
        total = torch.zeros((), dtype=wide, device=hidden_ND.device)
        d_hidden_ND = torch.empty_like(hidden_ND) if wants_hidden else None
        d_weight_VD = None
        # Both buffers are reused by every chunk: page faults of new ones cost more than the softmax itself.
        rows = min(chunk, len(targets_N))
        logits_CV = hidden_ND.new_empty(rows, len(weight_VD))
        # A GPU has no such cache, and many small parts would take longer to launch than to compute.
        softmax_rows = rows if hidden_ND.is_cuda else min(_SOFTMAX_ROWS, rows)
        scratch_RV = hidden_ND.new_empty(softmax_rows, len(weight_VD), dtype=wide)
        for start in range(0, len(targets_N), chunk):
            hidden_CD, targets_C = hidden_ND[start : start + chunk], targets_N[start : start + chunk]
            d_logits_CV = torch.mm(hidden_CD, weight_VD.T, out=logits_CV[: len(targets_C)])
            total += _logits_to_gradient(d_logits_CV, targets_C, scratch_RV)
            if d_hidden_ND is not None:
                torch.mm(d_logits_CV, weight_VD, out=d_hidden_ND[start : start + chunk])
            if wants_weight:
                part_VD = d_logits_CV.T @ hidden_CD
                # The weight gradients of several chunks are summed in fp32; that of a single chunk is rounded
                # only once and needs no copy.
                d_weight_VD = part_VD if d_weight_VD is None else d_weight_VD.to(wide).add_(part_VD)
        if wants_weight:
            d_weight_VD = torch.zeros_like(weight_VD) if d_weight_VD is None else d_weight_VD
            d_weight_VD = d_weight_VD.to(weight_VD.dtype)
        ctx.save_for_backward(d_hidden_ND, d_weight_VD)
        return total

    @staticmethod
    def backward(ctx: Any, *d_total: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:  # noqa: ANN401
        d_hidden_ND, d_weight_VD = ctx.saved_tensors
        scale = d_total[0]
        d_hidden = None if d_hidden_ND is None else d_hidden_ND * scale.to(d_hidden_ND.dtype)
        d_weight = None if d_weight_VD is None else d_weight_VD * scale.to(d_weight_VD.dtype)
        return d_hidden, d_weight, None, None


def _logits_to_gradient(logits_CV: Tensor, targets_C: Tensor, scratch_RV: Tensor) -> Tensor:
    """Turn logits, in place, into the loss's gradient (softmax minus one-hot); return the loss.

    The softmax is computed in the dtype of the scratch buffer, for as many rows at a time as the buffer has.
    """
    total = scratch_RV.new_zeros(())
    for start in range(0, len(targets_C), len(scratch_RV)):
        rows_RV = logits_CV[start : start + len(scratch_RV)]
        targets_R1 = targets_C[start : start + len(scratch_RV), None]
        logp_RV = scratch_RV[: len(rows_RV)].copy_(rows_RV)
        torch.log_softmax(logp_RV, dim=-1, out=logp_RV)
        target_R1 = logp_RV.gather(1, targets_R1)
        softmax_RV = logp_RV.exp_()
        # On a CPU, log_softmax sums a large vocabulary from left to right: in float32 small probabilities are
        # lost, and the loss is some 1e-6 too low. `sum` adds in pairs; its result corrects both.
        sum_R1 = softmax_RV.sum(dim=1, keepdim=True)
        total += (sum_R1.log() - target_R1).sum()
        softmax_RV.scatter_add_(1, targets_R1, -sum_R1)
        torch.div(softmax_RV, sum_R1, out=rows_RV)
    return total


def document_nll(
    model: Llama,
    rows: Sequence[Sequence[int]],
    *,
    max_length: int | None = None,
    batch_tokens: int = 2048,
    label: str | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return each document's negative log-likelihood (nats, float64) and number of scored tokens (int64).

    The first token of a document is context and is not scored. If the tokenizer adds BOS, all tokens of the
    text are scored, otherwise all but the first. Head and softmax are fp32 for a model of any dtype. Equal
    documents in equal order are batched equally, so the result repeats to the last bit.

    Args:
        model: The model; compiled blocks run uncompiled.
        rows: The token ids of each document.
        max_length: Maximum tokens of a document; the rest is not scored. The model's context when absent.
        batch_tokens: Approximate number of tokens of a batch.
        label: The name of a progress bar; none when absent.

    Raises:
        EngineError: the logits are not finite.
    """
    limit = min(max_length or model.config.max_position_embeddings, model.config.max_position_embeddings)
    lengths = np.array([min(len(row), limit) for row in rows], dtype=np.int64)
    nll = np.zeros(len(rows), dtype=np.float64)
    tokens = np.maximum(lengths - 1, 0)
    with ExitStack() as stack:
        if "torch._dynamo" in sys.modules:
            # Each batch has its own shape, and compiled blocks would be compiled again for it.
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(torch.no_grad())
        bar = stack.enter_context(progress(label, int(tokens.sum()), "tokens")) if label else None
        head = Head(model.head_weight)
        for batch in _length_batches(lengths, batch_tokens):
            nll[batch] = _batch_nll(model, head, [rows[index][:limit] for index in batch])
            if bar is not None:
                bar.advance(int(tokens[batch].sum()))
    return nll, tokens


def _length_batches(lengths: np.ndarray, batch_tokens: int) -> Iterator[np.ndarray]:
    """Group documents of similar length, the longest first: a lack of memory then shows at the start."""
    order = np.argsort(-lengths, kind="stable")
    order = order[lengths[order] > 1]
    start = 0
    while start < len(order):
        count = max(1, batch_tokens // int(lengths[order[start]]))
        yield order[start : start + count]
        start += count


def _batch_nll(model: Llama, head: Head, rows: list[Sequence[int]]) -> np.ndarray:
    """Return the NLL of each row. Rows are padded on the right, where causal attention never looks."""
    device = model.head_weight.device
    lengths_B = torch.tensor([len(row) for row in rows], device=device)
    ids_BS = torch.zeros(len(rows), int(lengths_B[0]), dtype=torch.long, device=device)
    for ids_S, row in zip(ids_BS, rows, strict=True):
        ids_S[: len(row)] = torch.as_tensor(row, device=device)
    real_BS = torch.arange(1, ids_BS.shape[1], device=device) < lengths_B[:, None]
    nll_N = head.nll(model(ids_BS[:, :-1])[real_BS], ids_BS[:, 1:][real_BS])
    owners_N = real_BS.nonzero()[:, 0]
    # Summed in fp64: thousands of fp32 terms would lose the last digits that a comparison of two models
    # needs.
    sums_B = torch.zeros(len(rows), dtype=torch.float64, device=device)
    sums_B.index_add_(0, owners_N, nll_N.double())
    require_finite(model, sums_B)
    return sums_B.cpu().numpy()
