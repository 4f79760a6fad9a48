"""The loop. B rows of a micro-batch, S tokens of a row."""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from meditron.core.errors import TrainingError
from meditron.model.llama import Llama, document_mask
from meditron.model.nll import nll_sum
from meditron.train.config import TrainingConfig
from meditron.train.optimizer import MasterAdamW
from meditron.train.samples import IGNORE, Row, Samples

__all__ = ["ALONE", "Layout", "Step", "learning_rate", "micro_batches", "nll_of", "steps"]


class Layout:
    """What it means to the loop that the model stands on several ranks. This one stands on one.

    Gradients are the layout's own business: it sums them over the ranks, as the loss is already a mean.
    """

    rank = 0
    """Which of the data-parallel ranks this is."""
    ranks = 1
    """How many share each batch: rank r takes its rows r, r + ranks, …"""

    def total(self, value: Tensor) -> Tensor:
        """The sum of a value over the ranks."""
        return value


ALONE = Layout()


@dataclass(frozen=True)
class Step:
    """What one optimizer step was like."""

    number: int
    """Steps done, this one included."""
    loss: float
    """Nats per target token of the batch, before the step."""
    gradient_norm: float
    """Before clipping."""
    learning_rate: float
    seconds: float


def steps(
    model: Llama,
    optimizer: MasterAdamW,
    data: Samples,
    config: TrainingConfig,
    *,
    done: int = 0,
    layout: Layout = ALONE,
) -> Iterator[Step]:
    """Train, yielding after each optimizer step: what to do between steps is the caller's business.

    A run that starts with `done` steps behind it goes on exactly as one that was never interrupted. The loss
    of a step is the mean over its target tokens, however they are spread over micro-batches and ranks. Raises
    TrainingError, before any weight has changed, where the loss or the gradient is not a number.
    """
    total = len(data) // config.batch_size
    for step in range(done, total):
        began = time.perf_counter()
        first = step * config.batch_size
        rows = [data[k] for k in range(first + layout.rank, first + config.batch_size, layout.ranks)]
        targets = layout.total(torch.tensor(sum(int((row.targets_S != IGNORE).sum()) for row in rows)))
        loss = torch.zeros(())
        for micro in micro_batches(rows, config.micro_batch_size):
            share = nll_of(model, micro, mask=data.document_mask) / targets
            share.backward()  # type: ignore[no-untyped-call]
            loss += share.detach()
        loss = layout.total(loss)
        norm = optimizer.gradient_norm()
        _require_finite(step + 1, float(loss), float(norm), rows)
        rate = learning_rate(step, total, config)
        optimizer.step(rate, norm, config.clip)
        yield Step(step + 1, float(loss), float(norm), rate, time.perf_counter() - began)


def learning_rate(step: int, total: int, config: TrainingConfig) -> float:
    """Of the step after `step` of `total`: a linear rise to the peak, then half a cosine down from it."""
    rise = round(config.warmup * total)
    if step < rise:
        return config.learning_rate * (step + 1) / rise
    fall = (1 + math.cos(math.pi * (step - rise) / max(1, total - rise))) / 2
    low = config.min_learning_rate_ratio
    return config.learning_rate * (low + (1 - low) * fall)


def micro_batches(rows: Sequence[Row], size: int | None) -> Iterator[Sequence[Row]]:
    """Rows `size` at a time; all at once where there is none."""
    size = size or len(rows)
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def nll_of(model: Llama, rows: Sequence[Row], *, mask: bool) -> Tensor:
    """Sum over the targets of these rows, in nats. Only positions that have a target reach the head."""
    length = max(len(row.ids_S) for row in rows)
    rows = [row.padded(length) for row in rows]
    ids_BS = _stack([row.ids_S for row in rows])
    targets_BS = _stack([row.targets_S for row in rows])
    if mask:
        documents_BS = _stack([row.document_ids_S for row in rows])
        positions_BS = _stack([row.positions_S for row in rows])
        hidden_BSD = model(ids_BS, positions_BS=positions_BS, mask=document_mask(documents_BS))
    else:
        hidden_BSD = model(ids_BS)
    return nll_sum(hidden_BSD, model.head_weight, targets_BS, ignore=IGNORE)[0]


def _stack(rows: Sequence[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.stack(rows))


def _require_finite(step: int, loss: float, norm: float, rows: Sequence[Row]) -> None:
    if math.isfinite(loss) and math.isfinite(norm):
        return
    read = "; ".join(f"{row.source} {', '.join(map(str, row.documents))}" for row in rows)
    raise TrainingError(
        f"step {step}: the loss is {loss:g} and the gradient's norm {norm:g}; documents read: {read}"
    )
