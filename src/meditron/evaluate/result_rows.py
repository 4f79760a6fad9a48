"""Reading of one model's rows, from one or several files, for comparison."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from meditron.core.errors import SourceError, UsageError
from meditron.evaluate.rows import PERPLEXITY, DocumentRow, EvalRow, QuestionRow
from meditron.evaluate.rows_file import read_rows
from meditron.store.jsonl import read_jsonl

__all__ = ["ItemKey", "ResultRows", "open_result"]

ItemKey = tuple[str, ...]
"""Key of a document or question (`EvalRow.item_key`): its id and the hash of its content."""
R = TypeVar("R", bound=EvalRow)


@dataclass(frozen=True, slots=True, kw_only=True)
class ResultRows:
    """All rows of one model."""

    name: str
    """Name of the result in reports."""
    documents: Sequence[Mapping[ItemKey, DocumentRow]]
    """For each setting of the evaluation, the rows of documents by item."""
    tasks: Mapping[str, Sequence[Mapping[ItemKey, QuestionRow]]]
    """Task → for each setting of the evaluation, the rows of questions by item."""
    variant_counts: Mapping[str, int] = field(default_factory=dict)
    """Task → number of rows in other orders of the options or by other seeds, which `tasks` does not have."""

    @property
    def row_count(self) -> int:
        """Number of rows."""
        return sum(
            map(len, (*self.documents, *(rows for settings in self.tasks.values() for rows in settings)))
        )


def open_result(spec: str) -> ResultRows:
    """Read the rows of a result.

    Args:
        spec: A rows file or the folder of an evaluation. `:model` after it selects one of several models.

    Raises:
        SourceError: there is no such file.
        UsageError: there are several models and none is selected, or the selected one has no rows.
        InputError: a file is damaged.
    """
    path, model = _split_spec(spec)
    # The folder may contain other JSONL files, such as the rows of fidelity, which compare two models
    # already.
    inside = [
        file for file in sorted(path.glob("*.jsonl")) if file.name == PERPLEXITY or _has_questions(file)
    ]
    files = inside if path.is_dir() else [path]
    if not files and any(path.glob("rubrics-*.answers.jsonl")):
        raise UsageError(
            f"{path}: has scores by rubrics only, whose differences are computed by the evaluation itself",
            hint="evaluate both models in one recipe: `models` and `rubrics` of its evaluate stage",
        )
    if not files:
        raise SourceError(
            f"{path}: no rows of an evaluation in it", hint="name a rows file or an evaluation's folder"
        )
    documents: list[DocumentRow] = []
    questions: list[QuestionRow] = []
    variants: list[QuestionRow] = []
    for file in files:
        if _has_questions(file):
            # Rows in another order of the options or by another seed are no second sample of the questions.
            for row in read_rows(file, QuestionRow):
                (variants if row.option_order or row.seed_offset else questions).append(row)
        else:
            documents += read_rows(file, DocumentRow)
    selected = _select_model(path, model, [*documents, *questions])
    tasks: dict[str, list[QuestionRow]] = {}
    for row in questions:
        if selected in _model_names(row):
            tasks.setdefault(row.task, []).append(row)
    return ResultRows(
        name=spec,
        documents=_group_by_setting(row for row in documents if selected in _model_names(row)),
        tasks={task: _group_by_setting(rows) for task, rows in tasks.items()},
        variant_counts=Counter(row.task for row in variants if selected in _model_names(row)),
    )


def _split_spec(spec: str) -> tuple[Path, str | None]:
    """Split `folder:model` at the first colon that follows the path of an existing file or folder."""
    # Names of models and folders may contain colons, such as `quantize:F16`.
    if Path(spec).exists():
        return Path(spec), None
    for index, character in enumerate(spec):
        if character == ":" and Path(spec[:index]).exists():
            return Path(spec[:index]), spec[index + 1 :]
    raise SourceError(f"{spec}: no such file or folder")


def _has_questions(file: Path) -> bool:
    # Decided by content, because names of rows files depend on the tasks.
    return "task" in next(read_jsonl(file), {})


def _group_by_setting(rows: Iterable[R]) -> list[Mapping[ItemKey, R]]:
    """Group rows by cache key and scoring, because a file may contain several evaluations of a model."""
    settings: dict[tuple[str, str], dict[ItemKey, R]] = {}
    for row in rows:
        scoring = row.scoring_name if isinstance(row, QuestionRow) else ""
        settings.setdefault((row.cache_key, scoring), {})[row.item_key()] = row
    return list(settings.values())


def _model_names(row: EvalRow) -> set[str]:
    """Return the two names that select a row's model: `NAME` and `NAME@DIGEST`, with the digest shortened."""
    return {row.model} if row.model_digest is None else {row.model, f"{row.model}@{row.model_digest[:8]}"}


def _select_model(path: Path, model: str | None, rows: Sequence[EvalRow]) -> str:
    names = sorted({row.model for row in rows})
    if model is None and len(names) == 1:
        model = names[0]
    known = set[str]().union(*map(_model_names, rows))
    if model is None or model not in known:
        problem = "several models' rows" if model is None else f"no rows of '{model}'"
        raise UsageError(
            f"{path} holds {problem} (it has: {', '.join(names) or 'none'})", hint=f"write {path}:MODEL"
        )
    # Rows of different weights under one name must not be mixed.
    digests = sorted({row.model_digest or "not known" for row in rows if model in _model_names(row)})
    if len(digests) > 1:
        choice = " or ".join(f"{path}:{model}@{digest[:8]}" for digest in digests)
        raise UsageError(
            f"{path} holds rows of {len(digests)} different weights under the name {model}",
            hint=f"write {choice}",
        )
    return model
