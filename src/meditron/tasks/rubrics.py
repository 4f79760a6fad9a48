"""Rubrics for open answers: conversations with the criteria by which an answer is scored.

The format is that of HealthBench (Arora et al. 2025, arXiv 2505.08775), one object per row: `prompt`, the
messages of a conversation; `rubrics`, its criteria with `criterion`, `points` (negative for what an answer
must not do) and `tags`; `prompt_id`; and `example_tags`. Other fields, such as the physicians' own answers,
are not read.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, StrictStr, StringConstraints, ValidationError

from meditron.core.config import first_problem
from meditron.core.errors import InputError
from meditron.sources.streams import path_as_text
from meditron.store.files import canonical_json, content_digest
from meditron.store.identity import hash_order_key, short_hash
from meditron.tasks.file_rows import SourceRow, read_source_rows
from meditron.tasks.file_task import task_name

__all__ = ["Criterion", "RubricRow", "RubricSet", "is_rubric_file", "open_rubrics"]

_FORM = (
    'a row is {"prompt_id": "1", "prompt": [{"role": "user", "content": "…"}], "rubrics": '
    '[{"criterion": "…", "points": 5, "tags": ["axis:accuracy"]}]}'
)
_Text = Annotated[StrictStr, StringConstraints(pattern=r"\S")]


class _Fields(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)


class _MessageFields(_Fields):
    role: Literal["system", "user", "assistant"]
    content: _Text


class Criterion(_Fields):
    """A criterion of a rubric."""

    text: _Text = Field(validation_alias="criterion")
    points: float = Field(allow_inf_nan=False)
    """Points that an answer gets if it meets the criterion; below zero for what it must not do."""
    tags: list[StrictStr] = []
    """Tags of the criterion, such as `axis:accuracy`."""


class _RowFields(_Fields):
    id: str | int | None = Field(default=None, validation_alias=AliasChoices("prompt_id", "id"))
    prompt: list[_MessageFields] = Field(min_length=1)
    rubrics: list[Criterion] = Field(min_length=1)
    example_tags: list[StrictStr] = []


@dataclass(frozen=True)
class RubricRow:
    """A conversation that a model answers, and the criteria of its answer."""

    id: str
    messages: tuple[dict[str, str], ...]
    """The conversation; its last message is the user's."""
    criteria: tuple[Criterion, ...]
    """At least one has points above zero."""
    tags: tuple[str, ...]
    """Tags of the conversation, such as `theme:emergency_referrals`."""

    @cached_property
    def messages_sha256(self) -> str:
        """SHA-256 of the conversation."""
        return hashlib.sha256(canonical_json(list(self.messages))).hexdigest()

    @property
    def cluster(self) -> str:
        """Short hash of the conversation: rows that repeat one are not independent."""
        return short_hash(self.messages_sha256)


@dataclass(frozen=True)
class RubricSet:
    """The rows of a file of rubrics, sorted by the SHA-256 of their ids."""

    name: str
    """Name of the file without suffixes."""
    file_name: str
    file_sha256: str
    """SHA-256 of the file's content."""
    rows: tuple[RubricRow, ...]

    def first(self, limit: int) -> "RubricSet":
        """Return the set with its first rows only, an unbiased sample of them."""
        return RubricSet(self.name, self.file_name, self.file_sha256, self.rows[:limit])

    @cached_property
    def rows_sha256(self) -> str:
        """SHA-256 of the rows: conversations, criteria and tags."""
        values = [
            [
                row.id,
                list(row.messages),
                [criterion.model_dump() for criterion in row.criteria],
                list(row.tags),
            ]
            for row in self.rows
        ]
        return hashlib.sha256(canonical_json(values)).hexdigest()


def is_rubric_file(spec: str) -> bool:
    """Return True if a task is a file whose first row has a conversation and rubrics."""
    path = Path(spec)
    if not path.is_file():
        return False
    try:
        fields = next(iter(read_source_rows(path))).fields
    except (InputError, StopIteration):
        return False  # the reader of question files says what is wrong with the file
    return isinstance(fields.get("prompt"), list) and "rubrics" in fields


def open_rubrics(path: Path) -> RubricSet:
    """Read a file of rubrics: JSON lines, JSON or Parquet, plain or compressed.

    Raises:
        InputError: the file is damaged, or a row is not a conversation with rubrics; names line and field.
        SourceError: there is no such file.
    """
    rows: dict[str, RubricRow] = {}
    for source_row in read_source_rows(path):
        row = _read_row(path, source_row)
        if row.id in rows:
            raise InputError(path, f"a second row with the id {row.id!r}", place=source_row.place)
        rows[row.id] = row
    if not rows:
        raise InputError(path, "the file has no rubrics", hint=_FORM)
    return RubricSet(
        name=task_name(path),
        file_name=path_as_text(Path(path.name)),
        file_sha256=content_digest(path),
        rows=tuple(sorted(rows.values(), key=lambda row: hash_order_key(row.id))),
    )


def _read_row(path: Path, source_row: SourceRow) -> RubricRow:
    try:
        fields = _RowFields.model_validate(source_row.fields)
    except ValidationError as error:
        field, problem = first_problem(error)
        raise InputError(path, f"{field}: {problem}", place=source_row.place, hint=_FORM) from error
    if reason := _problem_of_row(fields.prompt, fields.rubrics, fields.example_tags):
        raise InputError(path, reason, place=source_row.place)
    return RubricRow(
        id=source_row.id if fields.id is None else str(fields.id),
        messages=tuple(message.model_dump() for message in fields.prompt),
        criteria=tuple(fields.rubrics),
        tags=tuple(fields.example_tags),
    )


def _problem_of_row(
    messages: Sequence[_MessageFields], criteria: Iterable[Criterion], tags: Sequence[str]
) -> str | None:
    if messages[-1].role != "user":
        return f"the last message must be the user's, got that of the {messages[-1].role}"
    # Without positive points a score, which is a share of them, is not defined.
    if not any(criterion.points > 0 for criterion in criteria):
        return "no criterion has points above 0"
    for names in (tags, *(criterion.tags for criterion in criteria)):
        if len({*names}) < len(names):
            return f"a tag is listed twice: {', '.join(names)}"
    return None
