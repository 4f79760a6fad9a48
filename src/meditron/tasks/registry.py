"""Opening of tasks by registered name or from a file of multiple-choice questions.

To add a task that is made from a corpus, write a module and add one line to TASKS.
"""

from collections.abc import Callable
from dataclasses import replace
from difflib import get_close_matches
from pathlib import Path

from meditron.core.errors import SourceError, UsageError
from meditron.tasks.artificial_questions import ARTIFICIAL, pubmedqa_artificial
from meditron.tasks.benchmarks import BENCHMARKS, open_benchmark
from meditron.tasks.file_task import open_file_task
from meditron.tasks.formats import FORMATS
from meditron.tasks.prompt_template import find_prompt_template
from meditron.tasks.sections import NAME, pubmed_sections
from meditron.tasks.task import Task

__all__ = ["TASKS", "open_task"]

TASKS: dict[str, Callable[[Path], Task]] = {NAME: pubmed_sections, ARTIFICIAL: pubmedqa_artificial}
"""Name of a task → function that makes the task from the folder of a corpus."""


def open_task(spec: str, *, corpus: Path | None = None, template: str | None = None) -> Task:
    """Open a task by registered name or file.

    Args:
        spec: A name in TASKS; a name in BENCHMARKS, if not read from the hub with `:` and its folder or file
            (`mmlu-medical:data/mmlu`); a definition of lm-eval (.yaml); or a JSONL, JSON or CSV file of
            questions, plain or compressed.
        corpus: Folder of a corpus, for tasks that are made from one.
        template: A name in PROMPT_TEMPLATES or a prompt file; default: the task's own.

    Raises:
        UsageError: no such task or template; the task needs a corpus and none is given.
        SourceError: no such file.
        InputError: the file is damaged, of unknown format, or has a row that is not a question; names the
            line.
    """
    prompt_template = find_prompt_template(template) if template is not None else None
    task = _open_named_task(spec, corpus)
    return replace(task, template=prompt_template) if prompt_template else task


def _open_named_task(spec: str, corpus: Path | None) -> Task:
    if spec in TASKS:
        if corpus is None:
            raise UsageError(
                f"{spec} is made from a corpus, but no corpus is given", hint="name the folder of a corpus"
            )
        return TASKS[spec](corpus)
    name, colon, reference = spec.partition(":")
    if name in BENCHMARKS:
        return open_benchmark(BENCHMARKS[name], reference if colon else None)
    path = Path(spec)
    if path.is_file() and path.suffix in (".yaml", ".yml"):
        # Imported here: other tasks need neither YAML nor jinja2.
        from meditron.tasks.lm_eval_yaml import open_lm_eval_task

        return open_lm_eval_task(path)
    if path.is_file():
        return open_file_task(path)
    # A suffix or folder shows that a file was meant, so the error is about a file and not about a name.
    if path.suffix or len(path.parts) > 1:
        raise SourceError(f"{spec}: no such file, and no task of that name", hint=_known_tasks_hint())
    near = get_close_matches(spec, [*TASKS, *BENCHMARKS], n=1)
    raise UsageError(f"no task '{spec}'", hint=f"did you mean {near[0]}?" if near else _known_tasks_hint())


def _known_tasks_hint() -> str:
    published = (
        f"{known.dataset} ({', '.join(known.published_files)})" for known in FORMATS if known.published_files
    )
    names = ", ".join((*TASKS, *BENCHMARKS))
    return f"tasks: {names}; or a file of questions: yours, or as published by {', '.join(published)}"
