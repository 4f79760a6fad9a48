"""Tables of benchmark questions in the corpus, and of the scores on them."""

from collections.abc import Mapping
from typing import Any

from meditron.report.evaluation_tables import ResultTable
from meditron.report.number_format import count, interval, percent
from meditron.store.results import ContaminationGroup, EvaluationResult

__all__ = ["CONTAMINATION", "benchmark_table", "contamination_table"]

CONTAMINATION = (
    "A document contains a question if it has its whole text (of fewer than 8 words: with its options), its "
    "text with up to a fifth of the words changed, 13-word runs that cover 30 % of it and are in no other "
    "question, or half of the 5-word runs of its context. Case, accents and punctuation are ignored."
)
_GROUPS: dict[ContaminationGroup, str] = {
    "trained": "in the training text",
    "removed": "in the sources, removed before training",
    "not found": "not in the sources",
    "not searched": "not searched for",
}
_SPLITS = {"removed": "removed", "train": "in the training split", "heldout": "held out"}


def benchmark_table(metrics: Mapping[str, Any]) -> ResultTable:
    """Return the questions found in a corpus: a row per benchmark.

    Args:
        metrics: `contamination` of the corpus stage's metrics.
    """
    rows = [
        (
            name,
            count(found["questions"]),
            count(found["found"]),
            percent(found["found"] / found["questions"]),
            count(sum(found["sources"].values())),
            ", ".join(f"{source} {count(number)}" for source, number in found["sources"].items()),
            ", ".join(f"{_SPLITS[split]} {count(number)}" for split, number in found["splits"].items()),
            ", ".join(f"{kind} {count(number)}" for kind, number in found["kinds"].items()),
        )
        for name, found in metrics.items()
    ]
    headers = ("benchmark", "questions", "found", "share", "documents", "by source", "documents are", "kinds")
    return ResultTable("Benchmark questions found in the sources", headers, rows)


def contamination_table(result: EvaluationResult) -> ResultTable:
    """Return the accuracy on questions that the training corpus contained and on the others.

    Without rows if the corpus of no evaluated model was searched for questions.
    """
    tasks = dict.fromkeys(task for scores in result.tasks.values() for task in scores)
    rows = [
        (task, label, model, count(part.n), percent(part.accuracy), interval(part.interval, percent))
        for task in tasks
        for group, label in _GROUPS.items()
        for model, scores in result.tasks.items()
        if task in scores and (part := scores[task].contamination.get(group))
    ]
    caption = "Accuracy by whether the documents of the training corpus contained the question"
    headers = ("task", "question", "model", "n", "accuracy", "95 % interval")
    return ResultTable(caption, headers, rows)
