"""The question set of a review: JSON lines `{"id", "question", "category"?, "subkind"?}`."""

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

from meditron.core.errors import InputError
from meditron.serve.review.rubric import Rubric
from meditron.store.files import canonical_json
from meditron.store.jsonl import read_numbered_jsonl

__all__ = ["Question", "package_questions", "questions_sha256", "read_questions"]

_KEYS = {"id", "question", "category", "subkind"}
_LONGEST = 20_000  # characters of a question
_MOST = 10_000


@dataclass(frozen=True, slots=True)
class Question:
    """A question of a review."""

    key: str
    """Its id in the file."""
    text: str
    category: str | None = None
    subkind: str | None = None


def read_questions(path: Path, rubric: Rubric) -> list[Question]:
    """Read a question set.

    Raises:
        SourceError: there is no such file.
        InputError: a line is no question, repeats an id, or has a category that the rubric does not have.
    """
    questions: dict[str, Question] = {}
    for number, row in read_numbered_jsonl(path):
        place = f"line {number}"
        try:
            question = _read_row(row, rubric)
        except ValueError as error:
            raise InputError(path, str(error), place=place) from error
        if question.key in questions:
            raise InputError(path, f"the id {question.key!r} is on an earlier line too", place=place)
        questions[question.key] = question
        if len(questions) > _MOST:
            raise InputError(path, f"more than {_MOST:,} questions")
    if not questions:
        raise InputError(path, "it has no question", hint='{"id": "1", "question": "…"} on each line')
    return list(questions.values())


def package_questions(rubric: Rubric) -> list[Question]:
    """Return the package's example questions, one for each sub-kind."""
    with as_file(files("meditron.serve.review").joinpath("questions.jsonl")) as path:
        return read_questions(path, rubric)


def questions_sha256(questions: Sequence[Question]) -> str:
    """Return the SHA-256 of a question set."""
    return hashlib.sha256(canonical_json([asdict(question) for question in questions])).hexdigest()


def _read_row(row: dict[str, Any], rubric: Rubric) -> Question:
    if unknown := set(row) - _KEYS:
        raise ValueError(f"unknown key {min(unknown)!r}; keys are {', '.join(sorted(_KEYS))}")
    key = row.get("id")
    if isinstance(key, int) and not isinstance(key, bool):
        key = str(key)
    category, subkind = row.get("category"), row.get("subkind")
    for name, value in (("category", category), ("subkind", subkind)):
        if value is not None and not isinstance(value, str):
            raise ValueError(f"{name} must be a text, got {value!r:.60}")
    known = {each.key: {kind.key for kind in each.subkinds} for each in rubric.categories}
    if category is not None and category not in known:
        raise ValueError(f"no category {category!r}; categories are {', '.join(known)}")
    if subkind is not None and subkind not in known.get(category or "", ()):
        raise ValueError(f"no subkind {subkind!r} of {category or 'a question without a category'}")
    return Question(
        _text("id", key, 200), _text("question", row.get("question"), _LONGEST), category, subkind
    )


def _text(name: str, value: object, longest: int) -> str:
    """Return a text that can be stored and shown; ValueError for anything else."""
    if not isinstance(value, str) or not value.strip():
        raise ValueError(f"{name} must be a text, got {value!r:.60}")
    if len(value) > longest:
        raise ValueError(f"{name} has {len(value):,} characters; at most {longest:,} are allowed")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{name} has half of a surrogate pair at character {error.start}") from error
    return value.strip()
