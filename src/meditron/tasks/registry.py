"""Opening of tasks by registered name or from files: user files, published benchmarks, lm-eval's definitions.

To add a task that is made from a corpus, write a module and add one line to TASKS.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from difflib import get_close_matches
from pathlib import Path

from meditron.core.errors import SourceError, UsageError
from meditron.store.fetch import fetch
from meditron.store.files import path_exists
from meditron.tasks.artificial_questions import ARTIFICIAL, pubmedqa_artificial
from meditron.tasks.benchmarks import BENCHMARKS, Benchmark, open_benchmark
from meditron.tasks.file_task import name_in_reference, open_file_task
from meditron.tasks.formats import FORMATS
from meditron.tasks.prompt_template import find_prompt_template
from meditron.tasks.sections import NAME, pubmed_sections
from meditron.tasks.task import Task

__all__ = [
    "TASKS",
    "TaskReference",
    "is_lm_eval_definition",
    "open_task",
    "parse_benchmarks",
    "parse_task",
    "parse_tasks",
]

TASKS: dict[str, Callable[[Path], Task]] = {
    NAME: pubmed_sections,
    ARTIFICIAL: pubmedqa_artificial,
}
"""Name of a task → function that makes the task from the folder of a corpus."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskReference:
    """A task as a command or a recipe names it, without opening its files."""

    name: str | None
    """Name of the task in results; None for a definition of lm-eval, which contains its name."""
    source: str | None = None
    """Source of the task's files; None for a task that is made from a corpus."""
    benchmark: Benchmark | None = None
    """The published benchmark that it is."""


def parse_task(spec: str) -> TaskReference:
    """Return the task that a text names; commands and recipes name tasks alike.

    Args:
        spec: A name in TASKS; a name in BENCHMARKS, if not read from the hub with `:` and its folder, file or
            source (`mmlu-medical:data/mmlu`); or a file or source of questions or of a definition of lm-eval.

    Raises:
        UsageError: it is none of these, or the hub has no readable copy of the benchmark.
    """
    if spec in TASKS:
        return TaskReference(name=spec)
    name, _, source = spec.partition(":")
    if benchmark := BENCHMARKS.get(name):
        if not (source or benchmark.hub):
            raise UsageError(
                f"{name}: the hub has no copy that can be read",
                hint=f"name a folder or file: {name}:FOLDER",
            )
        return TaskReference(name=benchmark.task_name, source=source or benchmark.hub, benchmark=benchmark)
    # Registered names contain none of these marks; an address, and a path with a suffix or folder, does.
    if any(mark in spec for mark in "./:") or path_exists(Path(spec)):
        return TaskReference(
            name=None if is_lm_eval_definition(spec) else name_in_reference(spec), source=spec
        )
    near = get_close_matches(spec, [*TASKS, *BENCHMARKS], n=1)
    raise UsageError(f"no task '{spec}'", hint=f"did you mean {near[0]}?" if near else _known_tasks_hint())


def parse_tasks(specs: Iterable[str]) -> dict[str, TaskReference]:
    """Return text → task, for tasks whose results are written side by side.

    Raises:
        UsageError: a text names no task (see `parse_task`) or is repeated, or two tasks have the same name.
    """
    tasks: dict[str, TaskReference] = {}
    for spec in specs:
        if spec in tasks:
            raise UsageError(f"'{spec}' is listed twice")
        task = parse_task(spec)
        other = next((text for text, known in tasks.items() if task.name and known.name == task.name), None)
        if other is not None:
            raise UsageError(
                f"'{other}' and '{spec}' would both be named '{task.name}'", hint="rename one file"
            )
        tasks[spec] = task
    return tasks


def parse_benchmarks(specs: Iterable[str]) -> dict[str, TaskReference]:
    """Return text → task, for tasks whose questions training data is searched for.

    Raises:
        UsageError: as of `parse_tasks`, or a task is made from the training data itself.
    """
    tasks = parse_tasks(specs)
    for spec, task in tasks.items():
        if task.source is None:
            raise UsageError(f"'{spec}' is made from the corpus itself")
    return tasks


def open_task(
    spec: str, *, corpus: Path | None = None, template: str | None = None, files: Path | None = None
) -> Task:
    """Open a task; its files are fetched if they are not local.

    Args:
        spec: The task, as in `parse_task`.
        corpus: Folder of a corpus, for tasks that are made from one.
        template: A name in PROMPT_TEMPLATES or a prompt file; default: the task's own.
        files: File or folder of the task, if its source is already fetched.

    Raises:
        UsageError: no such task or template; the task needs a corpus and none is given.
        SourceError: no such file.
        InputError: the file is damaged, of unknown format, or has a row that is not a question; names the
            line.
    """
    prompt_template = find_prompt_template(template) if template is not None else None
    task = _open_reference(spec, parse_task(spec), corpus, files)
    return replace(task, template=prompt_template) if prompt_template else task


def _open_reference(spec: str, reference: TaskReference, corpus: Path | None, files: Path | None) -> Task:
    if reference.source is None:
        if corpus is None:
            raise UsageError(
                f"{spec} is made from a corpus, but no corpus is given", hint="name the folder of a corpus"
            )
        return TASKS[spec](corpus)
    if reference.benchmark is not None:
        return open_benchmark(reference.benchmark, files or fetch(reference.source))
    if files is None and ":" not in spec and not Path(spec).expanduser().is_file():
        raise SourceError(f"{spec}: no such file, and no task of that name", hint=_known_tasks_hint())
    path = files or fetch(reference.source)
    if is_lm_eval_definition(spec):
        # Imported here: other tasks need neither YAML nor jinja2.
        from meditron.tasks.lm_eval_yaml import open_lm_eval_task

        return open_lm_eval_task(path)
    return open_file_task(path)


def is_lm_eval_definition(source: str) -> bool:
    """Return True if a source is a definition of lm-eval, by its suffix."""
    return Path(source.partition("@sha256:")[0]).suffix in (".yaml", ".yml")


def _known_tasks_hint() -> str:
    published = (
        f"{known.dataset} ({', '.join(known.published_files)})" for known in FORMATS if known.published_files
    )
    names = ", ".join((*TASKS, *BENCHMARKS))
    return f"tasks: {names}; or a file of questions: yours, or as published by {', '.join(published)}"
