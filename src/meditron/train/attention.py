"""Attention for training on a CPU: torch's fused forward, and a backward made of large matrix products.

Shapes: B batch, H heads, K key/value heads, S sequence, E head width. The backward treats the queries in
parts: P queries of a part, of all heads that share keys; T the keys visible to them; N = B · K products.
"""

from functools import reduce
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from meditron.model.llama import sdpa

__all__ = ["attend"]

# Number of blocks that the queries are split into. Each block is multiplied only with the keys up to its last
# position; the causal mask hides all later keys. More blocks compute fewer masked scores, but take longer to
# compile.
_PARTS = 4


def attend(q_BHSE: Tensor, k_BKSE: Tensor, v_BKSE: Tensor, mask_B1SS: Tensor | None, causal: bool) -> Tensor:
    """Compute `sdpa`, with a gradient that is faster if compiled (docs/explanation/profile.md).

    A mask must be causal, because the backward pass skips the keys after the end of each part of the queries.
    """
    if not torch.is_grad_enabled():
        return sdpa(q_BHSE, k_BKSE, v_BKSE, mask_B1SS, causal)
    out_BHSE: Tensor = _Attention.apply(q_BHSE, k_BKSE, v_BKSE, mask_B1SS)  # type: ignore[no-untyped-call]
    return out_BHSE


class _Attention(torch.autograd.Function):
    """softmax(Q Kᵀ / √E) V; the gradients are those of FlashAttention-2 (Dao 2023, algorithm 2)."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        q_BHSE: Tensor,
        k_BKSE: Tensor,
        v_BKSE: Tensor,
        mask_B1SS: Tensor | None,
    ) -> Tensor:
        group = q_BHSE.shape[1] // k_BKSE.shape[1]
        out_BHSE: Tensor
        out_BHSE, lse_BHS = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            q_BHSE,
            k_BKSE.repeat_interleave(group, 1),
            v_BKSE.repeat_interleave(group, 1),
            is_causal=mask_B1SS is None,
            attn_mask=mask_B1SS,
        )
        ctx.save_for_backward(q_BHSE, k_BKSE, v_BKSE, mask_B1SS, out_BHSE, lse_BHS)
        return out_BHSE

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:  # noqa: ANN401
        q_BHSE, k_BKSE, v_BKSE, mask_B1SS, out_BHSE, lse_BHS = ctx.saved_tensors
        (d_out_BHSE,) = gradients
        batch, heads, length, width = q_BHSE.shape
        shared = k_BKSE.shape[1]
        dtype, wide = q_BHSE.dtype, lse_BHS.dtype
        # Heads that share keys are stacked, which gives fewer and larger products.
        grouped = (batch, shared, heads // shared, length)
        q, d_out, lse = (x.reshape(*grouped, -1) for x in (q_BHSE, d_out_BHSE, lse_BHS))
        # Row sums of dO ∘ O equal those of dP ∘ P (FlashAttention-2), and need no second pass over the keys.
        dot = (d_out_BHSE.to(wide) * out_BHSE.to(wide)).sum(-1).reshape(*grouped, 1)
        k_NSE, v_NSE = k_BKSE.reshape(-1, length, width), v_BKSE.reshape(-1, length, width)
        k_wide_NSE = k_NSE.to(wide)
        d_q, d_k_NSE, d_v_NSE = [], [], []
        for part in range(_PARTS):
            start, end = length * part // _PARTS, length * (part + 1) // _PARTS
            square = (*grouped[:3], end - start, end)
            rows = (batch * shared, heads // shared * (end - start))
            q_NPE, d_out_NPE = (x[..., start:end, :].reshape(*rows, width) for x in (q, d_out))
            # The scores are computed in float32, as in the forward pass: they must match its log-sum-exp,
            # because exp amplifies differences.
            scores = (q_NPE.to(wide) @ k_wide_NSE[:, :end].mT).view(square) * width**-0.5
            if mask_B1SS is None:
                scores = scores.masked_fill(torch.arange(start, end)[:, None] < torch.arange(end), -torch.inf)
            else:
                scores = scores + mask_B1SS[:, :, None, start:end, :end]
            # The softmax is recomputed from the log-sum-exp, because storing it would take memory quadratic
            # in S.
            p = torch.exp(scores - lse[..., start:end, :])
            d_p = (d_out_NPE @ v_NSE[:, :end].mT).view(square)
            d_scores = p * (d_p - dot[..., start:end, :]) * width**-0.5
            p_NPT, d_scores_NPT = (x.to(dtype).view(*rows, end) for x in (p, d_scores))
            # Keys after the end of a part get a zero gradient from that part; the parts are summed in float32
            # below.
            unseen = (0, 0, 0, length - end)
            d_q.append((d_scores_NPT @ k_NSE[:, :end]).view(*square[:4], width))
            d_k_NSE.append(F.pad(d_scores_NPT.mT @ q_NPE, unseen).to(wide))
            d_v_NSE.append(F.pad(p_NPT.mT @ d_out_NPE, unseen).to(wide))
        d_k, d_v = (reduce(torch.add, x).to(dtype).view_as(k_BKSE) for x in (d_k_NSE, d_v_NSE))
        return torch.cat(d_q, dim=3).view_as(q_BHSE), d_k, d_v, None
