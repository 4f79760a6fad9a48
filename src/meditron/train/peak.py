"""How fast this machine multiplies matrices, in the shapes and the dtype of one model's training step.

The convention: for every weight matrix W (out, in) of the model and the N tokens of a pass, three products
are timed by themselves, as a backward pass needs twice what a forward pass does: X Wᵀ (forward), dY W
(gradient of the input) and dYᵀ X (gradient of the weight), of 2 · N · out · in operations each. The peak is
all their operations over the sum of their best times. A step's share of it counts operations as
`LlamaConfig.flops_per_token` does, attention's own products among them; what is no product is loss.

The measurement has a fixed memory and at most 1 % of the run's operations: products are cut to `MAX_TOKENS`
tokens and `MAX_SIDE` rows and columns of W, at which their speed no longer grows, and to fewer tokens in a
short run. A cut product's time counts as often as it fits into the whole one.
"""

import time
from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor

from meditron.model.llama import Llama

__all__ = ["best_seconds", "matmul_peak"]

_ROUNDS = 3
MAX_TOKENS = 512
MAX_SIDE = 2048
"""With `MAX_TOKENS`, 48 MiB in float32."""
_MIN_TOKENS = 16
_SHARE = 0.01


def matmul_peak(model: Llama, tokens: int, trained: int | None = None) -> float:
    """Return operations a second over the model's matrix products, each at its best of three.

    Args:
        model: the model that is trained.
        tokens: tokens of a pass.
        trained: tokens of the whole run, whose operations bound those of the measurement.
    """
    weights = [weight for weight in model.parameters() if weight.dim() == 2]
    if model.lm_head is not None:
        weights = [weight for weight in weights if weight is not model.model.embed_tokens.weight]
    shapes = Counter((w.shape[0], w.shape[1]) for w in weights)
    cut = {shape: (min(shape[0], MAX_SIDE), min(shape[1], MAX_SIDE)) for shape in shapes}
    n = min(tokens, MAX_TOKENS)
    if trained is not None:
        run = _SHARE * 6.0 * trained * sum(out * width * count for (out, width), count in shapes.items())
        per_token = 3 * (1 + _ROUNDS) * 2.0 * sum(out * width for out, width in cut.values())
        n = min(n, max(_MIN_TOKENS, int(run / per_token)))
    operations = seconds = 0.0
    for (out, width), count in shapes.items():
        rows, columns = cut[out, width]
        whole = count * (out * width) / (rows * columns)
        for product in _products(n, rows, columns, weights[0].detach()):
            seconds += whole * best_seconds(product, rounds=_ROUNDS)
            operations += whole * 2.0 * n * rows * columns
    return operations / seconds


def best_seconds(work: Callable[[], object], *, rounds: int) -> float:
    """The shortest of `rounds` runs, after one that warms up."""
    work()
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)


def _products(tokens: int, out: int, width: int, like: Tensor) -> list[Callable[[], Tensor]]:
    """The three products of a weight (out, width), each into memory that is there already."""
    x_ND, dx_ND = like.new_ones(tokens, width), like.new_ones(tokens, width)
    y_NF, dy_NF = like.new_ones(tokens, out), like.new_ones(tokens, out)
    weight_FD, d_weight_FD = like.new_ones(out, width), like.new_ones(out, width)
    return [
        lambda: torch.mm(x_ND, weight_FD.T, out=y_NF),
        lambda: torch.mm(dy_NF, weight_FD, out=dx_ND),
        lambda: torch.mm(dy_NF.T, x_ND, out=d_weight_FD),
    ]
