"""Batches of the training loop: the samples of each optimizer step as tensors on the training device.

Shapes: B sequences of a micro-batch, S tokens of a sequence.
"""

import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from meditron.model.flex_attention import visible_documents
from meditron.parallel.shapes import BatchDivision, divide_batch
from meditron.train.config import TrainingConfig
from meditron.train.samples import Sample, TrainingDataset

__all__ = ["Batch", "StepBatch", "StepBatches", "collate", "count_targets", "join_batches", "micro_batches"]


@dataclass(frozen=True)
class Batch:
    """Samples of one forward pass as tensors on the model's device."""

    ids_BS: Tensor
    targets_BS: Tensor
    positions_BS: Tensor | None
    """None for positions 0, 1, 2, … in every sequence."""
    documents_BS: Tensor | None
    """The document of each token; None for plain causal attention."""
    reference_B2: Tensor | None = None
    """Of pairs of answers: their log-probabilities before the first step."""

    @property
    def mask(self) -> Any:  # noqa: ANN401
        """The `mask` argument of `Llama.forward`: None, a bool tensor (B, 1, S, S), or a BlockMask on a GPU.

        It is created at each access, because masks have S² elements: only the micro-batch that is being
        computed needs one.
        """
        return None if self.documents_BS is None else visible_documents(self.documents_BS)


@dataclass(frozen=True)
class StepBatch:
    """The part of one optimizer step that one data-parallel rank computes."""

    step: int
    """Optimizer steps done before this one."""
    samples: Sequence[Sample]
    """The samples of this rank, with the masked ones that fill it up."""
    batches: Sequence[Batch]
    """The samples as micro-batches; every rank has equally many."""
    targets: int
    """Positions, or pairs, of this rank that add to the loss."""
    wait_seconds: float = 0.0
    """Seconds that the loop waited for this batch; part of the step's time."""

    def joined(self) -> dict[str, Tensor | None]:
        """Return the tensors of all micro-batches together: a pipeline divides them itself."""
        return join_batches(self.batches)


def collate(
    samples: Sequence[Sample], *, by_document: bool, device: torch.device, length: int | None = None
) -> Batch:
    """Stack samples into a batch on `device`.

    With `by_document` a token attends to its own document only, and positions restart with each document.

    Args:
        samples: At least one sample.
        by_document: Return documents and positions, unless each sample is a single document.
        device: Device of the tensors. Copies to a GPU are asynchronous, from pinned memory.
        length: Tokens to pad each sample to; by default those of the longest.
    """
    length = max(length or 0, *(len(sample.ids_S) for sample in samples))
    samples = [sample.pad_to(length) for sample in samples]

    def stack(arrays: Sequence[np.ndarray]) -> Tensor:
        stacked = torch.from_numpy(np.stack(arrays))
        # Only a copy from pinned memory is asynchronous; from other memory it would wait for the GPU.
        return (stacked.pin_memory() if device.type == "cuda" else stacked).to(device, non_blocking=True)

    ids_BS = stack([sample.ids_S for sample in samples])
    targets_BS = stack([sample.targets_S for sample in samples])
    if not by_document:
        return Batch(ids_BS, targets_BS, None, None)
    positions_BS = stack([sample.positions_S for sample in samples])
    # Decided here, on the host: on a GPU the decision would wait for all computation before it. Without a
    # mask attention takes its causal kernel, which skips the masked half of the work.
    if all((sample.document_ids_S == sample.document_ids_S[0]).all() for sample in samples):
        return Batch(ids_BS, targets_BS, positions_BS, None)
    documents_BS = stack([sample.document_ids_S for sample in samples])
    references = [sample.reference_2 for sample in samples if sample.reference_2 is not None]
    reference_B2 = stack(references) if references else None
    return Batch(ids_BS, targets_BS, positions_BS, documents_BS, reference_B2)


def count_targets(samples: Sequence[Sample]) -> int:
    """Count the positions, or pairs, that add to the loss."""
    return sum(sample.loss_terms for sample in samples)


def micro_batches(samples: Sequence[Sample], size: int | None) -> Iterator[Sequence[Sample]]:
    """Split samples into micro-batches of `size`; None keeps them together."""
    size = size or len(samples)
    for start in range(0, len(samples), size):
        yield samples[start : start + size]


def join_batches(batches: Sequence[Batch]) -> dict[str, Tensor | None]:
    """Concatenate micro-batches of one length; the keys are those of `Batch`."""
    joined: dict[str, Tensor | None] = {
        "ids_BS": torch.cat([batch.ids_BS for batch in batches]),
        "targets_BS": torch.cat([batch.targets_BS for batch in batches]),
        "positions_BS": None,
        "documents_BS": None,
    }
    if batches[0].positions_BS is not None:
        positions = [batch.positions_BS for batch in batches if batch.positions_BS is not None]
        joined["positions_BS"] = torch.cat(positions)
    if any(batch.documents_BS is not None for batch in batches):
        # A micro-batch without documents has one document per sequence.
        documents = [
            torch.zeros_like(batch.ids_BS) if batch.documents_BS is None else batch.documents_BS
            for batch in batches
        ]
        joined["documents_BS"] = torch.cat(documents)
    return joined


class StepBatches:
    """The batches of one data-parallel rank, by optimizer step, from `start_step` to the dataset's end.

    Rank r of n reads samples first + r, first + r + n, … of each step. If the batch does not divide evenly,
    ranks are filled up with copies of their samples whose targets are all masked: every rank then has equally
    many micro-batches of the same sizes, which collective operations need, and a loss that is divided by the
    targets of all ranks is unchanged. With `length` the last micro-batch is filled up too, so that all
    batches have one shape (pipelines need that).

    The batches are a pure function of (dataset, config, step, rank, size): resuming needs the step only.

    Each iteration starts anew. On a GPU a thread prepares the next step while one is computed; it ends with
    the iterator, also if the loop is left by an exception. On a CPU it would take computing time from the
    step, so batches are prepared in turn.

    Args:
        dataset: All samples of the run.
        config: Gives `batch_size` (of all ranks) and `micro_batch_size` (of one rank's forward pass).
        start_step: Optimizer steps that an earlier run has done.
        rank: Data-parallel rank of this process.
        size: Number of data-parallel ranks.
        device: Device of the batches.
        length: Tokens to pad each sample to; by default those of the longest of a micro-batch.
        background: Prepare the next step in a thread; by default on a GPU only.
    """

    def __init__(
        self,
        dataset: TrainingDataset,
        config: TrainingConfig,
        *,
        start_step: int,
        rank: int,
        size: int,
        device: torch.device,
        length: int | None = None,
        background: bool | None = None,
    ) -> None:
        self._dataset, self._config = dataset, config
        self._rank, self._size, self._length = rank, size, length
        self._steps = range(start_step, len(dataset) // config.batch_size)
        # "cuda" is the current GPU, which is a setting of each thread: the thread below would copy to the
        # first GPU. The device of a tensor has its number.
        self._device = torch.empty(0, device=device).device
        self._background = device.type == "cuda" if background is None else background

    @property
    def samples_per_rank(self) -> int:
        """Samples of a rank in one step, with the masked ones that fill it up."""
        division = self._division
        filled = division.micro_batch_size * division.micro_batches
        return filled if self._length else -(-self._config.batch_size // self._size)

    @property
    def _division(self) -> BatchDivision:
        return divide_batch(self._config.batch_size, self._config.micro_batch_size, self._size)

    def __len__(self) -> int:
        """Return the number of steps."""
        return len(self._steps)

    def __iter__(self) -> Iterator[StepBatch]:
        """Yield the batches of each step; errors of the dataset are raised here, in the caller's thread."""
        if not self._background:
            for step in self._steps:
                started = time.perf_counter()
                yield replace(self.prepare(step), wait_seconds=time.perf_counter() - started)
            return
        # One thread, one step ahead: the batches of two steps exist at a time, whatever the dataset's speed.
        with ThreadPoolExecutor(1, thread_name_prefix="batches") as thread:
            pending: deque[Future[StepBatch]] = deque()
            for step in self._steps:
                started = time.perf_counter()
                if not pending:
                    pending.append(thread.submit(self.prepare, step))
                batch = pending.popleft().result()
                if step + 1 in self._steps:
                    pending.append(thread.submit(self.prepare, step + 1))
                yield replace(batch, wait_seconds=time.perf_counter() - started)

    def prepare(self, step: int) -> StepBatch:
        """Return the batches of the optimizer step after `step` steps."""
        config, size = self._config, self._size
        first = step * config.batch_size
        numbers = range(first + self._rank, first + config.batch_size, size)
        samples = [self._dataset[k] for k in numbers]
        wanted, micro = self.samples_per_rank, self._division.micro_batch_size
        # With more ranks than samples a rank has none of its own; it then computes a copy of the first one.
        filler = (samples[0] if samples else self._dataset[first]).mask_all_targets()
        samples += [filler] * (wanted - len(samples))
        batches = [
            collate(part, by_document=self._dataset.document_mask, device=self._device, length=self._length)
            for part in micro_batches(samples, micro)
        ]
        return StepBatch(step, samples, batches, count_targets(samples))
