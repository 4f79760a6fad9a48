"""Held-out loss: documents in batches of the evaluate stage, conversations in those of training."""

import math
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch

from meditron.core.errors import TrainingError
from meditron.model.llama import Llama
from meditron.model.nll import document_nll
from meditron.parallel.model import ModelStage
from meditron.store.corpus import select_heldout
from meditron.text.tokenizer import Tokenizer
from meditron.train.batches import collate, count_targets, join_batches, micro_batches
from meditron.train.loop import TrainState, batch_nll
from meditron.train.samples import Sample, TrainingDataset

__all__ = [
    "check_finite",
    "conversation_loss",
    "document_loss",
    "document_samples",
    "heldout_documents",
    "sharded_heldout_loss",
    "uncompiled",
]


def heldout_documents(corpus: Path, tokenizer: Tokenizer, count: int) -> dict[str, list[list[int]]]:
    """Tokenize the first `count` held-out documents of each source, in the order that evaluation uses."""
    if not count:
        return {}
    selected = select_heldout(corpus, count)
    return {
        source: tokenizer.encode_batch([document.text for document in documents])
        for source, documents in selected.items()
    }


def document_loss(
    model: Llama, documents: Mapping[str, Sequence[Sequence[int]]], *, max_length: int
) -> dict[str, float]:
    """Return, by source, nats per predicted token of its documents, truncated to `max_length` tokens each."""
    losses = {}
    for source, token_ids in documents.items():
        nll, tokens = document_nll(model, token_ids, max_length=max_length)
        # The total loss is divided by the total tokens, as in perplexity: a mean of the documents' means
        # would give tokens of short documents more weight.
        if tokens.sum():
            losses[source] = float(nll.sum() / tokens.sum())
    return losses


def document_samples(
    documents: Mapping[str, Sequence[Sequence[int]]], *, max_length: int
) -> dict[str, list[Sample]]:
    """Return the documents as samples with the targets that `document_loss` scores."""
    samples: dict[str, list[Sample]] = {}
    for source, rows in documents.items():
        for number, row in enumerate(rows):
            ids = np.asarray(row[:max_length], dtype=np.int64)
            if len(ids) > 1:
                positions = np.arange(len(ids) - 1)
                sample = Sample(
                    ids_S=ids[:-1],
                    targets_S=ids[1:],
                    document_ids_S=np.zeros_like(positions),
                    positions_S=positions,
                    source=source,
                    documents=(number,),
                )
                samples.setdefault(source, []).append(sample)
    return samples


def check_finite(losses: dict[str, float]) -> dict[str, float]:
    """Return the losses; raise TrainingError if one is not finite."""
    for source, loss in losses.items():
        if not math.isfinite(loss):
            raise TrainingError(
                f"the held-out loss of {source} is {loss:g}: weights or activations of the model overflow or "
                "are NaN"
            )
    return losses


def sharded_heldout_loss(state: TrainState, samples: Mapping[str, Sequence[Sample]]) -> dict[str, float]:
    """Return, by source, the loss per target (or pair) of its samples, under a layout of any number of ranks.

    The forward pass is that of the training, in its dtype (the head in float32) and with its shapes;
    data-parallel ranks share the samples. Every rank must call this, with the model in evaluation mode.
    """
    layout, config = state.layout, state.config
    micro = layout.shape.divide_batch(config.batch_size, config.micro_batch_size).micro_batch_size
    # A pipeline runs all its micro-batches at a time, as in training.
    per_rank = state.batches().samples_per_rank if state.pipeline is not None else micro
    losses = {}
    for source, rows in samples.items():
        total, filler = 0.0, rows[0].mask_all_targets()
        at_a_time = per_rank * layout.data_size
        for start in range(0, len(rows), at_a_time):
            mine = list(rows[start : start + at_a_time][layout.data_rank :: layout.data_size])
            mine += [filler] * (per_rank - len(mine))
            total += _sharded_nll(state, [mine[i : i + micro] for i in range(0, per_rank, micro)])
        losses[source] = layout.sum(total) / count_targets(rows)
    return losses


def _sharded_nll(state: TrainState, parts: Sequence[Sequence[Sample]]) -> float:
    """Return this rank's part of the summed negative log-likelihood."""
    layout, length = state.layout, state.sequence_length or state.config.sequence_length
    batches = [
        collate(part, by_document=state.dataset.document_mask, device=layout.device, length=length)
        for part in parts
    ]
    if state.pipeline is not None:
        nll = state.pipeline.nll(join_batches(batches))
    else:
        with torch.no_grad():
            nll = torch.stack([state.loss(state.model, batch) for batch in batches]).sum()
    # Tensor-parallel ranks have equal sums: one of them counts.
    return float(nll) if layout.tensor_rank == 0 else 0.0


def uncompiled(device: torch.device) -> AbstractContextManager[Any]:
    """Run compiled blocks uncompiled, on a CPU.

    The few batches of an evaluation have shapes that training does not have, so compiling would cost more
    time than it saves. On a GPU attention would then compute all scores of all documents.
    """
    applies = "torch._dynamo" in sys.modules and device.type == "cpu"
    return torch.compiler.set_stance("force_eager") if applies else nullcontext()


def conversation_loss(model: Llama, dataset: TrainingDataset, *, batch_size: int) -> float:
    """Return nats per target token of all samples, evaluated `batch_size` at a time."""
    total = targets = 0.0
    # In evaluation mode the head computes in float32, as on several ranks.
    device, stage = model.head_weight.device, ModelStage(model).eval()
    with torch.no_grad(), uncompiled(device):
        for samples in micro_batches([dataset[k] for k in range(len(dataset))], batch_size):
            batch = collate(samples, by_document=dataset.document_mask, device=device)
            total += float(batch_nll(stage, batch))
            targets += count_targets(samples)
    return total / targets
