"""Perplexity of held-out text: scoring of documents, summaries with intervals, paired differences.

A document's tokens are those of its text, with the BOS token in front if the tokenizer adds one, and without
an end-of-text token: how a model ends a document is not measured. Each token but the first is scored, given
all tokens before it.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from meditron.core.statistics import MAX_EXPONENT, bootstrap_ratio, finite_exp
from meditron.evaluate.compare import differences
from meditron.evaluate.config import Against, EvalOptions
from meditron.evaluate.heldout import data_digest
from meditron.evaluate.model import EvalModel
from meditron.evaluate.result_rows import ResultRows
from meditron.evaluate.rows import DocumentRow
from meditron.evaluate.rows_file import RowsFile, run_resumable
from meditron.store.corpus import CorpusDocument
from meditron.store.manifest import fingerprint
from meditron.store.results import Comparison, Perplexity
from meditron.text.tokenizer import Tokenizer

__all__ = [
    "EncodedDocument",
    "compare_pairs",
    "encode_document",
    "ids_digest",
    "score_documents",
    "summarize",
]

_GROUP_SIZE = 32  # documents scored between two writes
_LOSS_BOUNDS = (0.0, MAX_EXPONENT)
"""Bounds of an interval, in nats per token: a log-loss is not negative, and exp overflows above 709."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedDocument:
    """A document as token ids."""

    ids: Sequence[int]
    bytes: int
    """UTF-8 bytes of the scored tokens' text: all ids but the first."""
    truncated: bool


def encode_document(text: str, tokenizer: Tokenizer, max_tokens: int) -> EncodedDocument:
    """Tokenize a document and cut it to `max_tokens` tokens, BOS included."""
    ids = tokenizer.encode(text)
    kept, truncated = ids[:max_tokens], len(ids) > max_tokens
    text_bytes = len((tokenizer.decode(kept) if truncated else text).encode())
    # Without BOS the first token is text that is context only: its bytes are not scored.
    unscored = 0 if tokenizer.adds_bos else len(tokenizer.decode(kept[:1]).encode())
    return EncodedDocument(ids=kept, bytes=text_bytes - unscored, truncated=truncated)


def ids_digest(ids: Sequence[int]) -> str:
    """Return the SHA-256 of token ids."""
    # Little-endian 32-bit, so that hashes agree between machines.
    return hashlib.sha256(np.asarray(ids, dtype="<u4").tobytes()).hexdigest()


def score_documents(
    model: EvalModel,
    documents: Mapping[str, Sequence[CorpusDocument]],
    options: EvalOptions,
    file: RowsFile[DocumentRow],
) -> list[DocumentRow]:
    """Score every document with one model.

    Args:
        model: The model.
        documents: Source → documents.
        options: Length limit and batch size.
        file: The rows file. Its rows of the same settings are reused, new ones are appended.

    Raises:
        UsageError: the model's engine does not score given tokens.
        MeditronError: the loss on a document is not finite.
    """
    ordered = [document for source in sorted(documents) for document in documents[source]]
    cache_key = fingerprint(
        {
            **model.cache_identity,
            "data": data_digest(ordered),
            "max_tokens": options.max_tokens,
            # The composition of a batch moves the last bits of its sums.
            "batches": [_GROUP_SIZE, options.batch_tokens],
        }
    )
    groups = [ordered[start : start + _GROUP_SIZE] for start in range(0, len(ordered), _GROUP_SIZE)]

    def work(group: Sequence[CorpusDocument]) -> list[DocumentRow]:
        return _score_group(model, group, options, cache_key)

    rows = run_resumable(file, model.name, cache_key, groups, _item, work, unit="documents")
    # In the documents' order: the bootstrap draws by position, and the file may have another order.
    return [rows[_item(document)] for document in ordered]


def _item(document: CorpusDocument) -> tuple[str, ...]:
    return document.source, document.id, document.sha256


def _score_group(
    model: EvalModel, documents: Sequence[CorpusDocument], options: EvalOptions, cache_key: str
) -> list[DocumentRow]:
    engine = model.scorer
    # A document longer than the context is truncated; a sliding window would score tokens twice.
    limit = min(options.max_tokens, engine.context)
    encoded = [encode_document(document.text, engine.tokenizer, limit) for document in documents]
    nlls, tokens = engine.score_documents([e.ids for e in encoded], batch_tokens=options.batch_tokens)
    rows = []
    for document, e, nll, count in zip(documents, encoded, nlls.tolist(), tokens.tolist(), strict=True):
        model.require_finite(f"the loss on {document.id}", nll)
        rows.append(
            DocumentRow(
                **model.row_fields(cache_key),
                source=document.source,
                id=document.id,
                tokens=count,
                nll=nll,
                bytes=e.bytes,
                ids_sha256=ids_digest(e.ids),
                truncated=e.truncated,
                text_sha256=document.sha256,
            )
        )
    return rows


def summarize(
    rows: Mapping[str, Sequence[DocumentRow]],
    documents: Mapping[str, Sequence[CorpusDocument]],
    *,
    seed: int,
    resamples: int,
) -> dict[str, dict[str, Perplexity]]:
    """Return model → source → perplexity with its interval, from each model's rows."""
    digests = {source: data_digest(chosen) for source, chosen in documents.items()}
    return {
        name: {
            source: _perplexity(
                [row for row in model_rows if row.source == source], digest, seed=seed, resamples=resamples
            )
            for source, digest in digests.items()
        }
        for name, model_rows in rows.items()
    }


def compare_pairs(
    rows: Mapping[str, Sequence[DocumentRow]], pairs: Sequence[Against], *, seed: int, resamples: int
) -> list[Comparison]:
    """Return the paired differences of pairs of models, source by source."""
    results = {
        name: ResultRows(name=name, documents=[{row.item(): row for row in model_rows}], tasks={})
        for name, model_rows in rows.items()
    }
    return [
        comparison
        for pair in pairs
        for comparison in differences(
            results[pair.against], results[pair.model], seed=seed, resamples=resamples
        )
    ]


def _perplexity(rows: Sequence[DocumentRow], digest: str, *, seed: int, resamples: int) -> Perplexity:
    """Compute exp(Σ nll / Σ tokens) of one model and source; the interval resamples documents."""
    # A document of one token has no prediction to score.
    scored = [row for row in rows if row.tokens]
    nlls, tokens = [row.nll for row in scored], [row.tokens for row in scored]
    nll, interval = bootstrap_ratio(nlls, tokens, seed=seed, resamples=resamples, bounds=_LOSS_BOUNDS)
    return Perplexity(
        model=rows[0].model,
        source=rows[0].source,
        documents=len(scored),
        tokens=sum(tokens),
        nll=nll,
        perplexity=finite_exp(nll),
        interval=interval and (math.exp(interval.low), math.exp(interval.high)),
        bits_per_byte=sum(nlls) / math.log(2) / max(1, sum(row.bytes for row in scored)),
        truncated=sum(row.truncated for row in scored),
        data_sha256=digest,
    )
