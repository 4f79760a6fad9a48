"""Folders of imported results: rows, `results.json` and pages, as the evaluate stage writes them."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from meditron.core.errors import InputError, SourceError, UsageError
from meditron.evaluate.accuracy import constant_baselines, row_figures
from meditron.evaluate.eval_set import rows_file_name
from meditron.evaluate.methods.loglikelihood import Loglikelihood, LoglikelihoodRow
from meditron.evaluate.question_page import question_page_name, write_question_page
from meditron.evaluate.rows import QuestionRow
from meditron.evaluate.rows_file import RowsFile, lock_rows_file
from meditron.report.evaluation_page import write_evaluation_page
from meditron.store.files import read_json, refuse_overwrite, sha256_file
from meditron.store.import_record import ImportedFile, ImportRecord
from meditron.store.jsonl import read_numbered_jsonl
from meditron.store.results import (
    Baseline,
    EvaluationResult,
    TaskScore,
    write_results,
)
from meditron.tasks.question import Question
from meditron.tasks.task import questions_sha256

__all__ = [
    "ImportedTask",
    "Sample",
    "file_record",
    "list_logs",
    "option_index",
    "read_log",
    "read_settings",
    "unique_ids",
    "write_imported",
]

_SEED, _RESAMPLES = 1, 10_000
_PAGE = (b"<!doctype html", b"<html")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One line of a log: its JSON object and its place."""

    path: Path
    line: int
    fields: Mapping[str, Any]

    def fail(self, problem: str, hint: str | None = None) -> NoReturn:
        """Raise an InputError that names the file and the line."""
        raise InputError(self.path, problem, place=f"line {self.line}", hint=hint)

    def get(self, key: str, kind: type | tuple[type, ...]) -> Any:  # noqa: ANN401  # of type `kind`
        """Return the value at a dotted key; InputError if it is missing or of another type."""
        value: Any = self.fields
        for name in key.split("."):
            if not isinstance(value, Mapping) or name not in value:
                self.fail(f"{key} is missing")
            value = value[name]
        # True is an int in Python, but not a number in JSON.
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            names = " or ".join(each.__name__ for each in (kind if isinstance(kind, tuple) else (kind,)))
            self.fail(f"{key} must be {names}, got {value!r:.60}")
        return value

    def finite(self, value: object, name: str) -> float:
        """Return a number, given as such or as text; InputError if it is none, NaN or infinite."""
        try:
            number = float(value) if isinstance(value, str | int | float) else math.nan
        except ValueError:
            number = math.nan
        if not math.isfinite(number):
            self.fail(f"{name} must be a finite number, got {value!r:.60}")
        return number


@dataclass(frozen=True, slots=True, kw_only=True)
class ImportedTask:
    """The rows of one task, and the questions that they answer."""

    name: str
    rows: Sequence[QuestionRow]
    questions: Sequence[Question]
    """The question of each row."""
    data: str
    """Name of the data, as the source names it."""


def list_logs(source: Path, glob: str, hint: str) -> list[Path]:
    """Return the logs in a folder, or the one log that is named.

    Raises:
        SourceError: there is no such file or folder, or the folder has no logs; with the hint.
    """
    if not source.is_dir():
        if not source.is_file():
            raise SourceError(f"{source}: no such file or folder")
        return [source]
    logs = sorted(source.rglob(glob))
    if not logs:
        raise SourceError(f"{source}: no {glob} in it", hint=hint)
    return logs


def read_log(path: Path) -> Iterator[Sample]:
    """Yield the lines of a JSONL log.

    Raises:
        InputError: the file is a web page or is empty, or a line is not a JSON object or is incomplete.
        SourceError: there is no such file.
    """
    if path.is_file() and path.suffix not in (".gz", ".zst"):
        with path.open("rb") as file:
            if file.read(64).lstrip().lower().startswith(_PAGE):
                hint = "the server sent an error or a login page; download the file again"
                raise InputError(path, "a web page, not JSON lines", place="line 1", hint=hint)
    sample = None
    for line, fields in read_numbered_jsonl(path):
        sample = Sample(path=path, line=line, fields=fields)
        try:
            json.dumps(fields, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            sample.fail("a text contains a lone surrogate, which UTF-8 cannot encode")
        yield sample
    if sample is None:
        raise InputError(path, "the file has no samples")


def read_settings(path: Path) -> dict[str, Any]:
    """Read a JSON file with the settings of an evaluation; InputError if it is not a JSON object."""
    value = read_json(path)
    if not isinstance(value, dict):
        raise InputError(path, "not a JSON object")
    return value


def option_index(text: str, options: Sequence[str]) -> int | None:
    """Return the index of the option that a text is, or whose letter it is; None if it is none."""
    bare = text.strip()
    stripped = [option.strip() for option in options]
    if bare in stripped:
        return stripped.index(bare)
    letter = bare.strip("().").upper()
    index = ord(letter) - ord("A") if len(letter) == 1 else -1
    return index if 0 <= index < len(options) else None


def write_imported(
    tasks: Sequence[ImportedTask], record: ImportRecord, sources: Sequence[Path], out: Path
) -> tuple[EvaluationResult, list[Path]]:
    """Write the rows, `results.json` and the pages of imported results.

    Args:
        tasks: The tasks; one rows file each.
        record: Origin of the results.
        sources: The files that were read, which are never overwritten.
        out: The folder. Rows of other models and settings in it are kept.

    Returns:
        The results, and the paths of the rows files.

    Raises:
        UsageError: a written file would replace a source.
        InputError: a file in the folder is not a rows file.
    """
    paths = [out / rows_file_name(task.name) for task in tasks]
    pages = [out / question_page_name(path.name) for path in paths]
    written = [*paths, *pages, out / "results.json", out / "report.html"]
    refuse_overwrite(written, sources)
    if len({*paths}) != len(paths):
        raise UsageError("two tasks would have the same rows file", hint="import them one by one")
    for task, path in zip(tasks, paths, strict=True):
        with lock_rows_file(path), RowsFile(path, QuestionRow) as file:
            file.rewrite_sorted([*file.rows, *task.rows])
    scores: dict[str, dict[str, TaskScore]] = {}
    baselines: dict[str, dict[str, Baseline]] = {}
    for task, path in zip(tasks, paths, strict=True):
        for label, rows in _by_scoring(task).items():
            score = _score(task, label, rows, path.name)
            scores.setdefault(score.model, {})[label] = score
            baselines[label] = constant_baselines(label, [row.gold for row in rows], score.classes)
    first = tasks[0].rows[0]
    result = EvaluationResult(
        tasks=scores,
        baselines=baselines,
        engines={task.rows[0].model: task.rows[0].engine for task in tasks if task.rows[0].engine},
        imported=record,
        rows=paths[0].name,
        dtype=first.dtype,
        seed=_SEED,
        resamples=_RESAMPLES,
    )
    write_results(out, result)
    links = {
        path.name: write_question_page(out, path.name, task.name, task.questions, _answers(task))
        for task, path in zip(tasks, paths, strict=True)
    }
    write_evaluation_page(out / "report.html", result, links)
    return result, paths


def _answers(task: ImportedTask) -> dict[str, Sequence[QuestionRow]]:
    """Return name in the page of questions → rows: the model's, with the scoring if there are several.

    Scorings of other samples than the first are left out.
    """
    groups = _by_scoring(task)
    model = task.rows[0].model
    ids = {row.id for row in next(iter(groups.values()))}
    return {
        f"{model}{label.removeprefix(task.name)}": rows
        for label, rows in groups.items()
        if {row.id for row in rows} == ids
    }


def _by_scoring(task: ImportedTask) -> dict[str, list[QuestionRow]]:
    """Return label → rows: a task has several scorings if its source has several results of a sample."""
    groups: dict[str, list[QuestionRow]] = {}
    for row in task.rows:
        groups.setdefault(row.scoring_name, []).append(row)
    return {task.name if len(groups) == 1 else f"{task.name} ({name})": rows for name, rows in groups.items()}


def _score(task: ImportedTask, label: str, rows: Sequence[QuestionRow], file: str) -> TaskScore:
    by_id = {question.id: question for question in task.questions}
    questions = [by_id[row.id] for row in rows]
    options = {question.options for question in questions}
    answers = [row for row in rows if isinstance(row, LoglikelihoodRow)]
    return TaskScore(
        **row_figures(
            rows, next(iter(options)) if len(options) == 1 else (), seed=_SEED, resamples=_RESAMPLES
        ),
        task=label,
        version=None,
        data=task.data,
        template=None,
        method_description="answers as another program recorded them",
        shots=rows[0].shots,
        repeated=len(questions) - len({question.content_sha256 for question in questions}),
        data_sha256=questions_sha256(questions),
        rows=file,
        **(Loglikelihood().score_fields(answers) if answers else {}),
    )


def file_record(path: Path, rows: int | None = None) -> ImportedFile:
    """Return the name, hash and number of samples of a file that was read."""
    return ImportedFile(name=path.name, sha256=sha256_file(path), rows=rows)


def unique_ids(samples: Sequence[tuple[Sample, tuple[str, ...]]]) -> None:
    """Raise InputError if two samples have one id, naming both lines."""
    seen: dict[tuple[str, ...], int] = {}
    for sample, key in samples:
        if key in seen:
            sample.fail(f"a second sample {json.dumps(key[-1])}; the first is in line {seen[key]}")
        seen[key] = sample.line
