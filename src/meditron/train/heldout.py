"""The loss on text that is never trained on, by source, as evaluation takes it."""

import hashlib
import heapq
from collections.abc import Mapping, Sequence
from pathlib import Path

from meditron.model.llama import Llama
from meditron.model.nll import nll_rows
from meditron.store.jsonl import read_jsonl
from meditron.text.tokenizer import Tokenizer

__all__ = ["heldout_loss", "heldout_rows"]


def heldout_rows(corpus: Path, tokenizer: Tokenizer, documents: int) -> dict[str, list[list[int]]]:
    """Source → token ids of its first `documents` held-out documents, in the order of their ids' SHA-256.

    That order knows nothing of the text, so the choice is unbiased, and it is evaluation's own. Empty where
    the corpus has nothing held out.
    """
    parent = corpus / "heldout"
    folders = sorted(path for path in parent.iterdir() if path.is_dir()) if parent.is_dir() else []
    rows = {}
    for folder in folders:
        lines = (line for path in sorted(folder.glob("*.jsonl.zst")) for line in read_jsonl(path))
        first = heapq.nsmallest(documents, lines, key=lambda line: (_sha256(line["id"]), line["id"]))
        rows[folder.name] = tokenizer.encode_batch([line["text"] for line in first])
    return {source: found for source, found in rows.items() if found}


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


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
