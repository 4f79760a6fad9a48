"""Evaluation sets: the questions of a task, their prompts for a model, and the evaluation method."""

import random
import re
from collections.abc import Mapping, Sequence
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
from meditron.store.identity import content_sha256, normalize_text, short_hash
from meditron.store.prompts import StoredPrompt
from meditron.tasks.prompt_template import PromptTemplate, RenderedPrompt
from meditron.tasks.question import Question
from meditron.tasks.registry import open_task
from meditron.tasks.task import Task, questions_sha256
from meditron.text.chat import Message
from meditron.text.finetune_templates import question_turns

__all__ = ["EvalSet", "FewShotExamples", "draw_examples", "question_clusters", "rows_file_name"]


# Temporary and lock files have longer names, and a file system takes 255 bytes.
_LONGEST_NAME = 200


def rows_file_name(task: str) -> str:
    """Return the name of the rows file of the task with this name."""
    # A task may be named after a user's file: characters that could lead out of the folder are replaced.
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", task).strip("-.") or "task"
    if len(name) > _LONGEST_NAME:
        name = f"{name[:_LONGEST_NAME]}-{short_hash(content_sha256(name))}"
    return f"task-{name}.jsonl" if name in ("perplexity", "fidelity") else f"{name}.jsonl"


@dataclass(frozen=True, slots=True, kw_only=True)
class FewShotExamples:
    """Solved examples of the few-shot prompts of an evaluation set."""

    shots: int = 0
    """Number of examples in each prompt."""
    drawn_questions: tuple[Question, ...] = ()
    """The examples, all with different content, and one more if there is one: it replaces an example in the
    prompt of the question that has the same content."""
    file_name: str | None = None
    """Name of the file that the examples are from; None: they are from the task's training split."""
    file_sha256: str | None = None
    """SHA-256 of that file."""

    def examples_for(self, question: Question) -> Sequence[Question]:
        """Return `shots` examples for a question, none of which has the question's content.

        Only a question that is among the examples itself gets the additional one, as its last example. All
        prompts then share a prefix that is as long as possible, which engines process only once.
        """
        content = _normalized_content(question)
        return [example for example in self.drawn_questions if _normalized_content(example) != content][
            : self.shots
        ]


@dataclass(frozen=True, kw_only=True)
class EvalSet:
    """The questions of a task's test split, with the form of their prompts and the evaluation method."""

    task: Task
    method: EvalMethod[Any]
    questions: tuple[Question, ...]
    examples: FewShotExamples = FewShotExamples()
    form: Literal["trained", "raw"] = "trained"
    """`trained`: in the chat template of the model's last finetune; `raw`: in plain text for every model."""
    label: str
    """Name in results: the task's name, with the prompt form and the method if there are several."""
    seed_offset: int = 0
    """Number that the run's seed was raised by for this set."""
    stored_prompt: StoredPrompt | None = None
    """Stored prompt whose system text and messages come before each question's prompt."""

    @classmethod
    def from_task(
        cls,
        task: Task,
        options: EvalOptions,
        *,
        seed: int,
        shots_from: Path | None = None,
        stored_prompt: StoredPrompt | None = None,
    ) -> tuple[Self, ...]:
        """Create the evaluation sets of a task: take the first questions of the test split and draw examples.

        Args:
            task: The task.
            options: Number of questions, number of shots, methods and prompt form.
            seed: Seed of the examples' draw and of sampled answers.
            shots_from: File of questions to draw examples from; default: the task's training split.
            stored_prompt: Stored prompt without variables that comes before each question.

        Returns:
            One evaluation set for each method and prompt form. The first has the task's name as its label.

        Raises:
            UsageError: the task has no questions, or too few training questions for the shots.
            InputError: a file of questions is damaged.
        """
        questions = task.rows("test", options.questions)
        if not questions:
            raise UsageError(f"{task.name} has no questions in its test split")
        examples = draw_examples(task, questions, options.shots, seed, shots_from)
        evaluated = {*map(_normalized_content, questions)}
        repeated = [each for each in examples.drawn_questions if _normalized_content(each) in evaluated]
        if repeated:
            warn(
                f"{task.name}: {len(repeated)} of the {len(examples.drawn_questions)} questions drawn as "
                "examples are evaluated ones (none is an example for itself); --shots-from FILE draws others"
            )
        first = cls(
            task=task,
            method=find_method(options.methods[0]).from_options(options, seed),
            questions=questions,
            examples=examples,
            form="raw" if options.prompt_form == "raw" else "trained",
            label=task.name,
            stored_prompt=stored_prompt,
        )
        raw = replace(first, form="raw", label=f"{task.name} (raw)")
        forms = [first, raw] if options.prompt_form == "both" else [first]
        sets = list(forms)
        # The sets of the first method have labels without it: reports and scripts look them up by task name.
        for name in options.methods[1:]:
            method = find_method(name).from_options(options, seed)
            sets += [replace(base, method=method, label=f"{base.label} ({name})") for base in forms]
        if first.repeated_questions:
            warn(
                f"{task.name}: {first.repeated_questions} of {len(questions)} questions repeat another's "
                "text and options; each is counted, so intervals are too narrow"
            )
        return tuple(sets)

    @cached_property
    def rows_file(self) -> str:
        """Name of the rows file."""
        return rows_file_name(self.task.name)

    @cached_property
    def data_sha256(self) -> str:
        """SHA-256 of the evaluated questions with their options and gold answers."""
        return questions_sha256(self.questions)

    @cached_property
    def split_sha256(self) -> str:
        """SHA-256 of all questions of the split, including those that are not evaluated."""
        return self.task.data_sha256("test")

    @cached_property
    def classes(self) -> tuple[str, ...]:
        """The options if all questions have the same ones; else an empty tuple."""
        options = {question.options for question in self.questions}
        return next(iter(options)) if len(options) == 1 else ()

    @cached_property
    def template(self) -> PromptTemplate:
        """The task's prompt template, as the method uses it."""
        return self.method.adapt_template(self.task.template)

    @cached_property
    def clusters(self) -> Mapping[str, str]:
        """Id of a question → its cluster: questions on one document or passage, or of one group.

        Empty if no two questions share one.
        """
        return question_clusters(self.questions)

    @property
    def template_id(self) -> str:
        """Name and version of the prompt template: `letters/1`."""
        return self.template.id

    @property
    def repeated_questions(self) -> int:
        """Number of questions with the content of an earlier question."""
        return len(self.questions) - len({question.content_sha256 for question in self.questions})

    def prompt_form(self, model: EvalModel) -> str:
        """Return the form of the prompts for a model: `raw`, or the name of a chat template."""
        return RAW if self.form == "raw" else model.trained_prompt_form

    def prompts(self, model: EvalModel) -> list[EvalPrompt]:
        """Render every question as a prompt for a model, in the questions' order.

        Raises:
            UsageError: the model was trained with a chat template, but has none now.
            InputError: the model's chat template fails.
        """
        # A model that was not finetuned gets plain text, even if its tokenizer has a chat template.
        if self.prompt_form(model) == RAW:
            return [self._raw_prompt(question) for question in self.questions]
        return [self._chat_prompt(question, model) for question in self.questions]

    @cached_property
    def _stored_messages(self) -> Sequence[Message]:
        return [] if self.stored_prompt is None else self.stored_prompt.render({})

    def _raw_prompt(self, question: Question) -> EvalPrompt:
        shots = self.examples.examples_for(question)
        rendered = self.template.render(question, shots)
        if before := plain_text(self._stored_messages):
            rendered = replace(
                rendered,
                prompt=before + rendered.prompt,
                unconditional_prompt=before + rendered.unconditional_prompt,
            )
        return EvalPrompt(
            question=question,
            rendered=rendered,
            shot_ids=tuple(shot.id for shot in shots),
        )

    def _chat_prompt(self, question: Question, model: EvalModel) -> EvalPrompt:
        """Render the examples as user messages and their answers as assistant messages, like finetuning.

        The messages of the stored prompt come first.
        """
        template, form = self.template, model.trained_prompt_form
        shots = self.examples.examples_for(question)
        example_messages: list[Message] = [*self._stored_messages]
        for shot in shots:
            solved = template.render(shot)
            # Rendered by the function that finetuning uses: some chat templates put a blank before an answer.
            turns = question_turns(solved.prompt, template.solved_answer(shot), form)
            example_messages += [{"role": turn.role, "content": turn.content} for turn in turns]
        last = template.render(question)
        messages = (*example_messages, {"role": "user", "content": last.prompt})
        unconditional = (*example_messages, {"role": "user", "content": last.unconditional_prompt})
        # The same function for the options: the chat template decides whether an answer begins with a blank.
        options = tuple(
            question_turns("", continuation, form)[1].content for continuation in last.continuations
        )
        text, unconditional_text = map(model.render_messages, (messages, unconditional))
        return EvalPrompt(
            question=question,
            rendered=RenderedPrompt(
                prompt=text, continuations=options, unconditional_prompt=unconditional_text
            ),
            shot_ids=tuple(shot.id for shot in shots),
            messages=messages,
            unconditional_messages=unconditional,
        )


def plain_text(messages: Sequence[Message]) -> str:
    """Return messages as the beginning of a prompt in plain text; empty without messages."""
    parts = []
    for message in messages:
        label = {"user": "Question: ", "assistant": "Answer: "}.get(str(message["role"]), "")
        end = "\n" if message["role"] == "user" else "\n\n"
        parts.append(f"{label}{message['content']}{end}")
    return "".join(parts)


def question_clusters(questions: Sequence[Question]) -> Mapping[str, str]:
    """Return id of a question → its cluster: its document, passage or group; empty if no two share one."""
    for name_of in (_document_of, _passage_of, _group_of):
        names = {question.id: name_of(question) for question in questions}
        # A cluster that only some questions have, or that all or no questions share, says nothing.
        if all(names.values()):
            return names if 1 < len({*names.values()}) < len(names) else {}
    return {}


def draw_examples(
    task: Task, questions: Sequence[Question], shots: int, seed: int, shots_from: Path | None = None
) -> FewShotExamples:
    """Draw the examples of a task's prompts.

    Args:
        task: The task.
        questions: The evaluated questions.
        shots: Number of examples in each prompt.
        seed: Seed of the draw.
        shots_from: File of questions to draw from; the task's training split if it is None.

    Raises:
        UsageError: the split or file has too few different questions.
        SourceError: there is no such file.
        InputError: a file is damaged.
    """
    if not shots:
        return FewShotExamples()
    training = task.rows("train") if shots_from is None else open_task(str(shots_from)).rows("train")
    # Reversed twice: the first of several questions with the same content is kept, in its place.
    by_content = {_normalized_content(question): question for question in reversed(training)}
    pool = list(by_content.values())[::-1]
    # A question that is in the pool itself needs a replacement. Files of examples such as MMLU's `dev`, which
    # have exactly five questions, need none.
    repeated = any(_normalized_content(question) in by_content for question in questions)
    if len(pool) < shots + repeated:
        source = task.name if shots_from is None else shots_from
        raise UsageError(
            f"{source} has {len(pool)} different training questions: too few for {shots} shots",
            hint="a question that is itself in the file needs one more" if repeated else None,
        )
    drawn = random.Random(seed).sample(pool, min(shots + 1, len(pool)))  # noqa: S311 (reproducible, not secret)
    return FewShotExamples(
        shots=shots,
        drawn_questions=tuple(drawn),
        file_name=None if shots_from is None else shots_from.name,
        file_sha256=None if shots_from is None else content_digest(shots_from),
    )


def _document_of(question: Question) -> str:
    return short_hash(question.document_sha256) if question.document_sha256 else ""


def _passage_of(question: Question) -> str:
    return short_hash(content_sha256(question.context)) if question.context else ""


def _group_of(question: Question) -> str:
    return question.group or ""


def _normalized_content(question: Question) -> str:
    """Return the normalized context and text: questions that differ only in options count as one."""
    return normalize_text(f"{question.context} {question.text}")
