"""The language-model head in fp32 for inference, in chunks that reuse one buffer."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

__all__ = ["Head"]

# Shapes: N positions, C positions of a chunk, D width, V vocabulary.


class Head:
    """Logits and losses of hidden states, without gradients.

    Logits are fp32 for a model of any dtype: rounded to bfloat16, two options' log-probabilities would often
    be equal. The product of two bfloat16 numbers is exact in fp32, so a bfloat16 model can use a CPU's
    bfloat16 matrix units with fp32 sums, without a loss of precision.
    """

    def __init__(self, weight_VD: Tensor, *, chunk: int = 256) -> None:
        """Convert the weight to fp32 once; `chunk` is the number of positions computed at a time."""
        self._chunk = chunk
        self._narrow = weight_VD.dtype == torch.bfloat16
        self._weight_VD = weight_VD.float()
        # One buffer is reused: the page faults of a new buffer for every chunk would cost more than the
        # product itself.
        self._buffer_CV = torch.empty(0, len(weight_VD), device=weight_VD.device)

    def logit_chunks(self, hidden_ND: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Yield slices of the positions with their logits, (C, V) in fp32.

        All chunks share one buffer: the next chunk overwrites the logits.
        """
        if len(self._buffer_CV) < min(len(hidden_ND), self._chunk):
            self._buffer_CV = self._buffer_CV.new_empty(
                min(len(hidden_ND), self._chunk), len(self._weight_VD)
            )
        for start in range(0, len(hidden_ND), self._chunk):
            hidden_CD = hidden_ND[start : start + self._chunk]
            yield slice(start, start + len(hidden_CD)), self._logits(hidden_CD)

    def nll(self, hidden_ND: Tensor, targets_N: Tensor) -> Tensor:
        """Return −log softmax(hidden · Wᵀ)[target] of each position, in nats: (N,), fp32."""
        nll_N = torch.empty(len(targets_N), device=targets_N.device)
        for places, logits_CV in self.logit_chunks(hidden_ND):
            logp_CV = torch.log_softmax(logits_CV, dim=-1, out=logits_CV)
            nll_N[places] = -logp_CV.gather(1, targets_N[places, None])[:, 0]
        return nll_N

    def _logits(self, hidden_CD: Tensor) -> Tensor:
        out_CV = self._buffer_CV[: len(hidden_CD)]
        with _allow_bfloat16_products(allowed=self._narrow and hidden_CD.dtype == torch.bfloat16):
            return torch.mm(hidden_CD.float(), self._weight_VD.T, out=out_CV)


@contextmanager
def _allow_bfloat16_products(*, allowed: bool) -> Iterator[None]:
    """Allow oneDNN to round fp32 inputs to bfloat16; this is lossless for values from a bfloat16 tensor."""
    matmul = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]  # made when torch is imported
    before = matmul.fp32_precision
    if allowed:
        matmul.fp32_precision = "bf16"
    try:
        yield
    finally:
        matmul.fp32_precision = before
