"""The evaluation as a page for the browser."""

from collections.abc import Sequence
from pathlib import Path

from meditron.ground.charts import intervals
from meditron.ground.pages import Page
from meditron.store.results import Comparison, EvaluationResult, Perplexity

__all__ = ["write_report"]

_PERPLEXITY = ("source", "model", "documents", "tokens", "perplexity", "95 % interval", "bits per byte")
_DIFFERENCE = ("measure", "b − a", "n", "difference", "95 % interval", "p", "detectable")
_HOW = (
    "Perplexity is exp of the mean negative log-likelihood per token, in nats, of held-out documents: every "
    "token but a document's first is predicted from all before it. Its interval is the 95 % percentile "
    "interval of a bootstrap over documents. A difference is the mean over documents of the second model's "
    "loss per token minus the first's, on the same documents; below zero the second is better. 'detectable' "
    "is the smallest true difference that so many documents show with 80 % power."
)


def write_report(path: Path, result: EvaluationResult) -> None:
    """Write the page: tables, intervals drawn, how it was measured and on what."""
    page = Page("Evaluation", "Held-out text: how well each model predicts it")
    page.section("Perplexity")
    page.table(_PERPLEXITY, _perplexity_rows(result))
    for source, scores in _by_source(result).items():
        rows = [(score.model, score.perplexity, *score.interval) for score in scores]
        page.figure(intervals(rows, "perplexity"), f"{source}: perplexity with its 95 % interval")
    if result.differences:
        page.section("Paired differences")
        page.table(_DIFFERENCE, _difference_rows(result.differences))
        rows = [(f"{d.b} − {d.a}, {d.source}", d.difference, *d.interval) for d in result.differences]
        page.figure(intervals(rows, "difference in nats"), "below zero the second model is better")
    page.section("How it was measured")
    page.text(_HOW)
    page.text(
        f"Weights and activations in {result.dtype}, head and loss in float32; {result.resamples:,} "
        f"resamples, seed {result.seed}. Every document's figure stands in {result.rows}."
    )
    page.table(
        ("source", "SHA-256 of the documents' ids and texts", "documents cut"),
        [(s, scores[0].data_sha256, scores[0].cut) for s, scores in _by_source(result).items()],
    )
    page.write(path)


def _by_source(result: EvaluationResult) -> dict[str, list[Perplexity]]:
    sources = sorted({source for scores in result.perplexity.values() for source in scores})
    return {s: [scores[s] for scores in result.perplexity.values() if s in scores] for s in sources}


def _perplexity_rows(result: EvaluationResult) -> list[Sequence[object]]:
    return [
        (
            source,
            score.model,
            f"{score.documents:,}",
            f"{score.tokens:,}",
            f"{score.perplexity:.2f}",
            f"{score.interval[0]:.2f} … {score.interval[1]:.2f}",
            f"{score.bits_per_byte:.3f}",
        )
        for source, scores in _by_source(result).items()
        for score in scores
    ]


def _difference_rows(differences: Sequence[Comparison]) -> list[Sequence[object]]:
    return [
        (
            found.what,
            f"{found.b} − {found.a}",
            f"{found.n:,}",
            f"{found.difference:+.4f}",
            f"{found.interval[0]:+.4f} … {found.interval[1]:+.4f}",
            f"{found.p:.4f}",
            f"{found.detectable:.4f}",
        )
        for found in differences
    ]
