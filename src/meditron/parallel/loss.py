"""Cross-entropy over a vocabulary that is divided over tensor-parallel ranks.

Shapes: N rows with a target, C rows of a chunk, D width, V rows of the vocabulary on this rank.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

__all__ = ["vocabulary_parallel_nll_sum"]


def vocabulary_parallel_nll_sum(
    hidden_BSD: Tensor,
    head_weight_VD: Tensor,
    targets_BS: Tensor,
    *,
    group: ProcessGroup,
    first_row: int,
    ignore: int = -100,
    chunk: int = 1024,
) -> Tensor:
    """Return the summed negative log-likelihood of the targets (nats), equal on every rank of the group.

    The softmax is that of the whole vocabulary: its maximum, its sum and the target's logit are reduced over
    the ranks (Shoeybi et al. 2019, section 3), and the logits of only `chunk` rows exist at a time. The
    gradient of the hidden states is this rank's part: the parts of all ranks must be summed.

    Args:
        hidden_BSD: Hidden states of all positions, equal on every rank of the group.
        head_weight_VD: This rank's rows of the head.
        targets_BS: Token ids, equal on every rank of the group; `ignore` for positions without a target.
        group: The tensor-parallel ranks.
        first_row: Token id of this rank's first row.
        ignore: Target of positions that are neither computed nor counted.
        chunk: Rows whose logits exist at a time.
    """
    targets_N = targets_BS.reshape(-1)
    hidden_ND = hidden_BSD.reshape(-1, hidden_BSD.shape[-1])
    kept = (targets_N != ignore).nonzero()[:, 0]
    if len(kept) < len(targets_N):
        hidden_ND, targets_N = hidden_ND[kept], targets_N[kept]
    total: Tensor = _VocabularyParallelCrossEntropy.apply(  # type: ignore[no-untyped-call]
        hidden_ND, head_weight_VD, targets_N, group, first_row, chunk
    )
    return total


class _VocabularyParallelCrossEntropy(torch.autograd.Function):
    """As `model.nll`'s linear cross-entropy: gradients are computed in the forward pass, chunk by chunk."""

    @staticmethod
    def forward(
        ctx: Any,  # noqa: ANN401
        hidden_ND: Tensor,
        weight_VD: Tensor,
        targets_N: Tensor,
        group: ProcessGroup,
        first_row: int,
        chunk: int,
    ) -> Tensor:
        wide = torch.promote_types(weight_VD.dtype, torch.float32)
        total = torch.zeros((), dtype=wide, device=hidden_ND.device)
        needs_gradient = any(ctx.needs_input_grad[:2])
        d_hidden_ND, d_weight_VD = torch.empty_like(hidden_ND), torch.zeros_like(weight_VD, dtype=wide)
        for start in range(0, len(targets_N), chunk):
            hidden_CD = hidden_ND[start : start + chunk]
            logits_CV = (hidden_CD @ weight_VD.T).to(wide)
            local_C = targets_N[start : start + chunk] - first_row
            total += _logits_to_gradient(logits_CV, local_C, group)
            if needs_gradient:
                d_logits_CV = logits_CV.to(weight_VD.dtype)
                torch.mm(d_logits_CV, weight_VD, out=d_hidden_ND[start : start + chunk])
                d_weight_VD += d_logits_CV.T @ hidden_CD
        ctx.save_for_backward(d_hidden_ND, d_weight_VD.to(weight_VD.dtype))
        return total

    @staticmethod
    def backward(ctx: Any, *d_total: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        d_hidden_ND, d_weight_VD = ctx.saved_tensors
        scale = d_total[0]
        return (
            d_hidden_ND * scale.to(d_hidden_ND.dtype),
            d_weight_VD * scale.to(d_weight_VD.dtype),
            *[None] * 4,
        )


def _logits_to_gradient(logits_CV: Tensor, local_targets_C: Tensor, group: ProcessGroup) -> Tensor:
    """Turn this rank's logits, in place, into the loss's gradient; return the loss of the whole vocabulary.

    `local_targets_C` are the targets minus this rank's first row: those outside its rows are on other ranks.
    """
    rows = torch.arange(len(logits_CV), device=logits_CV.device)
    here_C = (local_targets_C >= 0) & (local_targets_C < logits_CV.shape[1])
    safe_C = torch.where(here_C, local_targets_C, 0)
    # Subtracting the maximum keeps exp from overflowing; it has to be the same on every rank.
    maximum_C = logits_CV.max(dim=1).values
    dist.all_reduce(maximum_C, dist.ReduceOp.MAX, group)
    logits_CV -= maximum_C[:, None]
    target_logit_C = torch.where(here_C, logits_CV[rows, safe_C], 0.0)
    softmax_CV = logits_CV.exp_()
    # One reduction for both sums: the collective's latency counts more than its size.
    sums_2C = torch.stack((softmax_CV.sum(dim=1), target_logit_C))
    dist.all_reduce(sums_2C, dist.ReduceOp.SUM, group)
    softmax_CV /= sums_2C[0, :, None]
    softmax_CV[rows, safe_C] -= here_C.to(softmax_CV.dtype)
    return (sums_2C[0].log() - sums_2C[1]).sum()
