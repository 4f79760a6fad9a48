"""Peak speed of matrix products on this machine, in the shapes and the dtype of one model's training step.

For every weight matrix W (out, in) of the model and N tokens, three products are timed in isolation: X Wᵀ
(forward), dY W (gradient of the input) and dYᵀ X (gradient of the weight), of 2 · N · out · in operations
each. The peak is the sum of their operations over the sum of their best times. The utilization of a training
step counts operations as `LlamaConfig.flops_per_token` does, including attention's products; time spent in
anything but products lowers it.

The measurement takes a fixed amount of memory and at most 1 % of the run's operations: products are cut to
the device's `Limits`, beyond which their speed no longer grows, and to fewer tokens in a short run. The time
of a cut product is scaled up to the whole product.
"""

import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from meditron.model.config import LlamaConfig
from meditron.model.shapes import parameter_shapes
from meditron.train.runtime import synchronize

__all__ = ["CPU_LIMITS", "GPU_LIMITS", "Limits", "best_seconds", "matmul_peak"]

_ROUNDS = 3  # the best of them counts: interference by other programs only slows a product down
_MIN_TOKENS = 16
_MAX_COST = 0.01  # fraction of the run's operations


@dataclass(frozen=True)
class Limits:
    """Largest product that is timed on a kind of device."""

    tokens: int
    side: int
    """Rows and columns of a weight."""
    repeats: int
    """Products that are timed together: a single one would be shorter than its launch on a GPU."""


CPU_LIMITS = Limits(tokens=512, side=2048, repeats=1)
"""48 MiB in float32."""
GPU_LIMITS = Limits(tokens=4096, side=8192, repeats=10)
"""Half a GiB in bfloat16."""


def matmul_peak(
    config: LlamaConfig, tokens: int, trained: int | None = None, *, dtype: torch.dtype, device: torch.device
) -> float:
    """Measure the peak in operations per second, each product at its best of three runs.

    Args:
        config: The config of the model that is trained.
        tokens: Tokens of a forward pass.
        trained: Tokens of the whole run, to bound the cost of the measurement.
        dtype: The dtype of the products.
        device: The device of the products.
    """
    limits = GPU_LIMITS if device.type == "cuda" else CPU_LIMITS
    matrices = {name: shape for name, shape in parameter_shapes(config).items() if len(shape) == 2}
    # An untied embedding is a lookup, not a product; a tied one is the output projection.
    if not config.tie_word_embeddings:
        del matrices["model.embed_tokens.weight"]
    shapes = Counter((shape[0], shape[1]) for shape in matrices.values())
    cut = {shape: (min(shape[0], limits.side), min(shape[1], limits.side)) for shape in shapes}
    # More tokens than this make no product faster and the measurement longer.
    n = min(tokens, limits.tokens)
    if trained is not None:
        run = _MAX_COST * 6.0 * trained * sum(out * width * count for (out, width), count in shapes.items())
        # Each of the three products runs once to warm up and then `_ROUNDS` times.
        runs = 1 + _ROUNDS * limits.repeats
        per_token = 3 * runs * 2.0 * sum(out * width for out, width in cut.values())
        n = min(n, max(_MIN_TOKENS, int(run / per_token)))
    like = torch.empty(0, dtype=dtype, device=device)
    operations = seconds = 0.0
    for (out, width), count in shapes.items():
        rows, columns = cut[out, width]
        whole = count * (out * width) / (rows * columns)
        for product in _weight_products(n, rows, columns, like):
            seconds += whole * best_seconds(product, rounds=_ROUNDS, repeats=limits.repeats, device=device)
            operations += whole * 2.0 * n * rows * columns
    return operations / seconds


def best_seconds(
    work: Callable[[], object],
    *,
    rounds: int,
    repeats: int = 1,
    device: torch.device = torch.device("cpu"),  # noqa: B008 (immutable)
) -> float:
    """Return the shortest time of `work` in `rounds` rounds of `repeats` runs, after one run to warm up."""
    work()
    times = []
    for _ in range(rounds):
        synchronize(device)
        started = time.perf_counter()
        for _ in range(repeats):
            work()
        synchronize(device)
        times.append((time.perf_counter() - started) / repeats)
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
