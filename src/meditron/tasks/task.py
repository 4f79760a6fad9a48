"""The type of a task (benchmark): its questions, its prompt template and its origin."""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from meditron.tasks.prompt_template import PromptTemplate, RenderedPrompt
from meditron.tasks.question import Question

__all__ = ["Question", "Split", "SplitQuestions", "Task", "prompts_sha256", "questions_sha256"]

Split = Literal["train", "test"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitQuestions:
    """The questions of one split."""

    rows: tuple[Question, ...]
    skipped: Mapping[str, int] = field(default_factory=dict)
    """Reason → number of rows of the file that were skipped."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """A benchmark. Its questions are read on first use."""

    name: str
    version: int
    """Version, increased whenever the same data give other questions."""
    title: str
    licence: str
    origin: str
    """Source of the questions: a citation or an address."""
    template: PromptTemplate
    """Default prompt template."""
    read_split: Callable[[Split], SplitQuestions]
    """Reads the questions of a split; called once for each split."""
    data_file: str = ""
    """Name of the question file, without its folder; empty for a task that is made from a corpus."""
    test_split_name: str | None = None
    """Name that the data gives to the split of `rows("test")`, such as `heldout`; None if the data has no
    splits."""
    _loaded_splits: dict[Split, SplitQuestions] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    def rows(self, split: Split, limit: int | None = None) -> tuple[Question, ...]:
        """Return the questions of a split, at most `limit` of them.

        They are sorted by the SHA-256 of their ids. If the options are classes, one question of each class
        follows in turn. The order is the same for every model and run, and any prefix is an unbiased sample.

        Raises:
            InputError: a file is damaged or has a row that is not a question; names file and place.
            SourceError: there is no such file.
        """
        return self._questions(split).rows[:limit]

    def skipped(self, split: Split) -> Mapping[str, int]:
        """Return reason → number of rows of the split's file that were skipped."""
        return self._questions(split).skipped

    def data_sha256(self, split: Split) -> str:
        """Return one SHA-256 of all questions of a split with their options and gold answers."""
        return questions_sha256(self.rows(split))

    def prompt_sha256(self, split: Split) -> str:
        """Return one SHA-256 of all zero-shot prompts of a split with their continuations."""
        return prompts_sha256(map(self.template.render, self.rows(split)))

    def _questions(self, split: Split) -> SplitQuestions:
        # Read on first use, because a corpus takes minutes to read and most callers need one split.
        if split not in self._loaded_splits:
            self._loaded_splits[split] = self.read_split(split)
        return self._loaded_splits[split]


def questions_sha256(questions: Iterable[Question]) -> str:
    """Return one SHA-256 of questions, in order: ids, texts, contexts, options and gold answers."""
    return _sha256_of_json_values([q.id, q.text, q.context, q.options, q.gold] for q in questions)


def prompts_sha256(prompts: Iterable[RenderedPrompt]) -> str:
    """Return one SHA-256 of prompts, in order, with their continuations."""
    return _sha256_of_json_values([p.prompt, p.continuations] for p in prompts)


def _sha256_of_json_values(values: Iterable[object]) -> str:
    digest = hashlib.sha256()
    for value in values:
        # One JSON value per line: concatenated texts alone would not show where one ends.
        digest.update(json.dumps(value, ensure_ascii=False).encode() + b"\n")
    return digest.hexdigest()
