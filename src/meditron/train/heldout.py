"""The loss on text that is never trained on, by source, as evaluation takes it."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from meditron.model.llama import Llama
from meditron.model.nll import nll_rows
from meditron.store.corpus import held_out
from meditron.text.tokenizer import Tokenizer

__all__ = ["heldout_loss", "heldout_rows"]


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
