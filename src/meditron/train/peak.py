"""Peak speed of matrix products on this machine, in the shapes and the dtype of one model's training step.

For every weight matrix W (out, in) of the model and N tokens, three products are timed in isolation: X Wᵀ
(forward), dY W (gradient of the input) and dYᵀ X (gradient of the weight), of 2 · N · out · in operations
each. The peak is the sum of their operations over the sum of their best times. The utilization of a training
step counts operations as `LlamaConfig.flops_per_token` does, including attention's products; time spent in
anything but products lowers it.

The measurement takes a fixed amount of memory and at most 1 % of the run's operations: products are cut to
`MAX_TOKENS` tokens and `MAX_SIDE` rows and columns of W, beyond which their speed no longer grows, and to
fewer tokens in a short run. The time of a cut product is scaled up to the whole product.
"""

import time
from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor

from meditron.model.llama import Llama

__all__ = ["best_seconds", "matmul_peak"]

_ROUNDS = 3  # the best of them counts: interference by other programs only slows a product down
MAX_TOKENS = 512
MAX_SIDE = 2048
"""With `MAX_TOKENS`, 48 MiB in float32."""
_MIN_TOKENS = 16
_MAX_COST = 0.01  # fraction of the run's operations


def matmul_peak(model: Llama, tokens: int, trained: int | None = None) -> float:
    """Measure the peak in operations per second, each product at its best of three runs.

    Args:
        model: The model that is trained.
        tokens: Tokens of a forward pass.
        trained: Tokens of the whole run, to bound the cost of the measurement.
    """
    weights = [weight for weight in model.parameters() if weight.dim() == 2]
    # An untied embedding is a lookup, not a product; a tied one is the output projection.
    if model.lm_head is not None:
        weights = [weight for weight in weights if weight is not model.model.embed_tokens.weight]
    shapes = Counter((w.shape[0], w.shape[1]) for w in weights)
    cut = {shape: (min(shape[0], MAX_SIDE), min(shape[1], MAX_SIDE)) for shape in shapes}
    # More tokens than this make no product faster and the measurement longer.
    n = min(tokens, MAX_TOKENS)
    if trained is not None:
        run = _MAX_COST * 6.0 * trained * sum(out * width * count for (out, width), count in shapes.items())
        # Each of the three products runs once to warm up and then `_ROUNDS` times.
        per_token = 3 * (1 + _ROUNDS) * 2.0 * sum(out * width for out, width in cut.values())
        n = min(n, max(_MIN_TOKENS, int(run / per_token)))
    operations = seconds = 0.0
    for (out, width), count in shapes.items():
        rows, columns = cut[out, width]
        whole = count * (out * width) / (rows * columns)
        for product in _weight_products(n, rows, columns, weights[0].detach()):
            seconds += whole * best_seconds(product, rounds=_ROUNDS)
            operations += whole * 2.0 * n * rows * columns
    return operations / seconds


def best_seconds(work: Callable[[], object], *, rounds: int) -> float:
    """Return the shortest time of `rounds` runs, after one run to warm up."""
    work()
    times = []
    for _ in range(rounds):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


def _weight_products(tokens: int, out: int, width: int, like: Tensor) -> list[Callable[[], Tensor]]:
    """Return the three products of a weight (out, width), each into preallocated memory."""
    x_ND, dx_ND = like.new_ones(tokens, width), like.new_ones(tokens, width)
    y_NF, dy_NF = like.new_ones(tokens, out), like.new_ones(tokens, out)
    weight_FD, d_weight_FD = like.new_ones(out, width), like.new_ones(out, width)
    return [
        lambda: torch.mm(x_ND, weight_FD.T, out=y_NF),
        lambda: torch.mm(dy_NF, weight_FD, out=dx_ND),
        lambda: torch.mm(dy_NF.T, x_ND, out=d_weight_FD),
    ]
