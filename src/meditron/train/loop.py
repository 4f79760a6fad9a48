"""The training loop. B sequences of a micro-batch, S tokens of a sequence, D the model's width."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from meditron.core.errors import TrainingError
from meditron.parallel.layout import Layout
from meditron.parallel.model import ModelStage, ShardedModel
from meditron.parallel.pipeline import Pipeline
from meditron.train.batches import Batch, StepBatches
from meditron.train.config import TrainingConfig
from meditron.train.guard import Guard
from meditron.train.optimizer import MasterAdamW
from meditron.train.runtime import synchronize
from meditron.train.samples import TrainingDataset

__all__ = ["Callbacks", "StepResult", "TrainState", "batch_nll", "learning_rate", "train"]

_MAX_NAMED_DOCUMENTS = 50
"""Documents of a source that an error names."""


def batch_nll(model: ModelStage, batch: Batch) -> Tensor:
    """Run the forward pass and sum the negative log-likelihood of the targets, in nats."""
    nll_1: Tensor = model(
        batch.ids_BS,
        targets_BS=batch.targets_BS,
        positions_BS=batch.positions_BS,
        documents_BS=batch.documents_BS,
    )
    return nll_1.sum()


@dataclass(frozen=True)
class TrainState:
    """Everything that one optimizer step reads or changes."""

    model: ModelStage
    """The model; with a pipeline, the first of this rank's stages."""
    optimizer: MasterAdamW
    dataset: TrainingDataset
    config: TrainingConfig
    layout: Layout
    start_step: int = 0
    """Optimizer steps that an earlier run has done."""
    sharded: ShardedModel | None = None
    """This rank's part of the model, if there are several ranks."""
    pipeline: Pipeline | None = None
    """Runs the forward and backward passes if the model is divided into stages."""
    sequence_length: int | None = None
    """Tokens that every sample is padded to; by default those of the longest of a micro-batch."""
    guard: Guard = field(default_factory=Guard)
    loss: Callable[[ModelStage, Batch], Tensor] = batch_nll
    """Returns the summed loss of a micro-batch; divided by the targets of the step, it is the step's."""

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole training."""
        return len(self.dataset) // self.config.batch_size

    def batches(self) -> StepBatches:
        """Return this rank's batches of the remaining steps."""
        return StepBatches(
            self.dataset,
            self.config,
            start_step=self.start_step,
            rank=self.layout.data_rank,
            size=self.layout.data_size,
            device=self.layout.device,
            length=self.sequence_length,
        )

    def gradient_norm(self) -> Tensor:
        """Return the 2-norm of the whole gradient, equal on every rank."""
        if self.sharded is None:
            return self.optimizer.gradient_norm()
        self.sharded.sum_tied_gradients()
        copies = self.sharded.shard_copies()
        shards = self.optimizer.local_gradients()
        return self.layout.gradient_norm({name: (shard, copies[name]) for name, shard in shards.items()})


@dataclass(frozen=True)
class StepResult:
    """The measurements of one optimizer step."""

    step_number: int
    """Number of steps done, including this one."""
    loss: float
    """Nats per target token of the batch, before the step."""
    gradient_norm: float
    """2-norm of the gradient before clipping."""
    learning_rate: float
    seconds: float
    event: Mapping[str, Any] | None = None
    """A loss that is not finite or a spike, and the reaction to it; None for an ordinary step."""


@dataclass(frozen=True)
class Callbacks:
    """Functions that the loop calls on every rank, in each step in this order."""

    progress: Callable[[str], None] = lambda note: None
    """Reports the work that this rank begins to its watchdog."""
    validate: Callable[[int], dict[str, float] | None] = lambda step: None
    """Returns the held-out loss by source if it is due after `step` steps."""
    log: Callable[[StepResult, dict[str, float] | None], None] = lambda result, heldout: None
    """Records the measurements of a step and its held-out loss."""
    checkpoint: Callable[[int, bool], None] = lambda step, stop: None
    """Saves a checkpoint if one is due after `step` steps; if `stop`, saves one and raises."""
    rollback: Callable[[], int] = lambda: 0
    """Restores the newest checkpoint and returns its step; 0 if there is no checkpoint."""
    stop_requested: Callable[[], bool] = lambda: False
    """Returns True if this rank was asked to stop."""


def train(state: TrainState, callbacks: Callbacks) -> None:
    """Train from `state.start_step` to the end of the dataset.

    A resumed run continues bit for bit as if it had never stopped.

    Raises:
        TrainingError: The loss or the gradient norm is not finite, or a spike, and the guard says to stop; no
            weight has changed in that step.
    """
    model, optimizer, config, layout = state.model, state.optimizer, state.config, state.layout
    for batch in state.batches():
        started = time.perf_counter() - batch.wait_seconds
        callbacks.progress(f"step {batch.step + 1}: forward and backward")
        # The loss is the mean over the targets of the whole batch. Micro-batches and ranks have unequal
        # numbers of targets, so a mean of their means would be another loss.
        targets = layout.sum_targets(batch.targets)
        if state.pipeline is not None:
            loss = state.pipeline.forward_backward(batch.joined(), targets)
        else:
            loss = torch.zeros((), dtype=torch.float64, device=layout.device)
            for micro_batch in batch.batches:
                if state.sharded is not None:
                    state.sharded.reduce_over_copies(reduce=micro_batch is batch.batches[-1])
                micro_loss = state.loss(model, micro_batch) / targets
                micro_loss.backward()  # type: ignore[no-untyped-call]
                # The loss is detached, so that the graph of this micro-batch is freed before the next
                # forward pass.
                loss += micro_loss.detach()
        callbacks.progress(f"step {batch.step + 1}: optimizer")
        gradient_norm = state.gradient_norm()
        batch_loss, stop = layout.reduce_step(loss, callbacks.stop_requested())
        rate = learning_rate(batch.step, state.total_steps, config)
        # Decided before the optimizer step, so that the weights and the last checkpoint stay valid.
        event = state.guard.check(batch.step + 1, batch_loss, float(gradient_norm))
        if event is None or event["action"] == "log":
            optimizer.step(rate, gradient_norm, config.max_grad_norm)
        else:
            optimizer.discard_gradients()
        # A GPU may still be at work on the update.
        synchronize(layout.device)
        # The time excludes logging, held-out evaluation and checkpoints: it measures training alone.
        seconds = time.perf_counter() - started
        if event is not None and event["action"] == "rollback":
            event = _roll_back(event, callbacks)
        result = StepResult(batch.step + 1, batch_loss, float(gradient_norm), rate, seconds, event)
        if event is not None and event["action"] == "stop":
            callbacks.log(result, None)
            raise TrainingError(f"{event['message']}; documents read: {_documents_read(state, batch.step)}")
        heldout = callbacks.validate(batch.step + 1)
        callbacks.log(result, heldout)
        if heldout is not None:
            # An evaluation takes long, and a signal that arrives in the last one must stop the export.
            stop = layout.any(stop or callbacks.stop_requested())
        callbacks.checkpoint(batch.step + 1, stop)


def learning_rate(step: int, total: int, config: TrainingConfig) -> float:
    """Return the learning rate of the next optimizer step, when `step` of `total` steps are done.

    A linear warm-up to the peak is followed by half a cosine, which reaches `min_learning_rate_ratio` of the
    peak at the last step, or after `schedule_tokens`.
    """
    warmup_steps = round(config.warmup * total)
    if step < warmup_steps:
        # With step + 1 the first step has a rate above zero; at a rate of zero it would change no weight.
        return config.learning_rate * (step + 1) / warmup_steps
    if config.schedule_tokens is not None:
        total = -(-config.schedule_tokens // (config.batch_size * config.sequence_length))
    progress = min(1.0, (step - warmup_steps) / max(1, total - warmup_steps))
    low = config.min_learning_rate_ratio
    return config.learning_rate * (low + (1 - low) * (1 + math.cos(math.pi * progress)) / 2)


def _roll_back(event: dict[str, Any], callbacks: Callbacks) -> dict[str, Any]:
    """Restore the newest checkpoint; return the event with its step, or a stop if there is no checkpoint."""
    restored_step = callbacks.rollback()
    if restored_step:
        return {**event, "restored_step": restored_step}
    message = f"{event['message']}; there is no checkpoint to roll back to"
    return {**event, "action": "stop", "message": message}


def _documents_read(state: TrainState, step: int) -> str:
    """List the documents of the step's whole batch by source: the same text on every rank."""
    size = state.config.batch_size
    by_source: dict[str, list[int | str]] = {}
    for sample in (state.dataset[k] for k in range(step * size, (step + 1) * size)):
        by_source.setdefault(sample.source, []).extend(sample.documents)
    return "; ".join(f"{source} {_abbreviate(documents)}" for source, documents in by_source.items())


def _abbreviate(documents: Sequence[int | str]) -> str:
    # The error is one line, and a batch may have thousands of documents.
    names = list(dict.fromkeys(map(str, documents)))
    more = len(names) - _MAX_NAMED_DOCUMENTS
    return ", ".join(names[:_MAX_NAMED_DOCUMENTS]) + (f" and {more:,} more" if more > 0 else "")
