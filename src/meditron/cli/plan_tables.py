"""Tables of `meditron plan` in the terminal."""

from collections.abc import Iterator

from meditron.core.console import error, info, warn
from meditron.core.units import format_bytes, format_count, format_duration
from meditron.plan.layouts import nodes_that_fit
from meditron.plan.prediction import MEMORY_SHARE, Prediction
from meditron.plan.training_plan import TrainingPlan, parameters_per_rank
from meditron.report.terminal import print_table

__all__ = ["print_plan"]

_STEP_PARTS = {
    "matrices": "matrix products of the blocks",
    "attention": "attention",
    "elementwise": "norms, activations, residuals",
    "head": "logits and loss",
    "recomputation": "recomputation",
    "tensor_parallel": "communication: tensor parallel",
    "pipeline_transfer": "communication: pipeline",
    "data_parallel": "communication: data parallel, not overlapped",
    "bubble": "pipeline bubble",
    "optimizer": "optimizer",
    "overhead": "kernel launches, data, logging",
}
_MEMORY_PARTS = {
    "weights": "weights",
    "gradients": "gradients",
    "optimizer": "optimizer state",
    "activations": "activations",
    "logits": "logits and loss",
    "communication": "gathered weights, unreduced gradients",
}


def print_plan(plan: TrainingPlan, *, title: str) -> None:
    """Print a plan: totals, memory, step time, methods, then problems and layouts that fit."""
    print_table(("", title), list(_totals(plan)), answer=True)
    if plan.prediction is not None:
        _print_memory(plan, plan.prediction)
        _print_step(plan.prediction)
        _print_methods(plan)
    _print_suggestions(plan)
    for note in plan.notes:
        warn(note)
    for problem in plan.problems:
        error(problem.message, problem.hint)


def _totals(plan: TrainingPlan) -> Iterator[tuple[str, str]]:
    config = plan.job.config
    yield "parameters", f"{config.parameter_count:,}"
    if plan.prediction is not None:
        counts = parameters_per_rank(config, plan.prediction.layout)
        yield "parameters per rank", _range(min(counts), max(counts))
        yield "layout", _layout_text(plan.prediction)
    if (rate := plan.tokens_per_second) is not None:
        source = "measured" if plan.measured_rate is not None else "predicted"
        yield f"tokens per second ({source})", f"{rate:,.0f} ({rate / plan.gpus:,.0f} per GPU)"
        yield (
            "MFU",
            f"{plan.mfu():.1%} with attention (PaLM, appendix B), "
            f"{plan.mfu('parameters'):.1%} by 6 · parameters, of {plan.cluster.peak_flops / 1e12:g} TFLOP/s",
        )
    if plan.job.tokens is None:
        yield "tokens", "set by the data; --tokens gives their number"
    if plan.hours is not None and plan.gpu_hours is not None and plan.job.tokens is not None:
        cluster = plan.cluster
        yield "tokens", format_count(plan.job.tokens)
        yield "time", f"{format_duration(plan.hours * 3600)} ({plan.hours:,.1f} hours)"
        yield "GPU-hours", _amount(plan.gpu_hours)
        yield (
            "cost",
            f"{_amount(plan.gpu_hours * cluster.price_per_gpu_hour)} {cluster.currency} "
            f"at {cluster.price_per_gpu_hour:g} per GPU-hour",
        )
        yield (
            "emissions",
            f"{_amount(cluster.kgco2e(plan.gpu_hours))} kg CO2e at {cluster.watts_per_gpu:g} W per GPU, "
            f"node overhead {cluster.node_overhead:g}, PUE {cluster.pue:g}, "
            f"{cluster.kgco2e_per_kwh:g} kg/kWh",
        )


def _amount(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _range(low: int, high: int) -> str:
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _layout_text(prediction: Prediction) -> str:
    layout = prediction.layout
    sizes = {
        "dp_replicate": layout.dp_replicate,
        "dp_shard": layout.dp_shard,
        "tp": layout.tp,
        "pp": layout.pp,
    }
    text = " · ".join(f"{name} {size}" for name, size in sizes.items() if size > 1) or "1 GPU"
    schedule = f", {layout.schedule}" if layout.pp > 1 else ""
    return (
        f"{text}{schedule}, micro-batch {prediction.micro_batch_size}, "
        f"recomputation {prediction.activation_checkpointing}"
    )


def _print_memory(plan: TrainingPlan, prediction: Prediction) -> None:
    memory = prediction.memory
    rows = [(_MEMORY_PARTS[part], format_bytes(size)) for part, size in memory._asdict().items()]
    rows.append(("all", format_bytes(memory.total)))
    usable = plan.cluster.memory_bytes * MEMORY_SHARE
    rows.append((f"usable ({MEMORY_SHARE:.0%} of the GPU's)", format_bytes(usable)))
    print_table(("memory per GPU", "bytes"), rows, title="The GPU that needs most", answer=True)


def _print_step(prediction: Prediction) -> None:
    step = prediction.step
    rows = [
        (_STEP_PARTS[part], f"{seconds:.3f}", f"{seconds / step.total:.1%}")
        for part, seconds in step._asdict().items()
        if seconds > 0
    ]
    rows.append(("all", f"{step.total:.3f}", "100 %"))
    print_table(("step time", "seconds", "share"), rows, title="One optimizer step", answer=True)


def _print_methods(plan: TrainingPlan) -> None:
    rows = [
        (name, *(format_bytes(memory.total) for memory in memories))
        for name, memories in plan.method_memory().items()
    ]
    title = "Memory per GPU by finetuning method (adapters of rank 16 on all matrices of the blocks)"
    print_table(("method", "this layout", "one GPU, micro-batch 1"), rows, title=title, answer=True)


def _print_suggestions(plan: TrainingPlan) -> None:
    rows = [
        (
            _layout_text(suggestion),
            f"{suggestion.tokens_per_second:,.0f}",
            format_bytes(suggestion.memory.total),
        )
        for suggestion in plan.suggestions
    ]
    if rows:
        headers = ("layout", "tokens per second", "memory per GPU")
        title = f"Fastest layouts that fit on {plan.cluster.gpus} GPUs"
        print_table(headers, rows, title=title, answer=True)
        return
    nodes = nodes_that_fit(plan.job, plan.cluster)
    more = f"{nodes} nodes would be enough" if nodes else "more nodes of these GPUs do not help"
    gpus = "1 GPU" if plan.cluster.gpus == 1 else f"{plan.cluster.gpus} GPUs"
    info(f"No layout fits on {gpus} with this batch_size; {more}.")
    usable = plan.cluster.memory_bytes * MEMORY_SHARE
    for name, (_, alone) in plan.method_memory().items():
        if alone.total <= usable:
            info(f"{name} fits on one GPU, with micro-batch 1: {format_bytes(alone.total)}.")
