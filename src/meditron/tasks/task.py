"""Benchmarks: questions with options, the template that prompts them, and their origin."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from meditron.tasks.prompt_template import PromptTemplate, Rendered
from meditron.tasks.question import Question

__all__ = ["Question", "Questions", "Split", "Task", "prompts_sha256", "questions_sha256"]

Split = Literal["train", "test"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Questions:
    """The questions of one split, and the number of skipped rows by reason."""

    rows: tuple[Question, ...]
    skipped: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Task:
    """A benchmark: its questions, read on first use, and its short definition."""

    name: str
    version: int
    """Raised whenever the same data give other questions."""
    title: str
    licence: str
    origin: str
    """Source of the questions: a citation or an address."""
    template: PromptTemplate
    """Default prompt template."""
    read: Callable[[Split], Questions]
    """Reads a split; called once for each."""
    data: str = ""
    """Name of the file of questions, without its folder; empty for a task that is made from a corpus."""
    split: str | None = None
    """Name of the split that `rows("test")` reads, as the data names it; None if the data has no split."""
    _read: dict[Split, Questions] = field(default_factory=dict, init=False, repr=False, compare=False)

    def rows(self, split: Split, limit: int | None = None) -> tuple[Question, ...]:
        """Return the questions of a split, at most `limit` of them.

        The order is that of the ids' SHA-256, independent of the questions' text; if the options are classes,
        one question of each class in turn. Any prefix of it is an unbiased sample, and it is the same for
        every model and run.

        Raises:
            InputError: a file is damaged or has a row that is not a question; names file and place.
            SourceError: there is no such file.
        """
        return self._questions(split).rows[:limit]

    def skipped(self, split: Split) -> Mapping[str, int]:
        """Return the number of rows of the split's files that are not questions, by reason."""
        return self._questions(split).skipped

    def data_sha256(self, split: Split) -> str:
        """Return the SHA-256 over all questions of a split with their options and gold answers."""
        return questions_sha256(self.rows(split))

    def prompt_sha256(self, split: Split) -> str:
        """Return the SHA-256 over all zero-shot prompts of a split with their options."""
        return prompts_sha256(map(self.template.render, self.rows(split)))

    def _questions(self, split: Split) -> Questions:
        if split not in self._read:
            self._read[split] = self.read(split)
        return self._read[split]


def questions_sha256(questions: Iterable[Question]) -> str:
    """Return the SHA-256 over questions in their order: ids, texts, contexts, options and gold answers."""
    return _sha256([q.id, q.text, q.context, q.options, q.gold] for q in questions)


def prompts_sha256(prompts: Iterable[Rendered]) -> str:
    """Return the SHA-256 over prompts in their order, each with its continuations."""
    return _sha256([p.prompt, p.continuations] for p in prompts)


def _sha256(values: Iterable[object]) -> str:
    digest = hashlib.sha256()
    for value in values:
        digest.update(json.dumps(value, ensure_ascii=False).encode() + b"\n")
    return digest.hexdigest()
