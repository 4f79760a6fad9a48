"""Human labels of criteria: whether an answer meets a criterion, in the opinion of one or several people.

A label belongs to one answer, by its hash, so that it is never taken for the opinion on another answer. Rows
are `id` (or `prompt_id`), `answer_sha256`, `criterion` (its text), `met`, and optionally `rater`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from meditron.core.config import first_problem
from meditron.core.errors import InputError
from meditron.store.files import content_digest
from meditron.tasks.file_rows import read_source_rows

__all__ = ["HumanLabels", "LabelKey", "read_labels"]

LabelKey = tuple[str, str, str]
"""Id of the conversation, SHA-256 of the answer, text of the criterion."""
_FORM = (
    'a label is {"id": "1", "answer_sha256": "…", "criterion": "…", "met": true, "rater": "a"}; the '
    "hashes are in the file of answers"
)
_WORDS = {"true": True, "met": True, "false": False, "not met": False}


def _read_met(value: object) -> object:
    # A CSV file has texts only.
    return _WORDS.get(value.strip().lower(), value) if isinstance(value, str) else value


class _Label(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", strict=True)

    id: str | int = Field(validation_alias=AliasChoices("prompt_id", "id"))
    answer_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    criterion: str
    met: Annotated[bool, BeforeValidator(_read_met)]
    rater: str = ""


@dataclass(frozen=True)
class HumanLabels:
    """The labels of a file."""

    file_name: str
    file_sha256: str
    by_rater: dict[LabelKey, dict[str, bool]]
    """Criterion of an answer → rater → label."""

    def verdict(self, key: LabelKey) -> bool | None:
        """Return the label of most raters; None if there is none, or if they are tied."""
        labels: Sequence[bool] = [*self.by_rater.get(key, {}).values()]
        yes = sum(labels)
        return None if 2 * yes == len(labels) else 2 * yes > len(labels)


def read_labels(path: Path) -> HumanLabels:
    """Read a file of labels: JSON lines, JSON, CSV or Parquet.

    Raises:
        InputError: the file is damaged, a row is not a label, or a rater labelled a criterion twice.
        SourceError: there is no such file.
    """
    by_rater: dict[LabelKey, dict[str, bool]] = {}
    for row in read_source_rows(path):
        try:
            label = _Label.model_validate(row.fields)
        except ValidationError as error:
            field, problem = first_problem(error)
            raise InputError(path, f"{field}: {problem}", place=row.place, hint=_FORM) from error
        raters = by_rater.setdefault((str(label.id), label.answer_sha256, label.criterion), {})
        if label.rater in raters:
            problem = f"a second label of the rater '{label.rater}' for this criterion"
            raise InputError(
                path, problem, place=row.place, hint="several people need different values of rater"
            )
        raters[label.rater] = label.met
    return HumanLabels(path.name, content_digest(path), by_rater)
