"""Held-out loss: documents are scored as in the evaluate stage, conversations as in training."""

import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

import torch

from meditron.model.llama import Llama
from meditron.model.nll import document_nll
from meditron.store.corpus import select_heldout
from meditron.text.tokenizer import Tokenizer
from meditron.train.loop import batch_nll, collate, count_targets, micro_batches
from meditron.train.samples import TrainingDataset

__all__ = ["conversation_loss", "document_loss", "heldout_documents"]


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


def conversation_loss(model: Llama, dataset: TrainingDataset, *, batch_size: int) -> float:
    """Return nats per target token of all samples, evaluated `batch_size` at a time."""
    total = targets = 0.0
    # The evaluation runs uncompiled: its few batches have shapes that training does not have, so compiling
    # would cost more time than it saves.
    eager = torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()
    device = model.head_weight.device
    with torch.no_grad(), eager:
        for samples in micro_batches([dataset[k] for k in range(len(dataset))], batch_size):
            batch = collate(samples, by_document=dataset.document_mask, device=device)
            total += float(batch_nll(model, batch))
            targets += count_targets(samples)
    return total / targets
