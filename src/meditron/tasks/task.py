"""What a benchmark is: questions with options, the template that asks them, and where they come from."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from meditron.tasks.prompt_template import PromptTemplate, Rendered
from meditron.tasks.question import Question

__all__ = ["Question", "Questions", "Split", "Task", "prompts_sha256", "questions_sha256"]

Split = Literal["train", "test"]


@dataclass(frozen=True, slots=True)
class Questions:
    """The questions of one split, and how many rows of its files are none, by reason."""

    rows: tuple[Question, ...]
    skipped: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """A benchmark: its rows, read when first asked for, and its short definition."""

    name: str
    version: int
    """Raised whenever the same data give other questions."""
    title: str
    licence: str
    origin: str
    """Where the questions come from: a citation or an address."""
    template: PromptTemplate
    """How a question is laid out as a prompt, unless another is asked for."""
    read: Callable[[Split], Questions]
    """Reads a split; called once for each."""
    data: str = ""
    """Name of the file of questions, without its folder; empty for a task that is made from a corpus."""
    split: str | None = None
    """Name of the split that `rows("test")` reads, as the data names it; None if the data has no split."""
    _read: dict[Split, Questions] = field(default_factory=dict, init=False, repr=False, compare=False)

    def rows(self, split: Split, limit: int | None = None) -> tuple[Question, ...]:
        """The questions of a split, at most `limit` of them, in an order whose every beginning is fair.

        It is the order of the ids' SHA-256, which knows nothing of the questions; where the options are
        classes, one of each class in turn. The same for every model and in every run.

        Raises:
            InputError: a file is damaged or holds a row that is no question: names file and place.
            SourceError: there is no such file.
        """
        return self._questions(split).rows[:limit]

    def skipped(self, split: Split) -> Mapping[str, int]:
        """Rows of the split's files that are no questions, by reason. Raises as `rows`."""
        return self._questions(split).skipped

    def data_sha256(self, split: Split) -> str:
        """SHA-256 over all questions of a split with their options and gold answers. Raises as `rows`."""
        return questions_sha256(self.rows(split))

    def prompt_sha256(self, split: Split) -> str:
        """SHA-256 over all zero-shot prompts of a split with their options. Raises as `rows`."""
        return prompts_sha256(map(self.template.render, self.rows(split)))

    def _questions(self, split: Split) -> Questions:
        if split not in self._read:
            self._read[split] = self.read(split)
        return self._read[split]


def questions_sha256(questions: Iterable[Question]) -> str:
    """SHA-256 over questions in their order: their ids, texts, contexts, options and gold answers."""
    return _sha256([q.id, q.text, q.context, q.options, q.gold] for q in questions)


def prompts_sha256(prompts: Iterable[Rendered]) -> str:
    """SHA-256 over prompts in their order, each with its continuations."""
    return _sha256([p.prompt, p.continuations] for p in prompts)


def _sha256(values: Iterable[object]) -> str:
    digest = hashlib.sha256()
    for value in values:
        digest.update(json.dumps(value, ensure_ascii=False).encode() + b"\n")
    return digest.hexdigest()
