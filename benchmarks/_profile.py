"""The time of a training step by operation, from torch's profiler: `python -m benchmarks.train --profile`.

Every operator's self time is assigned to a part of the step by its own name, else by its caller's; the rest
of the step's wall time is Python and memory. The profiler records the shapes of matrix products, so their
speed can be compared with the peak.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from meditron.core.machine import describe
from meditron.model.config import LlamaConfig

__all__ = ["table"]

STEPS = 3
PRODUCTS = ("aten::mm", "aten::bmm")
SDPA = "aten::_scaled_dot_product_flash_attention_for_cpu"
# Part of the step that an operator belongs to, by a word in its own name or in its caller's.
PARTS = (
    ("_LinearCrossEntropy", "head and loss: softmax and its gradient"),
    ("cpp_fused", "norms, rotation, SwiGLU, residuals, attention's softmax backward (fused)"),
    ("AccumulateGrad", "gradients to float32"),
    ("Optimizer.step", "AdamW"),
    ("aten::linalg_vector_norm", "gradient norm"),
    ("aten::_foreach_norm", "gradient norm"),
    ("aten::_foreach_copy_", "masters to bfloat16"),
    ("EmbeddingBackward", "embedding"),
    ("aten::embedding", "embedding"),
)


class _Profiled(Exception):
    """The end of the profiled steps."""


def table(
    train: Callable[[Callable[[float], None]], None],
    warm_up: int,
    shape: LlamaConfig,
    tokens: int,
    peak: float,
) -> Iterable[str]:
    """Return the lines of a Markdown table for the steps of `train` after `warm_up` of them.

    Args:
        train: Calls its argument with the seconds of each step.
        warm_up: Steps before the profiled ones.
        shape: The model's config.
        tokens: Tokens of a step.
        peak: Operations per second that the speed is compared with.
    """
    recorded: Any = profile(activities=[ProfilerActivity.CPU], record_shapes=True)
    times: list[float] = []

    def after_step(step_seconds: float) -> None:
        times.append(step_seconds)
        if len(times) == warm_up:
            recorded.start()
        elif len(times) == warm_up + STEPS:
            recorded.stop()
            raise _Profiled

    with suppress(_Profiled):
        train(after_step)
    seconds = sum(times[warm_up:])
    spent: dict[str, float] = defaultdict(float)
    operations: dict[str, float] = defaultdict(float)
    for event in recorded.events():
        part = _part(event, shape)
        spent[part] += event.self_cpu_time_total / 1e6
        operations[part] += _operations(event)
    spent["the rest: Python, memory"] = seconds - sum(time for part, time in spent.items() if part)
    machine = describe()
    yield f"{machine['cpu']} ({machine['cpu_class']}), {torch.get_num_threads()} thread(s)"
    yield f"{tokens} tokens in {seconds / STEPS:.2f} s; peak {peak / 1e9:,.0f} GFLOP/s"
    yield ""
    yield "| part | share of the step | GFLOP/s | share of the peak |"
    yield "|---|---|---|---|"
    for part, time in sorted(spent.items(), key=lambda item: -item[1]):
        if part:
            speed = operations[part] / time
            figures = f"{speed / 1e9:,.0f} | {100 * speed / peak:.0f} %" if operations[part] else "– | –"
            yield f"| {part} | {100 * time / seconds:.1f} % | {figures} |"


def _part(event: Any, shape: LlamaConfig) -> str:
    """Return the part of an operator's self time; empty for one that only encloses others."""
    if event.name == "aten::mm":
        return _product(event, shape)
    if event.name == "aten::bmm":
        return "products: attention, backward"
    if event.name.startswith(SDPA):
        return f"attention (SDPA) {'backward' if 'backward' in event.name else 'forward'}"
    caller = event
    while caller is not None:
        for word, part in PARTS:
            if word in caller.name:
                return part
        caller = caller.cpu_parent
    return ""


def _product(event: Any, shape: LlamaConfig) -> str:
    sides = {side for operand in event.input_shapes for side in operand}
    if shape.vocab_size in sides:
        return "products: head"
    return "products: MLP" if shape.intermediate_size in sides else "products: attention's projections"


def _operations(event: Any) -> float:
    """Return the operations of a product; causal attention has half those of the full square."""
    if event.name in PRODUCTS:
        (*batch, rows, inner), (*_, columns) = event.input_shapes[:2]
        return float(2 * rows * inner * columns * (batch[0] if batch else 1))
    if event.name.startswith(SDPA):
        rows, heads, length, width = event.input_shapes[0]
        return float(rows * heads * length**2 * width * (4 if "backward" in event.name else 2))
    return 0.0
