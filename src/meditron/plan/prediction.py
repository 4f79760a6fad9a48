"""The prediction of one layout of a training on a cluster: its memory and its speed."""

from dataclasses import asdict, dataclass, field
from typing import Any

from meditron.model.config import LlamaConfig
from meditron.parallel.config import ActivationCheckpointing
from meditron.parallel.shapes import LayoutShape
from meditron.plan.cluster import Cluster, load_constants
from meditron.plan.memory import FinetuneMethod, Memory, MemorySettings, memory_per_gpu
from meditron.plan.speed import StepTime, step_time
from meditron.plan.workload import FULL, NONE, SELECTIVE, ModelShape, Workload

__all__ = ["MEMORY_SHARE", "Job", "Prediction", "predict"]

MEMORY_SHARE = 0.92
"""Part of a GPU's memory that a training can use: the rest is CUDA's context, NCCL's buffers and gaps."""

_RECOMPUTATION = {"none": NONE, "selective": SELECTIVE, "full": FULL}
# A zero-bubble schedule leaves F + B - W of the bubble F + B + W of a forward pass, an input gradient and a
# weight gradient, which take about equally long (Qi et al. 2024, section 2.3).
_BUBBLE_SHARE = {"1f1b": 1.0, "interleaved": 1.0, "zero-bubble": 1 / 3}


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A training without its layout."""

    config: LlamaConfig
    sequence_length: int
    batch_size: int
    tokens: int | None
    """Tokens of the training; None if its data set their number."""
    narrow: bool = True
    """Computation in bfloat16, not float32."""
    compiled: bool = False
    method: FinetuneMethod = field(default_factory=FinetuneMethod)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """One layout of a job on a cluster."""

    layout: LayoutShape
    micro_batch_size: int
    activation_checkpointing: ActivationCheckpointing
    memory: Memory
    step: StepTime
    tokens_per_second: float

    def fits(self, cluster: Cluster) -> bool:
        """Return whether the memory is within the usable part of a GPU's."""
        return self.memory.total <= cluster.memory_bytes * MEMORY_SHARE

    def describe(self) -> dict[str, Any]:
        """Return the layout with its micro-batch and recomputation as plain JSON values."""
        return asdict(self.layout) | {
            "micro_batch_size": self.micro_batch_size,
            "activation_checkpointing": self.activation_checkpointing,
        }


def predict(
    job: Job,
    cluster: Cluster,
    layout: LayoutShape,
    micro_batch_size: int,
    activation_checkpointing: ActivationCheckpointing,
) -> Prediction:
    """Predict memory and speed of a possible layout."""
    micro_batches = layout.divide_batch(job.batch_size, micro_batch_size).micro_batches
    settings = MemorySettings(
        sequence_length=job.sequence_length,
        micro_batch_size=micro_batch_size,
        micro_batches=micro_batches,
        activation_checkpointing=activation_checkpointing,
        narrow=job.narrow,
        compiled=job.compiled and layout.tp == 1,  # with tp above 1 the training does not compile
        method=job.method,
    )
    work = Workload(
        model=ModelShape.from_config(job.config),
        sequence_length=job.sequence_length,
        batch_size=job.batch_size,
        micro_batch_size=micro_batch_size,
        dp_replicate=layout.dp_replicate,
        dp_shard=layout.dp_shard,
        tp=layout.tp,
        pp=layout.pp,
        chunks=layout.stages_per_rank,
        bubble_share=_BUBBLE_SHARE[layout.schedule],
        recomputation=_RECOMPUTATION[activation_checkpointing],
        frozen=job.method.name != "full",
        quantized=job.method.name == "qlora",
    )
    step = step_time(work, cluster.hardware, load_constants(cluster.gpu))
    return Prediction(
        layout=layout,
        micro_batch_size=micro_batch_size,
        activation_checkpointing=activation_checkpointing,
        memory=memory_per_gpu(job.config, layout, settings),
        step=step,
        tokens_per_second=work.tokens / step.total,
    )
