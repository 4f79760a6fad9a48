"""The evaluation as a page for the browser."""

from collections.abc import Sequence
from pathlib import Path

from meditron.report import evaluation_tables
from meditron.report.charts import intervals
from meditron.report.evaluation_sections import add_fidelity, add_tasks
from meditron.report.pages import Page
from meditron.store.results import Comparison, EvaluationResult, Perplexity

__all__ = ["write_report"]

_HOW = (
    "Perplexity is exp of the mean negative log-likelihood per token, in nats, of held-out documents: every "
    "token but a document's first is predicted from all before it. Its 95 % interval is a bootstrap-t over "
    "documents. A difference in log-loss is the mean over documents of the second model's loss per token "
    "minus the first's, on the same documents; below zero the second is better. p is from an exact sign-flip "
    "test up to 20 documents, from the bootstrap-t above, and McNemar's exact one for accuracies; verdicts "
    "take p adjusted for all comparisons of this report (Holm). Below 6 documents or questions there is no "
    "interval and no verdict. The smallest detectable difference is the smallest true one that a single test "
    "at 5 % finds with 80 % power."
)


def write_report(path: Path, result: EvaluationResult) -> None:
    """Write the page: tables, intervals drawn, how it was measured and on what."""
    page = Page(
        "Evaluation", "Held-out text, tasks and fidelity: what each model is worth, and how sure that is"
    )
    page.section("Perplexity")
    table = evaluation_tables.measures(result, {})
    told = [index for index, header in enumerate(table.headers) if header != "domain"]
    page.table(_some(table.headers, told), [_some(row, told) for row in table.rows])
    for source, scores in _by_source(result).items():
        rows = [(score.model, score.perplexity, score.interval) for score in scores]
        page.figure(intervals(rows, "perplexity"), f"{source}: perplexity with its 95 % interval")
    add_tasks(page, result)
    add_fidelity(page, result)
    if result.differences:
        _add_differences(page, result)
    page.section("How it was measured")
    page.text(_HOW)
    page.text(
        f"Weights and activations in {result.dtype}, head and loss in float32; {result.resamples:,} "
        f"resamples, seed {result.seed}. Every document's figure stands in {result.rows}."
    )
    if truncated := evaluation_tables.truncated(result):
        page.text(truncated)
    page.table(("model", "run by"), list(result.engines.items()))
    page.table(("model", "training data"), [(name, data.statement) for name, data in result.ancestry.items()])
    page.table(
        ("source", "SHA-256 of the documents' ids and texts", "documents cut"),
        [(s, scores[0].data_sha256, scores[0].truncated) for s, scores in _by_source(result).items()],
    )
    page.write(path)


def _some(cells: Sequence[str], columns: Sequence[int]) -> list[str]:
    return [cells[column] for column in columns]


def _add_differences(page: Page, result: EvaluationResult) -> None:
    page.section("Paired differences")
    table = evaluation_tables.differences(result.differences)
    page.table(table.headers, table.rows, caption=table.caption)
    _draw(page, [d for d in result.differences if not d.task], "difference in nats", "below")
    _draw(page, [d for d in result.differences if d.task], "difference in accuracy", "above")


def _draw(page: Page, found: Sequence[Comparison], axis: str, better: str) -> None:
    if found:
        rows = [(f"{d.b} − {d.a}, {d.source or d.task}", d.difference, d.interval) for d in found]
        page.figure(intervals(rows, axis, reference=0), f"{better} zero the second model is better")


def _by_source(result: EvaluationResult) -> dict[str, list[Perplexity]]:
    sources = sorted({source for scores in result.perplexity.values() for source in scores})
    return {s: [scores[s] for scores in result.perplexity.values() if s in scores] for s in sources}
