"""The evaluate stage: how well models predict held-out text, and by how much they differ."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from meditron.evaluate.compare import Result, differences
from meditron.evaluate.config import CORPUS, EvaluateConfig
from meditron.evaluate.heldout import choose, data_digest, refuse_overlap
from meditron.evaluate.report import write_report
from meditron.evaluate.rows import FILE_NAME, Row, RowsFile
from meditron.evaluate.scoring import score
from meditron.ground.statistics import bootstrap_ratio
from meditron.store.artifact import Artifact
from meditron.store.corpus import Text
from meditron.store.results import Comparison, EvaluationResult, Perplexity, write_results

__all__ = ["run", "summarize"]


def run(config: EvaluateConfig, inputs: Mapping[str, Artifact], out: Path) -> dict[str, Any]:
    """Score every model on the held-out documents; called again after a kill, go on where it stopped.

    Writes `perplexity.jsonl` (a row a model and document), `results.json` and `report.html`.

    Raises:
        MeditronError: a held-out document stands in the corpus' training files, or a model's loss on one is
            not a number.
        InputError: the corpus has nothing held out, or its files, a model's or the rows are damaged.
    """
    corpus = inputs[CORPUS].path
    documents = choose(corpus, config.documents)
    compared = refuse_overlap(corpus, documents)
    with RowsFile(out) as file:
        rows = [row for name in config.models for row in score(name, inputs[name], documents, config, file)]
        file.finish(rows)
    result = summarize(config, documents, rows)
    write_results(out, result)
    write_report(out / "report.html", result)
    overlap = {"overlap": 0, "training_documents_compared": compared}
    return result.model_dump(mode="json") | overlap


def summarize(
    config: EvaluateConfig, documents: Mapping[str, Sequence[Text]], rows: Sequence[Row]
) -> EvaluationResult:
    """Perplexities by model and source, and the differences asked for, with their intervals."""
    seed = config.seed or 0
    by_model = {name: [row for row in rows if row.model == name] for name in config.models}
    digests = {source: data_digest(chosen) for source, chosen in documents.items()}
    perplexity = {
        name: {
            source: _perplexity(
                [row for row in own if row.source == source], digest, seed=seed, resamples=config.resamples
            )
            for source, digest in digests.items()
        }
        for name, own in by_model.items()
    }
    found: list[Comparison] = []
    for pair in config.pairs():
        a, b = (
            Result(name, {(row.source, row.id): row for row in by_model[name]})
            for name in (pair.against, pair.model)
        )
        found += differences(a, b, seed=seed, resamples=config.resamples)
    return EvaluationResult(
        perplexity=perplexity,
        differences=found,
        rows=FILE_NAME,
        dtype=config.dtype,
        seed=seed,
        resamples=config.resamples,
    )


def _perplexity(rows: Sequence[Row], digest: str, *, seed: int, resamples: int) -> Perplexity:
    """exp(Σ nll / Σ tokens) of one model's rows of one source; the interval resamples documents."""
    scored = [row for row in rows if row.tokens]
    nlls, tokens = [row.nll for row in scored], [row.tokens for row in scored]
    nll, interval = bootstrap_ratio(nlls, tokens, seed=seed, resamples=resamples)
    return Perplexity(
        model=rows[0].model,
        source=rows[0].source,
        documents=len(scored),
        tokens=sum(tokens),
        nll=nll,
        perplexity=math.exp(nll),
        interval=(math.exp(interval.low), math.exp(interval.high)),
        bits_per_byte=sum(nlls) / math.log(2) / max(1, sum(row.bytes for row in scored)),
        cut=sum(row.cut for row in scored),
        data_sha256=digest,
    )
