"""The training loop. B sequences of a micro-batch, S tokens of a sequence, D the model's width."""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from meditron.core.errors import TrainingError
from meditron.model.llama import document_mask
from meditron.model.nll import nll_sum
from meditron.train.config import TrainingConfig
from meditron.train.layout import SINGLE_PROCESS, ParallelLayout, TrainableModel
from meditron.train.optimizer import MasterAdamW
from meditron.train.samples import IGNORE, Sample, TrainingDataset

__all__ = [
    "Batch",
    "StepResult",
    "TrainState",
    "batch_nll",
    "collate",
    "count_targets",
    "learning_rate",
    "micro_batches",
    "train",
]


@dataclass(frozen=True)
class TrainState:
    """Everything that one optimizer step reads or changes."""

    model: TrainableModel
    optimizer: MasterAdamW
    dataset: TrainingDataset
    config: TrainingConfig
    start_step: int = 0
    """Optimizer steps that an earlier run has done."""
    layout: ParallelLayout = SINGLE_PROCESS


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


def train(state: TrainState, *, log: Callable[[StepResult], None], checkpoint: Callable[[int], None]) -> None:
    """Train from `state.start_step` to the end of the dataset.

    A resumed run continues bit for bit as if it had never stopped.

    Args:
        state: The model, its optimizer, the data and the settings.
        log: Called after each optimizer step with its measurements.
        checkpoint: Called after `log` with the number of steps done; decides itself if a checkpoint is due.

    Raises:
        TrainingError: The loss or the gradient norm is not finite; no weight has changed in that step.
    """
    model, optimizer, dataset = state.model, state.optimizer, state.dataset
    config, layout = state.config, state.layout
    total_steps = len(dataset) // config.batch_size
    for step in range(state.start_step, total_steps):
        started = time.perf_counter()
        first, end = step * config.batch_size, (step + 1) * config.batch_size
        # The samples are a pure function of the step, so resuming needs only the step number and no state of
        # the dataset.
        samples = [dataset[k] for k in range(first + layout.rank, end, layout.world_size)]
        # The loss is the mean over the targets of the whole batch. Micro-batches and ranks have unequal
        # numbers of targets, so a mean of their means would be another loss.
        targets = layout.sum_over_ranks(torch.tensor(count_targets(samples), device=layout.device))
        loss = torch.zeros((), device=layout.device)
        for micro_batch in micro_batches(samples, config.micro_batch_size):
            batch = collate(micro_batch, by_document=dataset.document_mask, device=layout.device)
            micro_loss = batch_nll(model, batch) / targets
            micro_loss.backward()  # type: ignore[no-untyped-call]
            # The loss is detached, so that the graph of this micro-batch is freed before the next forward
            # pass.
            loss += micro_loss.detach()
        # Gradients are summed over the ranks once per step, after all micro-batches have accumulated theirs
        # locally.
        layout.sum_gradients(optimizer.gradients())
        loss = layout.sum_over_ranks(loss)
        gradient_norm = optimizer.gradient_norm()
        # Checked before the optimizer step, so that the weights and the last checkpoint stay valid.
        _require_finite_loss(step + 1, float(loss), float(gradient_norm), samples)
        rate = learning_rate(step, total_steps, config)
        optimizer.step(rate, gradient_norm, config.max_grad_norm)
        # The time excludes logging, held-out evaluation and checkpoints: it measures training alone.
        seconds = time.perf_counter() - started
        log(StepResult(step + 1, float(loss), float(gradient_norm), rate, seconds))
        checkpoint(step + 1)


@dataclass(frozen=True)
class Batch:
    """Samples of one forward pass as tensors on the model's device."""

    ids_BS: Tensor
    targets_BS: Tensor
    positions_BS: Tensor | None
    """None for positions 0, 1, 2, … in every sequence."""
    mask: Tensor | None
    """None for plain causal attention."""


def collate(samples: Sequence[Sample], *, by_document: bool, device: torch.device) -> Batch:
    """Stack samples into a batch on `device`; shorter ones are padded to the longest.

    With `by_document` a token attends to its own document only, and positions restart with each document.
    """
    length = max(len(sample.ids_S) for sample in samples)
    samples = [sample.pad_to(length) for sample in samples]

    def stack(arrays: Sequence[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.stack(arrays)).to(device)

    ids_BS = stack([sample.ids_S for sample in samples])
    targets_BS = stack([sample.targets_S for sample in samples])
    # Without a mask tensor attention takes its causal kernel, which skips the masked half of the work.
    if not by_document:
        return Batch(ids_BS, targets_BS, None, None)
    documents_BS = stack([sample.document_ids_S for sample in samples])
    positions_BS = stack([sample.positions_S for sample in samples])
    return Batch(ids_BS, targets_BS, positions_BS, document_mask(documents_BS))


def batch_nll(model: TrainableModel, batch: Batch) -> Tensor:
    """Run the forward pass and sum the negative log-likelihood of the targets, in nats.

    The output projection is computed for positions with a target only: in finetuning these are few, and
    logits of a large vocabulary are the largest tensors of a step.
    """
    hidden_BSD = model(batch.ids_BS, positions_BS=batch.positions_BS, mask=batch.mask)
    return nll_sum(hidden_BSD, model.head_weight, batch.targets_BS, ignore=IGNORE)[0]


def count_targets(samples: Sequence[Sample]) -> int:
    """Count the positions that add to the loss."""
    return sum(int((sample.targets_S != IGNORE).sum()) for sample in samples)


def learning_rate(step: int, total: int, config: TrainingConfig) -> float:
    """Return the learning rate of the next optimizer step, when `step` of `total` steps are done.

    A linear warm-up to the peak is followed by half a cosine down to `min_learning_rate_ratio` of it.
    """
    warmup_steps = round(config.warmup * total)
    if step < warmup_steps:
        # With step + 1 the first step has a rate above zero; at a rate of zero it would change no weight.
        return config.learning_rate * (step + 1) / warmup_steps
    cosine = (1 + math.cos(math.pi * (step - warmup_steps) / max(1, total - warmup_steps))) / 2
    low = config.min_learning_rate_ratio
    return config.learning_rate * (low + (1 - low) * cosine)


def micro_batches(samples: Sequence[Sample], size: int | None) -> Iterator[Sequence[Sample]]:
    """Split samples into micro-batches of `size`; None keeps them together."""
    size = size or len(samples)
    for start in range(0, len(samples), size):
        yield samples[start : start + size]


def _require_finite_loss(step: int, loss: float, gradient_norm: float, samples: Sequence[Sample]) -> None:
    # The gradient norm is checked too: a finite loss can have a gradient that overflows, and the optimizer
    # step would spread it to all weights.
    if math.isfinite(loss) and math.isfinite(gradient_norm):
        return
    documents = "; ".join(f"{sample.source} {', '.join(map(str, sample.documents))}" for sample in samples)
    raise TrainingError(
        f"step {step}: the loss is {loss:g} and the gradient norm {gradient_norm:g}; "
        f"documents read: {documents}"
    )
