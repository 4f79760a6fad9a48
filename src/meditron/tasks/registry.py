"""The one door to a task: a registered name, or a file of multiple-choice questions."""

from pathlib import Path

from meditron.ground.errors import UsageError
from meditron.tasks.task import Task

__all__ = ["open_task"]


def open_task(spec: str, *, corpus: Path | None = None, layout: str | None = None) -> Task:
    """The task of this name, or of this file; its rows are read when they are asked for.

    Args:
        spec: a registered name (`pubmed-sections`), or a JSONL, JSON or CSV file of questions.
        corpus: the folder of a corpus artifact, for tasks made from one.
        layout: a name in LAYOUTS; the task's own when absent.

    Raises:
        UsageError: no such task, file or layout; the task needs a corpus and none is given.
        InputError: the file's first row has the shape of no known benchmark.
    """
    raise UsageError(f"no task '{spec}'")
