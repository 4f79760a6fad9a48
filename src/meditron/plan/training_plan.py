"""The plan of a training on a cluster: parameters, memory, speed, time, cost and carbon."""

from dataclasses import dataclass, replace
from typing import Any, Literal

from meditron.model.config import LlamaConfig
from meditron.parallel.config import ParallelConfig
from meditron.parallel.constraints import LayoutProblem
from meditron.parallel.shapes import LayoutShape, rank_parameters
from meditron.plan.cluster import Cluster
from meditron.plan.layouts import (
    layout_notes,
    layout_problems,
    memory_problem,
    suggest_layouts,
)
from meditron.plan.memory import FINETUNE_METHODS, Memory
from meditron.plan.prediction import MEMORY_SHARE, Job, Prediction, predict
from meditron.plan.speed import StepTime

__all__ = ["FLOP_CONVENTION", "TrainingPlan", "make_plan", "parameters_per_rank"]

FLOP_CONVENTION = (
    "6 operations per parameter and token plus 12 · layers · heads · head_dim · sequence_length "
    "(PaLM, appendix B), without recomputation, of the dense bfloat16 peak"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPlan:
    """A job on a cluster: its layout's prediction, or the reasons why the layout is impossible."""

    job: Job
    cluster: Cluster
    prediction: Prediction | None
    """None if the layout is impossible."""
    problems: tuple[LayoutProblem, ...]
    notes: tuple[str, ...]
    """Remarks about a layout that is possible but not best."""
    suggestions: tuple[Prediction, ...]
    measured_rate: float | None = None
    """Tokens per second that replace the predicted ones."""

    @property
    def tokens_per_second(self) -> float | None:
        """The measured rate, or else the predicted one."""
        if self.measured_rate is not None:
            return self.measured_rate
        return self.prediction.tokens_per_second if self.prediction else None

    @property
    def gpus(self) -> int:
        """GPUs that the training occupies."""
        return self.prediction.layout.ranks if self.prediction else self.cluster.gpus

    def mfu(self, convention: Literal["palm", "parameters"] = "palm") -> float | None:
        """Return the model FLOPs utilization; `parameters` counts 6 operations per parameter and no more."""
        rate = self.tokens_per_second
        if rate is None:
            return None
        config = self.job.config
        operations = (
            config.flops_per_token(self.job.sequence_length)
            if convention == "palm"
            else 6 * config.parameter_count
        )
        return operations * rate / (self.gpus * self.cluster.peak_flops)

    @property
    def hours(self) -> float | None:
        """Hours of the training."""
        if self.tokens_per_second is None or self.job.tokens is None:
            return None
        return self.job.tokens / self.tokens_per_second / 3600

    @property
    def gpu_hours(self) -> float | None:
        """Hours · GPUs."""
        return None if self.hours is None else self.hours * self.gpus

    def method_memory(self) -> dict[str, tuple[Memory, Memory]]:
        """Return finetuning method → memory per GPU on the plan's layout, and on a single GPU.

        On a single GPU the micro-batch is one sample, with full recomputation.
        """
        memory: dict[str, tuple[Memory, Memory]] = {}
        for name in FINETUNE_METHODS:
            method = replace(self.job.method, name=name)
            job = replace(self.job, method=method)
            alone = predict(job, self.cluster, LayoutShape(), 1, "full").memory
            own = self.prediction
            here = (
                predict(
                    job, self.cluster, own.layout, own.micro_batch_size, own.activation_checkpointing
                ).memory
                if own
                else alone
            )
            memory[name] = (here, alone)
        return memory

    def to_json(self) -> dict[str, Any]:
        """Return the plan as plain JSON values; `memory` has bytes per GPU by part, without a total."""
        prediction, gpu_hours = self.prediction, self.gpu_hours
        layout = prediction.layout if prediction else None
        return {
            "parameters": self.job.config.parameter_count,
            "parameters_per_rank": parameters_per_rank(self.job.config, layout) if layout else [],
            "memory": prediction.memory._asdict() if prediction else {},
            "memory_by_method": {
                name: {"layout": here._asdict(), "one_gpu": alone._asdict()}
                for name, (here, alone) in self.method_memory().items()
            },
            "memory_limit": round(self.cluster.memory_bytes * MEMORY_SHARE),
            "layout": prediction.describe() if prediction else None,
            "gpus": self.gpus,
            "step_seconds": _step_json(prediction.step) if prediction else {},
            "tokens_per_second": self.tokens_per_second,
            "predicted_tokens_per_second": prediction.tokens_per_second if prediction else None,
            "mfu": self.mfu(),
            "mfu_parameters": self.mfu("parameters"),
            "mfu_convention": FLOP_CONVENTION,
            "tokens": self.job.tokens,
            "hours": self.hours,
            "gpu_hours": gpu_hours,
            "kgco2e": None if gpu_hours is None else self.cluster.kgco2e(gpu_hours),
            "cost": None if gpu_hours is None else gpu_hours * self.cluster.price_per_gpu_hour,
            "currency": self.cluster.currency,
            "problems": [problem._asdict() for problem in self.problems],
            "notes": list(self.notes),
            "suggestions": [
                suggestion.describe()
                | {
                    "tokens_per_second": suggestion.tokens_per_second,
                    "memory_bytes": suggestion.memory.total,
                }
                for suggestion in self.suggestions
            ],
        }


def parameters_per_rank(config: LlamaConfig, layout: LayoutShape) -> list[int]:
    """Return the parameters that each rank stores; in float32, four bytes each."""
    # Ranks that differ in dp_replicate only have equal shards.
    known: dict[tuple[int, int, int], int] = {}
    counts = []
    for rank in range(layout.ranks):
        place = layout.coordinates(rank)
        key = (place.pp, place.dp_shard, place.tp)
        if key not in known:
            known[key] = rank_parameters(config, layout, rank)
        counts.append(known[key])
    return counts


def _step_json(step: StepTime) -> dict[str, float]:
    return {**step._asdict(), "total": step.total}


def make_plan(
    job: Job,
    cluster: Cluster,
    parallel: ParallelConfig,
    micro_batch_size: int | None,
    *,
    measured_rate: float | None = None,
) -> TrainingPlan:
    """Plan a job under the layout of its recipe, and suggest layouts that fit.

    Args:
        job: The training.
        cluster: The GPUs.
        parallel: The recipe's layout; without `dp_shard` the ranks that the other sizes leave are shards.
        micro_batch_size: Samples of a forward and backward pass; by default the training's own default.
        measured_rate: Tokens per second that replace the predicted ones.
    """
    layout = parallel.shape_on(cluster.gpus)
    problems = layout_problems(job, cluster, layout, micro_batch_size)
    prediction = None
    if not problems:
        micro = layout.divide_batch(job.batch_size, micro_batch_size).micro_batch_size
        prediction = predict(job, cluster, layout, micro, parallel.activation_checkpointing)
        if not prediction.fits(cluster):
            problems.append(memory_problem(prediction, cluster))
    return TrainingPlan(
        job=job,
        cluster=cluster,
        prediction=prediction,
        problems=tuple(problems),
        notes=tuple(layout_notes(job, cluster, layout)),
        suggestions=tuple(suggest_layouts(job, cluster)),
        measured_rate=measured_rate,
    )
