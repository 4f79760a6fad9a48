"""Where the time of a training step goes, from torch's profiler: `python -m benchmarks.train --profile`.

Every operator's own time is given to a part of the step by what it is, else by what called it; what is left
of the step's wall time is Python and memory. Of matrix products the profiler knows the shapes, so their speed
can stand beside the peak.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from meditron.core.machine import describe
from meditron.model.config import LlamaConfig

__all__ = ["table"]

STEPS = 3
PRODUCTS = ("aten::mm", "aten::bmm")
SDPA = "aten::_scaled_dot_product_flash_attention_for_cpu"
# Part of the step that an operator belongs to, by a word in its own name or in that of what called it.
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


def table(course: Iterator[float], shape: LlamaConfig, tokens: int, peak: float) -> Iterable[str]:
    """Lines of a Markdown table for the next steps of `course`, of `tokens` tokens each."""
    with profile(activities=[ProfilerActivity.CPU], record_shapes=True) as recorded:
        seconds = sum(islice(course, STEPS))
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
    """The part an operator's own time belongs to; empty for what only encloses others."""
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
    """Floating-point operations of a product; of causal attention half those of the full square."""
    if event.name in PRODUCTS:
        (*batch, rows, inner), (*_, columns) = event.input_shapes[:2]
        return float(2 * rows * inner * columns * (batch[0] if batch else 1))
    if event.name.startswith(SDPA):
        rows, heads, length, width = event.input_shapes[0]
        return float(rows * heads * length**2 * width * (4 if "backward" in event.name else 2))
    return 0.0
