"""The loss on what is never trained on: on text as evaluation takes it, on examples as training does."""

import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path

import torch

from meditron.model.llama import Llama
from meditron.model.nll import nll_rows
from meditron.store.corpus import held_out
from meditron.text.tokenizer import Tokenizer
from meditron.train.loop import micro_batches, nll_of
from meditron.train.samples import IGNORE, Samples

__all__ = ["answer_loss", "heldout_loss", "heldout_rows"]


def heldout_rows(corpus: Path, tokenizer: Tokenizer, documents: int) -> dict[str, list[list[int]]]:
    """Source → token ids of its first `documents` held-out documents, chosen as evaluation chooses."""
    if not documents:
        return {}
    chosen = held_out(corpus, documents)
    return {source: tokenizer.encode_batch([text.text for text in texts]) for source, texts in chosen.items()}


def heldout_loss(
    model: Llama, rows: Mapping[str, Sequence[Sequence[int]]], *, max_length: int
) -> dict[str, float]:
    """Source → nats per predicted token over all its documents, each cut to `max_length` tokens."""
    losses = {}
    for source, documents in rows.items():
        nll, tokens = nll_rows(model, documents, max_length=max_length)
        if tokens.sum():
            losses[source] = float(nll.sum() / tokens.sum())
    return losses


def answer_loss(model: Llama, samples: Samples, *, rows: int) -> float:
    """Nats per target token of all samples, `rows` of them at a time."""
    total = targets = 0.0
    # Few batches, of shapes of their own: not worth a compilation.
    eager = torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else nullcontext()
    with torch.no_grad(), eager:
        for batch in micro_batches([samples[k] for k in range(len(samples))], rows):
            total += float(nll_of(model, batch, mask=samples.document_mask))
            targets += sum(int((row.targets_S != IGNORE).sum()) for row in batch)
    return total / targets
