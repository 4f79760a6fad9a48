"""The questions of a task, the prompts they become for a model, and how an answer is taken."""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

from meditron.core.errors import UsageError
from meditron.evaluate.model import RAW, EvalModel
from meditron.store.identity import normalize
from meditron.store.results import METHODS, Method, Mode, PromptForm, Rule
from meditron.tasks.prompt_template import Rendered
from meditron.tasks.question import Question
from meditron.tasks.task import Task, questions_sha256
from meditron.text.chat import FIXED_DATE, Message
from meditron.text.finetune_templates import answered
from meditron.text.prompt import rendered

__all__ = ["Asked", "EvalSet", "rows_file"]


def rows_file(task: Task) -> str:
    """Return the name of the file of a task's rows."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", task.name).strip("-.") or "task"
    return f"task-{name}.jsonl" if name in ("perplexity", "fidelity") else f"{name}.jsonl"


@dataclass(frozen=True, slots=True)
class Asked:
    """One question as one model is asked it."""

    question: Question
    rendered: Rendered
    """The whole text of the prompt, in chat turns if the form has them."""
    shot_ids: tuple[str, ...]
    """Ids of the solved questions in the prompt, in its order."""
    messages: tuple[Message, ...] = ()
    """The prompt's turns; empty for a raw prompt."""
    alone: tuple[Message, ...] = ()
    """The turns of the prompt without the question."""

    def item(self) -> tuple[str, str]:
        """Return the id and the content's hash."""
        return self.question.id, questions_sha256([self.question])


@dataclass(frozen=True)
class EvalSet:
    """Questions of a task's test split, and the way to ask them."""

    task: Task
    mode: Mode
    rule: Rule
    """What chooses an option, where options are compared."""
    questions: tuple[Question, ...]
    shots: int
    drawn: tuple[Question, ...]
    """The solved questions, all of different content, and one more to replace one that repeats the asked."""
    form: PromptForm = "trained"
    """`trained`: as the model's last finetune was; `raw`: plain text for every model."""
    label: str = ""
    """Name of the task in results: the task's own, with the form if it is asked in several."""

    @classmethod
    def of(
        cls,
        task: Task,
        *,
        questions: int,
        mode: Mode,
        rule: Rule,
        shots: int,
        seed: int,
        form: PromptForm = "trained",
    ) -> tuple[Self, ...]:
        """Take the first `questions` of the test split, and draw `shots` of the training split by the seed.

        Returns:
            One exam, or for the form `both` two: as trained, and raw.

        Raises:
            UsageError: the task has no questions, or its training split too few for the shots.
            InputError: its files are damaged.
        """
        asked = task.rows("test", questions)
        if not asked:
            raise UsageError(f"{task.name} has no questions to ask")
        drawn = _draw(task, shots, seed)
        if form != "both":
            return (cls(task, mode, rule, asked, shots, drawn, form, task.name),)
        return (
            cls(task, mode, rule, asked, shots, drawn, "trained", task.name),
            cls(task, mode, rule, asked, shots, drawn, "raw", f"{task.name} (raw)"),
        )

    @property
    def method(self) -> Method:
        """The mode's name in results."""
        return METHODS[self.mode]

    @cached_property
    def file(self) -> str:
        """The name of the file of rows."""
        return rows_file(self.task)

    @cached_property
    def data_sha256(self) -> str:
        """Over the questions, their options and gold answers."""
        return questions_sha256(self.questions)

    @cached_property
    def split_sha256(self) -> str:
        """Over all questions of the split, asked or not."""
        return self.task.data_sha256("test")

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """The options, where they are the same for every question; else nothing."""
        options = {question.options for question in self.questions}
        return next(iter(options)) if len(options) == 1 else ()

    @property
    def template(self) -> str:
        """The template's name and version."""
        return f"{self.task.template.name}/{self.task.template.version}"

    @property
    def repeated(self) -> int:
        """Questions whose content repeats that of another one."""
        return len(self.questions) - len({question.content_sha256 for question in self.questions})

    def prompt_form(self, model: EvalModel) -> str:
        """Return the form in which this model is asked: `raw`, or a chat template's name."""
        return RAW if self.form == "raw" else model.trained_form

    def prompts(self, model: EvalModel) -> list[Asked]:
        """Return every question's prompt for this model, in the questions' order.

        Raises:
            UsageError: the model was trained in chat turns, but has no chat template.
            InputError: its chat template does not work.
        """
        ask = self._raw if self.prompt_form(model) == RAW else self._turns
        return [ask(question, model) for question in self.questions]

    def _shots(self, question: Question) -> Sequence[Question]:
        """Return exactly `shots` solved questions, none of which repeats the asked one."""
        asked = _content(question)
        return [shot for shot in self.drawn if _content(shot) != asked][: self.shots]

    def _raw(self, question: Question, _: EvalModel) -> Asked:
        shots = self._shots(question)
        return Asked(question, self.task.template.render(question, shots), tuple(shot.id for shot in shots))

    def _turns(self, question: Question, model: EvalModel) -> Asked:
        """Write solved questions as the user's turns and answers as the assistant's, as finetuning does."""
        template, shots, form = self.task.template, self._shots(question), model.trained_form
        before: list[Message] = []
        for shot in shots:
            solved = template.render(shot)
            turns = answered(solved.prompt, solved.continuations[shot.gold], form)
            before += [{"role": turn.role, "content": turn.content} for turn in turns]
        asked = template.render(question)
        messages = (*before, {"role": "user", "content": asked.prompt})
        alone = (*before, {"role": "user", "content": asked.unconditional})
        options = tuple(answered("", continuation, form)[1].content for continuation in asked.continuations)
        text, without = (rendered(model.chat_tokenizer, turns, now=FIXED_DATE) for turns in (messages, alone))
        return Asked(
            question, Rendered(text, options, without), tuple(shot.id for shot in shots), messages, alone
        )


def _draw(task: Task, shots: int, seed: int) -> tuple[Question, ...]:
    """Draw one more than is shown: a file's questions are its training split as well."""
    if not shots:
        return ()
    pool = list({_content(question): question for question in reversed(task.rows("train"))}.values())[::-1]
    if len(pool) <= shots:
        raise UsageError(
            f"{task.name} has {len(pool)} different training questions: too few for {shots} shots"
        )
    return tuple(random.Random(seed).sample(pool, shots + 1))  # noqa: S311 (a draw that is to be repeated)


def _content(question: Question) -> str:
    """Return what a reader takes for the same question: the text and its context, whatever the options."""
    return normalize(f"{question.context} {question.text}")
