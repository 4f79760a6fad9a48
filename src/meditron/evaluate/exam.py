"""What is asked of a model: a task's questions, the prompts they become, and how an answer is taken."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

from meditron.ground.errors import UsageError
from meditron.store.results import Mode, Rule
from meditron.tasks.layout import Rendered
from meditron.tasks.question import Question
from meditron.tasks.task import Task, prompts_sha256, questions_sha256

__all__ = ["Exam"]


@dataclass(frozen=True)
class Exam:
    """Questions of a task's test split, each with its prompt."""

    task: Task
    mode: Mode
    rule: Rule
    """What chooses an option, where options are compared."""
    questions: tuple[Question, ...]
    prompts: tuple[Rendered, ...]
    shots: int
    shot_ids: tuple[str, ...]
    """The solved questions before a prompt; where one of them is asked itself, the last stands in for it."""

    @classmethod
    def of(cls, task: Task, *, questions: int, mode: Mode, rule: Rule, shots: int, seed: int) -> Self:
        """The first `questions` of the test split, after `shots` of the training split drawn by the seed.

        Raises:
            UsageError: the task has no questions, or its training split too few for the shots.
            InputError: its files are damaged.
        """
        asked = task.rows("test", questions)
        if not asked:
            raise UsageError(f"{task.name} has no questions to ask")
        drawn = _draw(task, shots, seed)
        prompts = tuple(task.layout.render(q, [s for s in drawn if not _same(s, q)][:shots]) for q in asked)
        return cls(task, mode, rule, asked, prompts, shots, tuple(shot.id for shot in drawn))

    @cached_property
    def data_sha256(self) -> str:
        """Over the questions, their options and gold answers."""
        return questions_sha256(self.questions)

    @cached_property
    def prompt_sha256(self) -> str:
        """Over the prompts and their options."""
        return prompts_sha256(self.prompts)

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """The options, where they are the same for every question; else nothing."""
        options = {question.options for question in self.questions}
        return next(iter(options)) if len(options) == 1 else ()

    @property
    def layout(self) -> str:
        """The layout's name and version."""
        return f"{self.task.layout.name}/{self.task.layout.version}"


def _draw(task: Task, shots: int, seed: int) -> Sequence[Question]:
    """One more than is shown, for a file's questions are its training split as well."""
    if not shots:
        return ()
    pool = task.rows("train")
    if len(pool) <= shots:
        raise UsageError(f"{task.name} has {len(pool)} training questions: too few for {shots} shots")
    return random.Random(seed).sample(pool, shots + 1)  # noqa: S311 (a draw that is to be repeated)


def _same(one: Question, other: Question) -> bool:
    return one.id == other.id or (one.text, one.context) == (other.text, other.context)
