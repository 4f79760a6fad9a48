"""Evaluation sets: the questions of a task, their prompts for a model, and the evaluation method."""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

from meditron.core.console import warn
from meditron.core.errors import UsageError
from meditron.evaluate.config import EvalOptions
from meditron.evaluate.methods.base import EvalMethod, find_method
from meditron.evaluate.model import RAW, EvalModel
from meditron.evaluate.prompts import EvalPrompt
from meditron.store.files import content_digest
from meditron.store.identity import content_sha256, normalize, short_hash
from meditron.tasks.prompt_template import Rendered
from meditron.tasks.question import Question
from meditron.tasks.registry import open_task
from meditron.tasks.task import Task, questions_sha256
from meditron.text.chat import FIXED_DATE, Message
from meditron.text.finetune_templates import question_turns
from meditron.text.prompt import render_conversation

__all__ = ["EvalSet", "Examples", "draw_examples", "rows_file"]


# Temporary and lock files have longer names, and a file system takes 255 bytes.
_LONGEST_NAME = 200


def rows_file(task: Task) -> str:
    """Return the name of the file of a task's rows."""
    # Task names come from file names of users; the rows file must not leave the folder.
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", task.name).strip("-.") or "task"
    if len(name) > _LONGEST_NAME:
        name = f"{name[:_LONGEST_NAME]}-{short_hash(content_sha256(name))}"
    return f"task-{name}.jsonl" if name in ("perplexity", "fidelity") else f"{name}.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class Examples:
    """Solved examples for few-shot prompts."""

    shots: int = 0
    """Number of examples in each prompt."""
    drawn: tuple[Question, ...] = ()
    """The examples, all of different content, and one more (if there is one) to replace an example that
    repeats a question."""
    file: str | None = None
    """Name of the file that they are from; None if they are from the task's training split."""
    sha256: str | None = None
    """SHA-256 of that file."""

    def for_question(self, question: Question) -> Sequence[Question]:
        """Return exactly `shots` examples, none of which repeats the question.

        Only a question that is itself among the examples gets the replacement, as its last example, so that
        every prompt shares its beginning with as many others as possible: engines read it once.
        """
        content = _content(question)
        return [example for example in self.drawn if _content(example) != content][: self.shots]


@dataclass(frozen=True, kw_only=True)
class EvalSet:
    """Questions of a task's test split, with the way to prompt them and to take the answer."""

    task: Task
    method: EvalMethod[Any]
    questions: tuple[Question, ...]
    examples: Examples = Examples()
    form: Literal["trained", "raw"] = "trained"
    """`trained`: in the chat template of the model's last finetune; `raw`: in plain text for every model."""
    label: str
    """Name of the task in results: the task's own, with form and method if there are several."""

    @classmethod
    def of(
        cls, task: Task, options: EvalOptions, *, seed: int, shots_from: Path | None = None
    ) -> tuple[Self, ...]:
        """Take the first questions of the test split, and draw the examples.

        Args:
            task: The task.
            options: Number of questions and shots, methods and prompt form.
            seed: Seed of the examples' draw.
            shots_from: File of questions to draw examples from, if it is not the training split.

        Returns:
            One set for each method and prompt form. The first has the task's own name as its label.

        Raises:
            UsageError: the task has no questions, or too few training questions for the shots.
            InputError: a file of questions is damaged.
        """
        questions = task.rows("test", options.questions)
        if not questions:
            raise UsageError(f"{task.name} has no questions in its test split")
        first = cls(
            task=task,
            method=find_method(options.methods[0]).from_options(options),
            questions=questions,
            examples=draw_examples(task, questions, options.shots, seed, shots_from),
            form="raw" if options.prompt_form == "raw" else "trained",
            label=task.name,
        )
        raw = replace(first, form="raw", label=f"{task.name} (raw)")
        forms = [first, raw] if options.prompt_form == "both" else [first]
        sets = list(forms)
        # The first method keeps the plain label, which reports and scripts look up.
        for name in options.methods[1:]:
            method = find_method(name).from_options(options)
            sets += [replace(base, method=method, label=f"{base.label} ({name})") for base in forms]
        if first.repeated:
            warn(
                f"{task.name}: {first.repeated} of {len(questions)} questions repeat another's text and "
                "options; each counts, so intervals are too narrow"
            )
        return tuple(sets)

    @cached_property
    def file(self) -> str:
        """The name of the file of rows."""
        return rows_file(self.task)

    @cached_property
    def data_sha256(self) -> str:
        """SHA-256 over the questions, their options and gold answers."""
        return questions_sha256(self.questions)

    @cached_property
    def split_sha256(self) -> str:
        """SHA-256 over all questions of the split, evaluated or not."""
        return self.task.data_sha256("test")

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """The options, if they are the same for every question; else nothing."""
        options = {question.options for question in self.questions}
        return next(iter(options)) if len(options) == 1 else ()

    @property
    def template(self) -> str:
        """The template's name and version."""
        return f"{self.task.template.name}/{self.task.template.version}"

    @property
    def repeated(self) -> int:
        """Number of questions whose content repeats that of another one."""
        return len(self.questions) - len({question.content_sha256 for question in self.questions})

    def prompt_form(self, model: EvalModel) -> str:
        """Return the form of this model's prompts: `raw`, or a chat template's name."""
        return RAW if self.form == "raw" else model.trained_form

    def prompts(self, model: EvalModel) -> list[EvalPrompt]:
        """Return every question's prompt for this model, in the questions' order.

        Raises:
            UsageError: the model was trained in chat turns, but has no chat template.
            InputError: its chat template does not work.
        """
        # A model without a finetune is prompted in plain text even if its tokenizer has a chat template.
        if self.prompt_form(model) == RAW:
            return [self._raw_prompt(question) for question in self.questions]
        return [self._chat_prompt(question, model) for question in self.questions]

    def _raw_prompt(self, question: Question) -> EvalPrompt:
        shots = self.examples.for_question(question)
        return EvalPrompt(
            question=question,
            rendered=self.task.template.render(question, shots),
            shot_ids=tuple(shot.id for shot in shots),
        )

    def _chat_prompt(self, question: Question, model: EvalModel) -> EvalPrompt:
        """Write examples as user messages and their answers as assistant messages, as finetuning does."""
        template, form = self.task.template, model.trained_form
        shots = self.examples.for_question(question)
        before: list[Message] = []
        for shot in shots:
            solved = template.render(shot)
            # As in training: some templates add a blank or a break before an answer.
            turns = question_turns(solved.prompt, solved.continuations[shot.gold], form)
            before += [{"role": turn.role, "content": turn.content} for turn in turns]
        last = template.render(question)
        messages = (*before, {"role": "user", "content": last.prompt})
        unconditional = (*before, {"role": "user", "content": last.unconditional})
        # Templates decide if an answer keeps the blank before it; finetuning's own function knows.
        options = tuple(
            question_turns("", continuation, form)[1].content for continuation in last.continuations
        )
        text, unconditional_text = (
            render_conversation(model.chat_tokenizer, turns, now=FIXED_DATE)
            for turns in (messages, unconditional)
        )
        return EvalPrompt(
            question=question,
            rendered=Rendered(prompt=text, continuations=options, unconditional=unconditional_text),
            shot_ids=tuple(shot.id for shot in shots),
            messages=messages,
            unconditional_messages=unconditional,
        )


def draw_examples(
    task: Task, questions: Sequence[Question], shots: int, seed: int, shots_from: Path | None = None
) -> Examples:
    """Draw the examples of a task's prompts.

    Args:
        task: The task.
        questions: The evaluated questions.
        shots: Number of examples in each prompt.
        seed: Seed of the draw.
        shots_from: File of questions to draw from; the task's training split if it is None.

    Raises:
        UsageError: there are too few different questions to draw from.
        SourceError: there is no such file.
        InputError: a file is damaged.
    """
    if not shots:
        return Examples()
    training = task.rows("train") if shots_from is None else open_task(str(shots_from)).rows("train")
    # Of questions with the same content the first is kept, and the order of the pool stays the file's.
    by_content = {_content(question): question for question in reversed(training)}
    pool = list(by_content.values())[::-1]
    # A question that is in the pool itself needs a replacement. Files of examples such as MMLU's `dev`, which
    # have exactly five questions, need none.
    repeated = any(_content(question) in by_content for question in questions)
    if len(pool) < shots + repeated:
        source = task.name if shots_from is None else shots_from
        raise UsageError(
            f"{source} has {len(pool)} different training questions: too few for {shots} shots",
            hint="a question that is itself in the file needs one more" if repeated else None,
        )
    drawn = random.Random(seed).sample(pool, min(shots + 1, len(pool)))  # noqa: S311 (reproducible, not secret)
    return Examples(
        shots=shots,
        drawn=tuple(drawn),
        file=None if shots_from is None else shots_from.name,
        sha256=None if shots_from is None else content_digest(shots_from),
    )


def _content(question: Question) -> str:
    """Return the text and its context, normalized: questions that differ in options only count as one."""
    return normalize(f"{question.context} {question.text}")
