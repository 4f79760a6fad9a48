"""The loss of a language model: linear cross-entropy in chunks, and the loss of held-out documents."""

from typing import Any

import torch
from torch import Tensor

__all__ = ["nll_sum"]

# Legend: B batch, S sequence, D width, V vocabulary, N rows that have a target, C rows of a chunk.


def nll_sum(
    hidden_BSD: Tensor, head_weight_VD: Tensor, targets_BS: Tensor, *, ignore: int = -100, chunk: int = 1024
) -> tuple[Tensor, int]:
    """Sum of the negative log-likelihoods (nats, fp32) and the number of targets it is a sum of.

    Differentiable in the hidden states and the head. The logits of only `chunk` rows exist at a time,
    in the weight's dtype, with the softmax in fp32; the gradients are made in the same pass, so
    nothing is computed twice. Positions whose target is `ignore` cost nothing and count nothing.
    """
    targets_N = targets_BS.reshape(-1)
    hidden_ND = hidden_BSD.reshape(-1, hidden_BSD.shape[-1])
    kept = (targets_N != ignore).nonzero()[:, 0]
    if len(kept) < len(targets_N):
        hidden_ND, targets_N = hidden_ND[kept], targets_N[kept]
    total: Tensor = _LinearCrossEntropy.apply(hidden_ND, head_weight_VD, targets_N, chunk)  # type: ignore[no-untyped-call]
    return total, len(kept)


class _LinearCrossEntropy(torch.autograd.Function):
    """Σ −log softmax(hidden · Wᵀ)[target]; gradients in the forward are Liger's idea (Hsu et al. 2024)."""

    @staticmethod
    def forward(ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, chunk: int) -> Tensor:  # noqa: ANN401
        wants_hidden, wants_weight = ctx.needs_input_grad[:2]
        wide = torch.promote_types(weight_VD.dtype, torch.float32)
        total = torch.zeros((), dtype=wide, device=hidden_ND.device)
        d_hidden_ND = torch.empty_like(hidden_ND) if wants_hidden else None
        d_weight_VD = torch.zeros_like(weight_VD, dtype=wide) if wants_weight else None
        for start in range(0, len(targets_N), chunk):
            rows = slice(start, start + chunk)
            hidden_CD, target_C1 = hidden_ND[rows], targets_N[rows, None]
            logp_CV = torch.log_softmax(hidden_CD @ weight_VD.T, dim=-1, dtype=wide)
            total -= logp_CV.gather(1, target_C1).sum()
            if d_hidden_ND is None and d_weight_VD is None:
                continue
            d_logits_CV = logp_CV.exp_()
            d_logits_CV.scatter_add_(1, target_C1, torch.full_like(target_C1, -1, dtype=wide))
            d_logits_CV = d_logits_CV.to(weight_VD.dtype)
            if d_hidden_ND is not None:
                torch.mm(d_logits_CV, weight_VD, out=d_hidden_ND[rows])
            if d_weight_VD is not None:
                d_weight_VD += d_logits_CV.T @ hidden_CD
        ctx.save_for_backward(d_hidden_ND, None if d_weight_VD is None else d_weight_VD.to(weight_VD.dtype))
        return total

    @staticmethod
    def backward(ctx: Any, *d_total: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:  # noqa: ANN401
        d_hidden_ND, d_weight_VD = ctx.saved_tensors
        scale = d_total[0]
        d_hidden = None if d_hidden_ND is None else d_hidden_ND * scale.to(d_hidden_ND.dtype)
        d_weight = None if d_weight_VD is None else d_weight_VD * scale.to(d_weight_VD.dtype)
        return d_hidden, d_weight, None, None
