"""Fidelity: the distance between two models' next-token predictions on held-out text.

KL(against ‖ model) is the cost, in nats per token, of predicting with `model` if the distribution of
`against` is the true one. Its 99th percentile shows the few tokens on which a quantized model fails, which a
mean hides. Both models read the same token ids, always in float32: the rounding of a narrower number format
would be measured as a difference between the models.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import torch
import torch.nn.functional as F

from meditron.core.errors import UsageError
from meditron.core.statistics import MAX_EXPONENT, Interval, bootstrap_ratio, finite_exp
from meditron.engine.base import GivesLogits
from meditron.evaluate.heldout import data_digest
from meditron.evaluate.model import EvalModel
from meditron.evaluate.rows import FidelityRow
from meditron.evaluate.rows_file import RowsFile, run_resumable
from meditron.store.corpus import CorpusDocument
from meditron.store.manifest import fingerprint
from meditron.store.results import Fidelity

__all__ = ["DTYPE", "compare_distributions", "summarize"]

# Shapes: S predicted tokens of a document, C tokens of a chunk, V vocabulary size.

DTYPE: Final = "float32"
_GROUP_SIZE = 8  # documents that are compared between two writes of the rows file
_ONE_TOKENIZER = "fidelity needs two models with the same tokenizer"


def compare_distributions(
    model: EvalModel,
    against: EvalModel,
    documents: Mapping[str, Sequence[CorpusDocument]],
    document_tokens: int,
    file: RowsFile[FidelityRow],
) -> list[FidelityRow]:
    """Compare the next-token distributions of two models on every document.

    Args:
        model: The model, such as a quantized model.
        against: The reference model, such as the unquantized one. Its distribution is taken as true.
        documents: Source → documents.
        document_tokens: Maximum number of tokens per document.
        file: The rows file. Rows with the same cache key are reused; new rows are appended.

    Returns:
        The rows in the documents' order.

    Raises:
        UsageError: the models have different tokenizers, or an engine does not return distributions.
        MeditronError: a prediction is infinite or NaN.
    """
    ordered = [document for source in sorted(documents) for document in documents[source]]
    # Documents are processed one at a time, so the batch size does not change the result.
    cache_key = fingerprint(
        {
            "model": model.cache_identity,
            "against": against.cache_identity,
            "data": data_digest(ordered),
            "document_tokens": document_tokens,
        }
    )
    groups = [ordered[start : start + _GROUP_SIZE] for start in range(0, len(ordered), _GROUP_SIZE)]

    def compare_group(group: Sequence[CorpusDocument]) -> list[FidelityRow]:
        _refuse_different_vocabularies(model, against)
        return [_measure_document(model, against, document, document_tokens, cache_key) for document in group]

    rows = run_resumable(
        file,
        model.name,
        cache_key,
        groups,
        lambda text: (text.source, text.id, text.sha256),
        compare_group,
        unit="documents",
        about=f" against {against.name}",
    )
    # A reused row may name the same reference model differently; the current name is set.
    return [
        rows[document.source, document.id, document.sha256].model_copy(update={"against": against.name})
        for document in ordered
    ]


def _refuse_different_vocabularies(model: EvalModel, against: EvalModel) -> None:
    sizes = [side.logits_engine.vocab_size for side in (model, against)]
    if sizes[0] != sizes[1]:
        raise UsageError(
            f"{model.name} has a vocabulary of {sizes[0]} tokens and {against.name} one of {sizes[1]}: "
            "they are not comparable",
            hint=_ONE_TOKENIZER,
        )


def _measure_document(
    model: EvalModel, against: EvalModel, document: CorpusDocument, document_tokens: int, cache_key: str
) -> FidelityRow:
    engines = (model.logits_engine, against.logits_engine)
    limit = min(document_tokens, *(engine.context for engine in engines))
    # Tokenizers with vocabularies of the same size can still differ (normalizers, added tokens).
    ids, other_ids = (engine.tokenizer.encode(document.text) for engine in engines)
    if ids != other_ids:
        raise UsageError(
            f"{model.name} and {against.name} split {document.id} into different tokens", hint=_ONE_TOKENIZER
        )
    nlls, kl_S, agree = _compare_document(*engines, ids[:limit])
    model.require_finite(f"a prediction of {document.id}", *nlls, float(kl_S.sum()))
    return FidelityRow(
        **model.row_fields(cache_key),
        against=against.name,
        source=document.source,
        id=document.id,
        nll=nlls[0],
        nll_against=nlls[1],
        # Six digits are enough for a quantile; 17 digits for every token would take much disk space.
        kl=tuple(float(f"{value:.6g}") for value in kl_S),
        agree=agree,
        truncated=len(ids) > limit,
        text_sha256=document.sha256,
    )


@torch.inference_mode()
def _compare_document(
    model: GivesLogits, against: GivesLogits, ids: Sequence[int]
) -> tuple[tuple[float, float], np.ndarray, int]:
    """Compare the predictions of two models on one document.

    Returns:
        The summed negative log-likelihood of each model, the KL divergence of each token, and the number of
        tokens for which both models have the same most likely prediction.
    """
    # Summed in float64, because a float32 sum of thousands of terms loses digits.
    nlls = torch.zeros(2, dtype=torch.float64)
    kl_S, agree, start = [np.zeros(0)], 0, 0
    # The last token is a target only. Engines yield chunks because S × V logits do not fit in memory.
    chunks = zip(model.log_probs(ids[:-1]), against.log_probs(ids[:-1]), strict=True) if ids[1:] else ()
    for pair in chunks:
        p_CV, q_CV = map(torch.as_tensor, pair)
        targets_C1 = torch.tensor(ids[start + 1 : start + 1 + len(p_CV)], device=p_CV.device)[:, None]
        for index, logp_CV in enumerate((p_CV, q_CV)):
            nlls[index] -= logp_CV.gather(1, targets_C1).double().sum().cpu()
        agree += int((p_CV.argmax(-1) == q_CV.argmax(-1)).sum())
        # KL(q ‖ p) is never negative; values below zero are rounding errors and set to 0.
        kl_C = F.kl_div(p_CV, q_CV, reduction="none", log_target=True).sum(-1, dtype=torch.float64)
        kl_S.append(kl_C.clamp(min=0).cpu().numpy())
        start += len(p_CV)
    return (float(nlls[0]), float(nlls[1])), np.concatenate(kl_S), agree


def summarize(
    rows: Sequence[FidelityRow],
    documents: Mapping[str, Sequence[CorpusDocument]],
    *,
    seed: int,
    resamples: int,
) -> list[Fidelity]:
    """Return the fidelity of one pair of models for each source, with bootstrap intervals over documents."""
    by_source: dict[str, list[FidelityRow]] = {}
    for row in rows:
        # A document of one token has no predicted token.
        if row.kl:
            by_source.setdefault(row.source, []).append(row)
    return [
        _summarize_source(source_rows, data_digest(documents[source]), seed=seed, resamples=resamples)
        for source, source_rows in by_source.items()
        if len(source_rows) >= 2
    ]


def _summarize_source(rows: Sequence[FidelityRow], digest: str, *, seed: int, resamples: int) -> Fidelity:
    tokens = [len(row.kl) for row in rows]
    total = sum(tokens)

    def ratio_with_interval(
        values: Sequence[float], low: float, high: float
    ) -> tuple[float, Interval | None]:
        return bootstrap_ratio(values, tokens, seed=seed, resamples=resamples, bounds=(low, high))

    # Bounds of the intervals: those of exp; KL is never negative, and agreement is a proportion.
    differences = [row.nll - row.nll_against for row in rows]
    excess, excess_interval = ratio_with_interval(differences, -MAX_EXPONENT, MAX_EXPONENT)
    kl_mean, kl_interval = ratio_with_interval([math.fsum(row.kl) for row in rows], 0, math.inf)
    agreement, agreement_interval = ratio_with_interval([row.agree for row in rows], 0, 1)
    return Fidelity(
        model=rows[0].model,
        against=rows[0].against,
        source=rows[0].source,
        documents=len(rows),
        n_tokens=total,
        perplexity=finite_exp(sum(row.nll for row in rows) / total),
        perplexity_against=finite_exp(sum(row.nll_against for row in rows) / total),
        perplexity_ratio=finite_exp(excess),
        kl_mean=kl_mean,
        kl_99=float(np.quantile([value for row in rows for value in row.kl], 0.99)),
        top_agreement=agreement,
        intervals={
            "perplexity_ratio": excess_interval
            and (math.exp(excess_interval.low), math.exp(excess_interval.high)),
            "kl_mean": kl_interval,
            "top_agreement": agreement_interval,
        },
        truncated=sum(row.truncated for row in rows),
        data_sha256=digest,
    )
