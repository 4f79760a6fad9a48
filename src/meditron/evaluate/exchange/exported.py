"""Selection of what is exported: one evaluation of each task, with its questions and prompts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from meditron.core.console import warn
from meditron.core.errors import InputError, UsageError
from meditron.core.statistics import wilson_interval
from meditron.core.units import format_count
from meditron.evaluate.config import EvalOptions
from meditron.evaluate.explain import select_setting
from meditron.evaluate.methods.base import find_method
from meditron.evaluate.methods.registry import METHODS
from meditron.evaluate.result_rows import open_result
from meditron.evaluate.rows import QuestionRow
from meditron.evaluate.settings import Setting, base_template
from meditron.tasks.prompt_template import PROMPT_TEMPLATES, RenderedPrompt
from meditron.tasks.question import Question
from meditron.tasks.registry import open_task
from meditron.tasks.task import Task, prompts_sha256, questions_sha256

__all__ = ["ExportedItem", "ExportedTask", "require_questions", "select_tasks"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedItem:
    """One answered question."""

    row: QuestionRow
    question: Question | None
    """The question; None if the task was not given."""
    prompt: RenderedPrompt | None
    """The prompt, if it can be rendered again: in plain text, from a packaged template or the task's own."""

    @property
    def known_question(self) -> Question:
        """The question, of an item of a task that was given (`require_questions`)."""
        if self.question is None:
            raise AssertionError(f"no question of the row {self.row.id}")
        return self.question


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedTask:
    """One evaluation of a task."""

    name: str
    setting: Setting
    items: Sequence[ExportedItem]
    """The answered questions, in the order of the task, or of their ids."""
    task: Task | None

    @property
    def correct(self) -> int:
        """Number of right answers."""
        return sum(item.row.correct for item in self.items)

    @property
    def accuracy(self) -> float:
        """Fraction of right answers."""
        return self.correct / len(self.items)

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % Wilson interval of the accuracy."""
        return wilson_interval(self.correct, len(self.items))

    @property
    def standard_error(self) -> float | None:
        """Standard error of the accuracy, with n - 1 in the variance; None for one question."""
        n, p = len(self.items), self.accuracy
        return (p * (1 - p) / (n - 1)) ** 0.5 if n > 1 else None

    def settings(self) -> dict[str, str]:
        """Return the settings of the evaluation as texts, without those that are not known."""
        factors = self.setting.factors
        texts = {name: self.setting.shown(name) for name, value in factors.items() if value is not None}
        # The template as the method adapted it, which gives the prompts.
        template = self.setting.first.template
        return texts if template is None else texts | {"template": template}


def require_questions(task: ExportedTask) -> None:
    """Raise UsageError if the texts of a task's questions are not known."""
    if any(item.question is None for item in task.items):
        raise UsageError(
            f"the rows of {task.name} have hashes of the questions, not their texts",
            hint="name the task as it was given to evaluate: --task T",
        )


def select_tasks(
    result: str,
    *,
    tasks: Sequence[str] = (),
    corpus: Path | None = None,
    settings: Mapping[str, str] | None = None,
) -> list[ExportedTask]:
    """Select the evaluations of a result that are exported, one for each task.

    Args:
        result: A rows file or the folder of an evaluation; `:model` after it selects one of several models.
        tasks: The tasks as they were given to `evaluate`; rows have hashes of the questions, not their texts.
            If any is given, only these tasks are exported.
        corpus: Folder of a corpus, for tasks that are made from one.
        settings: Settings that select one of several evaluations of a task.

    Raises:
        SourceError: there is no such file.
        UsageError: the result has no rows of a task, or has several evaluations of one.
        InputError: a file is damaged, or the task has other questions than the rows.
    """
    opened = {task.name: task for task in (open_task(spec, corpus=corpus) for spec in tasks)}
    rows = open_result(result)
    names = list(opened) or list(rows.tasks)
    missing = [name for name in names if name not in rows.tasks]
    if missing or not names:
        known = ", ".join(rows.tasks) or "none"
        raise UsageError(f"{result} has no rows of {', '.join(missing) or 'tasks'} (tasks in it: {known})")
    for name in names:
        # A question in another order or by another seed is no second sample of it.
        if count := rows.variant_counts.get(name):
            warn(
                f"{name}: {format_count(count, 'answers')} in other orders of the options or by other seeds "
                "are not exported, only those in the published order by the first seed"
            )
    return [
        _export_task(result, select_setting(rows, name, settings or {}, "--setting"), opened.get(name))
        for name in names
    ]


def _export_task(result: str, setting: Setting, task: Task | None) -> ExportedTask:
    by_id = {row.id: row for row in setting.rows.values()}
    if len(by_id) < len(setting.rows):
        hint = "evaluate in another folder, with --out"
        raise InputError(result, "several contents of a question under one id", hint=hint)
    if task is None:
        items = [ExportedItem(row=by_id[id_], question=None, prompt=None) for id_ in sorted(by_id)]
        return ExportedTask(name=setting.first.task, setting=setting, items=items, task=None)
    questions = [question for question in task.rows("test") if question.id in by_id]
    content = {question.id: questions_sha256([question]) for question in questions}
    for id_, row in by_id.items():
        if row.question_sha256 != content.get(id_):
            raise InputError(
                result,
                f"{task.name} has no question {id_} with the content that was evaluated",
                hint="name the task as it was given to evaluate",
            )
    examples = {question.id: question for question in task.rows("train")}
    items = [
        ExportedItem(
            row=(row := by_id[question.id]), question=question, prompt=_prompt(row, question, examples, task)
        )
        for question in questions
    ]
    return ExportedTask(name=task.name, setting=setting, items=items, task=task)


def _prompt(
    row: QuestionRow, question: Question, examples: Mapping[str, Question], task: Task
) -> RenderedPrompt | None:
    """Render the prompt of a row again; None if that does not give the text with the row's hash."""
    name = (base_template(row) or "").partition("/")[0]
    # The template of a definition of lm-eval belongs to its task.
    template = task.template if task.template.name == name else PROMPT_TEMPLATES.get(name)
    shots = [examples[id_] for id_ in row.shot_ids[: row.shots or 0] if id_ in examples]
    if template is None or len(shots) != (row.shots or 0):
        return None
    method: Any = find_method(row.method).from_options(EvalOptions(), 0) if row.method in METHODS else None
    rendered = (method.adapt_template(template) if method else template).render(question, shots)
    return rendered if prompts_sha256([rendered]) == row.prompt_sha256 else None
