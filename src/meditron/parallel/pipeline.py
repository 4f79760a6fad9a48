"""Pipeline parallelism: one training step over all micro-batches, by a schedule of torch's."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.distributed.pipelining import PipelineStage
from torch.distributed.pipelining.schedules import (
    PipelineScheduleMulti,
    PipelineScheduleSingle,
    Schedule1F1B,
    ScheduleInterleaved1F1B,
    ScheduleInterleavedZeroBubble,
)

from meditron.parallel.config import Schedule
from meditron.parallel.model import ShardedModel

__all__ = ["Pipeline"]


class Pipeline:
    """Forward and backward passes of all micro-batches through the pipeline's stages.

    Args:
        model: This rank's stages.
        micro_batches: Micro-batches of a step, as many as the schedule can run (`parallel.constraints`).
        micro_batch_size: Sequences of a micro-batch.
        sequence_length: Tokens of every sequence: shapes are the same in every step.
        dtype: The dtype of the hidden states that stages send.
    """

    def __init__(
        self,
        model: ShardedModel,
        *,
        micro_batches: int,
        micro_batch_size: int,
        sequence_length: int,
        dtype: torch.dtype,
    ) -> None:
        layout = model.layout
        shape = layout.shape
        assert layout.mesh is not None  # noqa: S101
        self._is_first, self._is_last = 0 in model.stages, shape.stages - 1 in model.stages
        self._device = layout.device
        self._targets = 1
        # Between stages, tensor-parallel ranks have a part of each sequence.
        hidden = (micro_batch_size, sequence_length // shape.tp, model.config.hidden_size)
        ids = torch.empty(micro_batch_size, sequence_length, dtype=torch.long, device="meta")
        hidden_BSD = torch.empty(hidden, dtype=dtype, device="meta")
        loss = torch.empty(1, dtype=torch.promote_types(dtype, torch.float32), device="meta")
        stages = [
            PipelineStage(
                stage,
                index,
                shape.stages,
                layout.device,
                input_args=ids if index == 0 else hidden_BSD.requires_grad_(),
                output_args=(loss if index == shape.stages - 1 else hidden_BSD).requires_grad_(),
                group=layout.mesh.get_group("pp"),
            )
            for index, stage in model.stages.items()
        ]
        self._schedule = _build_schedule(layout.config.schedule, stages, micro_batches, self._loss)

    def forward_backward(self, batch: Mapping[str, Tensor | None], targets: int) -> Tensor:
        """Accumulate the gradients of a step; return this rank's part of the loss.

        Args:
            batch: The keyword arguments of `ModelStage.forward`, and `ids_BS`, of all micro-batches together.
            targets: Targets of the whole batch, over all data-parallel ranks.
        """
        self._targets = targets
        return self._run(self._schedule.step, batch)

    def nll(self, batch: Mapping[str, Tensor | None]) -> Tensor:
        """Return this rank's part of the summed negative log-likelihood, without gradients."""
        self._targets = 1
        with torch.no_grad():
            return self._run(self._schedule.eval, batch)

    def _loss(self, nll_1: Tensor, _target: Tensor) -> Tensor:
        """Return the micro-batch's part of the step's loss; the last stage has computed its sum."""
        return nll_1.sum() / self._targets

    def _run(self, schedule: Callable[..., object], batch: Mapping[str, Tensor | None]) -> Tensor:
        """Run a schedule and return the sum of the micro-batches' losses; zero without the last stage."""
        # Every stage gets positions, documents and targets from its own rank; hidden states come from the
        # stage before.
        inputs = [batch["ids_BS"]] if self._is_first else []
        keywords: dict[str, Any] = {
            name: value for name, value in batch.items() if value is not None and name != "ids_BS"
        }
        losses: list[Tensor] = []
        if self._is_last:
            keywords |= {"target": batch["targets_BS"], "losses": losses, "return_outputs": False}
        schedule(*inputs, **keywords)
        return torch.stack(losses).detach().double().sum() if losses else torch.zeros((), device=self._device)


def _build_schedule(
    name: Schedule, stages: list[PipelineStage], micro_batches: int, loss: Callable[[Tensor, Tensor], Tensor]
) -> PipelineScheduleSingle | PipelineScheduleMulti:
    # The loss is already divided by the targets of the whole batch, so gradients are not scaled again.
    if name == "1f1b":
        return Schedule1F1B(stages[0], micro_batches, loss_fn=loss, scale_grads=False)
    schedule = ScheduleInterleaved1F1B if name == "interleaved" else ScheduleInterleavedZeroBubble
    return schedule(list(stages), micro_batches, loss_fn=loss, scale_grads=False)
