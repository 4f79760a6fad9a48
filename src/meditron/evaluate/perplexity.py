"""Perplexity of held-out text: how well models predict it, and by how much they differ."""

import math
from collections.abc import Mapping, Sequence

from meditron.core.statistics import bootstrap_ratio
from meditron.evaluate.compare import Result, differences
from meditron.evaluate.config import Against
from meditron.evaluate.heldout import data_digest
from meditron.evaluate.rows import DocumentRow
from meditron.store.corpus import CorpusDocument
from meditron.store.results import Comparison, Perplexity

__all__ = ["compared", "summarize"]

_LOSSES = (0.0, 700.0)
"""Nats per token that an interval is cut to: a log-loss is not negative, and exp overflows beyond."""


def summarize(
    rows: Mapping[str, Sequence[DocumentRow]],
    documents: Mapping[str, Sequence[CorpusDocument]],
    *,
    seed: int,
    resamples: int,
) -> dict[str, dict[str, Perplexity]]:
    """Model → source → perplexity with its interval, from each model's rows."""
    digests = {source: data_digest(chosen) for source, chosen in documents.items()}
    return {
        name: {
            source: _perplexity(
                [row for row in own if row.source == source], digest, seed=seed, resamples=resamples
            )
            for source, digest in digests.items()
        }
        for name, own in rows.items()
    }


def compared(
    rows: Mapping[str, Sequence[DocumentRow]], pairs: Sequence[Against], *, seed: int, resamples: int
) -> list[Comparison]:
    """The paired differences of these pairs of models, source by source."""
    results = {name: Result(name, [{row.item(): row for row in own}], {}) for name, own in rows.items()}
    return [
        found
        for pair in pairs
        for found in differences(results[pair.against], results[pair.model], seed=seed, resamples=resamples)
    ]


def _perplexity(rows: Sequence[DocumentRow], digest: str, *, seed: int, resamples: int) -> Perplexity:
    """exp(Σ nll / Σ tokens) of one model's rows of one source; the interval resamples documents."""
    scored = [row for row in rows if row.tokens]
    nlls, tokens = [row.nll for row in scored], [row.tokens for row in scored]
    nll, interval = bootstrap_ratio(nlls, tokens, seed=seed, resamples=resamples, bounds=_LOSSES)
    return Perplexity(
        model=rows[0].model,
        source=rows[0].source,
        documents=len(scored),
        tokens=sum(tokens),
        nll=nll,
        perplexity=math.exp(nll),
        interval=interval and (math.exp(interval.low), math.exp(interval.high)),
        bits_per_byte=sum(nlls) / math.log(2) / max(1, sum(row.bytes for row in scored)),
        truncated=sum(row.truncated for row in scored),
        data_sha256=digest,
    )
