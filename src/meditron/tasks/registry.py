"""The one door to a task: a registered name, or a file of multiple-choice questions.

A new task made from a corpus is its file and a line here.
"""

from collections.abc import Callable
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path

from meditron.core.errors import SourceError, UsageError
from meditron.tasks.files import file_task
from meditron.tasks.prompt_template import find_prompt_template
from meditron.tasks.sections import NAME, pubmed_sections
from meditron.tasks.task import Task

__all__ = ["TASKS", "open_task"]

TASKS: dict[str, Callable[[Path], Task]] = {NAME: pubmed_sections}
"""The tasks that are made from a corpus, by name: each from the folder of a corpus artifact."""


def open_task(spec: str, *, corpus: Path | None = None, template: str | None = None) -> Task:
    """The task of this name, or of this file.

    Args:
        spec: a name in TASKS, or a JSONL, JSON or CSV file of questions, plain or compressed.
        corpus: the folder of a corpus artifact, for tasks that are made from one.
        template: a name in PROMPT_TEMPLATES; the task's own when absent.

    Raises:
        UsageError: no such task, file or template; the task needs a corpus and none is given.
        InputError: the file is damaged, of no known shape, or one of its rows is no question; names the line.
    """
    chosen = find_prompt_template(template) if template is not None else None
    task = _open(spec, corpus)
    return replace(task, template=chosen) if chosen else task


def _open(spec: str, corpus: Path | None) -> Task:
    if spec in TASKS:
        if corpus is None:
            raise UsageError(f"{spec} is made from a corpus, and none is given", hint="name a corpus' folder")
        return TASKS[spec](corpus)
    path = Path(spec)
    if path.is_file():
        return file_task(path)
    if path.suffix or len(path.parts) > 1:
        raise SourceError(
            f"{spec}: no such file, and no task of that name", hint=f"tasks: {', '.join(TASKS)}"
        )
    near = get_close_matches(spec, TASKS, n=1)
    hint = f"did you mean {near[0]}?" if near else f"tasks: {', '.join(TASKS)}; or a file of questions"
    raise UsageError(f"no task '{spec}'", hint=hint)
