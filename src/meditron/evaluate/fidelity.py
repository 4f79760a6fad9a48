"""How far a model's predictions lie from another's, token by token, on held-out text.

KL(against ‖ model) asks how many nats a token one loses by believing the model where the other's distribution
is the truth; its 99th percentile tells of the few tokens where a quantized model went astray, which a mean
hides. Both models read the same ids; weights, activations and logits are float32 whatever the evaluation's
own number format is, for the rounding of a narrower one would pass for the model's.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F

from meditron.core.errors import UsageError
from meditron.core.statistics import Interval, bootstrap_ratio
from meditron.evaluate.heldout import data_digest
from meditron.evaluate.model import EvalModel
from meditron.evaluate.rows import FidelityRow, RowsFile, run_resumable
from meditron.evaluate.scoring import not_a_number
from meditron.store.corpus import CorpusDocument
from meditron.store.manifest import fingerprint
from meditron.store.results import Fidelity

__all__ = ["DTYPE", "hold_against", "summarize"]

# Legend: S predicted tokens of a document, C of them at a time, D width, V vocabulary.

DTYPE = "float32"
_TOGETHER = 8  # documents between two writes


def hold_against(
    model: EvalModel,
    against: EvalModel,
    documents: Mapping[str, Sequence[CorpusDocument]],
    max_tokens: int,
    file: RowsFile[FidelityRow],
) -> list[FidelityRow]:
    """The rows of a pair of models, in the documents' order; those that `file` holds are taken from there.

    Raises:
        UsageError: the models do not read the same tokens.
        MeditronError: a figure is not a number.
    """
    every = [document for source in sorted(documents) for document in documents[source]]
    cache_key = fingerprint(
        {
            "model": model.identity,
            "against": against.identity,
            "data": data_digest(every),
            "max_tokens": max_tokens,
        }
    )
    groups = [every[start : start + _TOGETHER] for start in range(0, len(every), _TOGETHER)]

    def work(group: Sequence[CorpusDocument]) -> list[FidelityRow]:
        _refuse_other_vocabulary(model, against)
        return [_row(model, against, document, max_tokens, cache_key) for document in group]

    rows = run_resumable(
        file,
        model.name,
        cache_key,
        groups,
        lambda text: (text.source, text.id, text.sha256),
        work,
        unit="documents",
        about=f" against {against.name}",
    )
    found = [rows[document.source, document.id, document.sha256] for document in every]
    return [row.model_copy(update={"against": against.name}) for row in found]


def _refuse_other_vocabulary(model: EvalModel, against: EvalModel) -> None:
    sizes = [each.engine.model.config.vocab_size for each in (model, against)]
    if sizes[0] != sizes[1]:
        raise UsageError(
            f"{model.name} predicts {sizes[0]} tokens and {against.name} {sizes[1]}: they do not compare",
            hint="fidelity is of two models with one tokenizer",
        )


def _row(
    model: EvalModel, against: EvalModel, document: CorpusDocument, max_tokens: int, cache_key: str
) -> FidelityRow:
    both = (model, against)
    limit = min(max_tokens, *(each.engine.model.config.max_position_embeddings for each in both))
    whole, others = (each.engine.tokenizer.encode(document.text) for each in both)
    if whole != others:
        raise UsageError(
            f"{model.name} and {against.name} read {document.id} as different tokens",
            hint="fidelity is of two models with one tokenizer",
        )
    ids = whole[:limit]
    nlls, kl_S, agree = _measured(model, against, ids)
    for figure in (*nlls, float(kl_S.sum())):
        if not math.isfinite(figure):
            raise not_a_number(model.name, f"a prediction of {document.id}", figure)
    return FidelityRow(
        **model.row(cache_key),
        against=against.name,
        source=document.source,
        id=document.id,
        nll=nlls[0],
        nll_against=nlls[1],
        kl=tuple(float(f"{value:.6g}") for value in kl_S),
        agree=agree,
        truncated=len(whole) > limit,
        text_sha256=document.sha256,
    )


@torch.inference_mode()
def _measured(
    model: EvalModel, against: EvalModel, ids: Sequence[int]
) -> tuple[tuple[float, float], np.ndarray, int]:
    """((nll of both, summed), KL of each token, tokens on which both agree) over one document."""
    both = [each.engine for each in (model, against)]
    rows = torch.tensor([list(ids)], device=both[0].model.head_weight.device)
    targets_S = rows[0, 1:]
    hidden = [each.model(rows[:, :-1])[0] for each in both]
    chunks = (each.head.chunks(hidden_SD) for each, hidden_SD in zip(both, hidden, strict=True))
    nlls = torch.zeros(2, dtype=torch.float64)
    kl_S, agree = [np.zeros(0)], 0
    for (here, ours_CV), (_, theirs_CV) in zip(*chunks, strict=True):
        p_CV, q_CV = (torch.log_softmax(each, dim=-1, out=each) for each in (ours_CV, theirs_CV))
        for index, logp_CV in enumerate((p_CV, q_CV)):
            nlls[index] -= logp_CV.gather(1, targets_S[here, None]).double().sum().cpu()
        agree += int((p_CV.argmax(-1) == q_CV.argmax(-1)).sum())
        # KL(q ‖ p); an excess of rounding below zero is zero.
        kl_C = F.kl_div(p_CV, q_CV, reduction="none", log_target=True).sum(-1, dtype=torch.float64)
        kl_S.append(kl_C.clamp(min=0).cpu().numpy())
    return (float(nlls[0]), float(nlls[1])), np.concatenate(kl_S), agree


def summarize(
    rows: Sequence[FidelityRow],
    documents: Mapping[str, Sequence[CorpusDocument]],
    *,
    seed: int,
    resamples: int,
) -> list[Fidelity]:
    """The figures of one pair by source, with bootstrap intervals over documents."""
    by_source: dict[str, list[FidelityRow]] = {}
    for row in rows:
        if row.kl:
            by_source.setdefault(row.source, []).append(row)
    return [
        _fidelity(own, data_digest(documents[source]), seed=seed, resamples=resamples)
        for source, own in by_source.items()
        if len(own) >= 2
    ]


def _fidelity(rows: Sequence[FidelityRow], digest: str, *, seed: int, resamples: int) -> Fidelity:
    tokens = [len(row.kl) for row in rows]
    total = sum(tokens)

    def ratio(values: Sequence[float], low: float, high: float) -> tuple[float, Interval | None]:
        return bootstrap_ratio(values, tokens, seed=seed, resamples=resamples, bounds=(low, high))

    # Beyond 700 nats exp overflows; KL is never negative, and agreement is a share.
    excess, around = ratio([row.nll - row.nll_against for row in rows], -700, 700)
    kl_mean, kl_interval = ratio([math.fsum(row.kl) for row in rows], 0, math.inf)
    top, top_interval = ratio([row.agree for row in rows], 0, 1)
    return Fidelity(
        model=rows[0].model,
        against=rows[0].against,
        source=rows[0].source,
        documents=len(rows),
        n_tokens=total,
        perplexity=math.exp(sum(row.nll for row in rows) / total),
        perplexity_against=math.exp(sum(row.nll_against for row in rows) / total),
        perplexity_ratio=math.exp(excess),
        kl_mean=kl_mean,
        kl_99=float(np.quantile([value for row in rows for value in row.kl], 0.99)),
        top_agreement=top,
        intervals={
            "perplexity_ratio": around and (math.exp(around.low), math.exp(around.high)),
            "kl_mean": kl_interval,
            "top_agreement": top_interval,
        },
        truncated=sum(row.truncated for row in rows),
        data_sha256=digest,
    )
