"""Perplexity of held-out text: scores of documents, perplexities with intervals, paired differences.

A document is encoded with the BOS token in front if the tokenizer adds one, and without an end-of-text token,
so the model's prediction of the end of a document is not measured. Each token except the first is scored,
given all tokens before it.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from meditron.core.console import warn
from meditron.core.statistics import MAX_EXPONENT, bootstrap_ratio, finite_exp
from meditron.evaluate.compare import no_differences_error, result_differences
from meditron.evaluate.config import EvalOptions, ModelPair
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

_GROUP_SIZE = 32  # documents that are scored between two writes of the rows file
_LOSS_BOUNDS = (0.0, MAX_EXPONENT)
"""Bounds of intervals in nats per token: the log-loss is never negative, and exp overflows above 709."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedDocument:
    """A document as token ids, cut to the maximum length."""

    ids: Sequence[int]
    scored_bytes: int
    """Number of UTF-8 bytes of the text of the scored tokens, which are all except the first."""
    truncated: bool


def encode_document(text: str, tokenizer: Tokenizer, document_tokens: int) -> EncodedDocument:
    """Tokenize a document and cut it to `document_tokens` tokens, BOS included."""
    ids = tokenizer.encode(text)
    kept, truncated = ids[:document_tokens], len(ids) > document_tokens
    text_bytes = len((tokenizer.decode(kept) if truncated else text).encode())
    # Without BOS the first token is text. It is not scored, so its bytes are not counted.
    unscored = 0 if tokenizer.adds_bos else len(tokenizer.decode(kept[:1]).encode())
    return EncodedDocument(ids=kept, scored_bytes=text_bytes - unscored, truncated=truncated)


def ids_digest(ids: Sequence[int]) -> str:
    """Return the SHA-256 of token ids."""
    # Hashed as little-endian 32-bit integers on every machine.
    return hashlib.sha256(np.asarray(ids, dtype="<u4").tobytes()).hexdigest()


def score_documents(
    model: EvalModel,
    documents: Mapping[str, Sequence[CorpusDocument]],
    options: EvalOptions,
    file: RowsFile[DocumentRow],
) -> list[DocumentRow]:
    """Compute one model's loss on every document.

    Args:
        model: The model.
        documents: Source → documents.
        options: Maximum length of a document, and batch size.
        file: The rows file. Rows with the same cache key are reused; new rows are appended.

    Returns:
        The rows in the documents' order.

    Raises:
        UsageError: the model's engine cannot score given tokens.
        MeditronError: the loss on a document is infinite or NaN.
    """
    ordered = [document for source in sorted(documents) for document in documents[source]]
    cache_key = fingerprint(
        {
            **model.cache_identity,
            "data": data_digest(ordered),
            "document_tokens": options.document_tokens,
            # Other batches change the last bits of the losses.
            "batches": [_GROUP_SIZE, options.batch_tokens],
        }
    )
    groups = [ordered[start : start + _GROUP_SIZE] for start in range(0, len(ordered), _GROUP_SIZE)]

    def score_group(group: Sequence[CorpusDocument]) -> list[DocumentRow]:
        return _score_documents(model, group, options, cache_key)

    rows = run_resumable(file, model.name, cache_key, groups, _document_key, score_group, unit="documents")
    # In the documents' order, because the bootstrap draws rows by position; the file's order may differ.
    return [rows[_document_key(document)] for document in ordered]


def _document_key(document: CorpusDocument) -> tuple[str, ...]:
    return document.source, document.id, document.sha256


def _score_documents(
    model: EvalModel, documents: Sequence[CorpusDocument], options: EvalOptions, cache_key: str
) -> list[DocumentRow]:
    engine = model.scorer
    # Documents longer than the model's context are truncated; no sliding window is used.
    limit = min(options.document_tokens, engine.context)
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
                bytes=e.scored_bytes,
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
    """Compute the perplexity of each model on each source, with its interval.

    Returns:
        Model → source → perplexity.
    """
    digests = {source: data_digest(chosen) for source, chosen in documents.items()}
    return {
        name: {
            source: _source_perplexity(
                [row for row in model_rows if row.source == source], digest, seed=seed, resamples=resamples
            )
            for source, digest in digests.items()
        }
        for name, model_rows in rows.items()
    }


def compare_pairs(
    rows: Mapping[str, Sequence[DocumentRow]], pairs: Sequence[ModelPair], *, seed: int, resamples: int
) -> list[Comparison]:
    """Compute the paired difference in log-loss for each pair of models and each source.

    A pair without two comparable documents has none, with a warning: the results of the models are kept.
    """
    results = {
        name: ResultRows(name=name, documents=[{row.item_key(): row for row in model_rows}], tasks={})
        for name, model_rows in rows.items()
    }
    comparisons: list[Comparison] = []
    for pair in pairs:
        against, model = results[pair.against], results[pair.model]
        differences = result_differences(against, model, seed=seed, resamples=resamples)
        if not differences:
            reason = no_differences_error(against, model).message
            warn(f"no paired difference in perplexity: {reason}")
        comparisons += differences
    return comparisons


def _source_perplexity(rows: Sequence[DocumentRow], digest: str, *, seed: int, resamples: int) -> Perplexity:
    """Compute one model's perplexity exp(Σ nll / Σ tokens) on one source, with a bootstrap over documents."""
    # A document of one token has no scored token.
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
