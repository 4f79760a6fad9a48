"""A file of multiple-choice questions as a task."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from meditron.ground.console import warn
from meditron.ground.errors import InputError
from meditron.store.files import read_json
from meditron.tasks.layout import LAYOUTS
from meditron.tasks.question import Question, place
from meditron.tasks.rows import Row, read_rows
from meditron.tasks.shapes import SHAPES, Malformed, Shape
from meditron.tasks.task import Questions, Split, Task

__all__ = ["file_task"]

_ENDINGS = {".jsonl", ".json", ".csv", ".gz", ".bz2", ".zst"}


def file_task(path: Path) -> Task:
    """The questions of a file, whose shape its first row tells. All of them are train and test alike.

    MMLU's subject is its file's name. Only PubMedQA has a split of its own: the ids in the file
    `test_ground_truth*.json` beside it are the test, as in its authors' repository.

    Raises:
        InputError: the file is damaged, of no known shape, or one of its rows is no question; names the line.
        SourceError: there is no such file.
    """
    rows = list(read_rows(path))
    shape = _shape(path, rows)
    questions = _questions(path, shape, rows)
    for reason, count in questions.skipped.items():
        warn(f"{path}: {count} of {len(rows)} rows left out: {reason}")
    splits: dict[Split, Questions] = {"train": questions, "test": questions}
    split = None
    if shape.name == "pubmedqa" and (truths := sorted(path.parent.glob("test_ground_truth*.json"))):
        splits, split = _official(questions, truths[0]), "test"
    return Task(
        _stem(path),
        shape.version,
        shape.title,
        shape.licence,
        shape.origin,
        LAYOUTS[shape.layout],
        splits.__getitem__,
        data=path.name,
        split=split,
    )


def _stem(path: Path) -> str:
    while path.suffix in _ENDINGS:
        path = path.with_suffix("")
    return path.name


def _shape(path: Path, rows: list[Row]) -> Shape:
    if not rows:
        raise InputError(path, "the file holds no questions")
    for shape in SHAPES:
        if shape.fields <= rows[0].fields.keys():
            return shape
    raise InputError(
        path,
        f"a row with the fields of no known set of questions: {', '.join(rows[0].fields)[:120]}",
        place=rows[0].place,
        hint='rows of your own: {"id", "question", "options": […], "gold": index or letter, "context"}',
    )


def _questions(path: Path, shape: Shape, rows: list[Row]) -> Questions:
    """The rows' questions in the order of their ids' SHA-256."""
    found: dict[str, Question] = {}
    skipped: Counter[str] = Counter()
    for row in _counted_from_one(path, rows) if shape.name == "medmcqa" else rows:
        try:
            question = _question(path, shape, row)
        except Malformed as error:
            if error.reason not in shape.left_out:
                raise InputError(path, str(error), place=row.place) from error
            skipped[error.reason] += 1
            continue
        if question.id in found:
            raise InputError(path, f"a second question with the id {question.id!r}", place=row.place)
        found[question.id] = question
    if not found:
        raise InputError(path, "no row of the file is a question")
    return Questions(
        tuple(sorted(found.values(), key=lambda question: place(question.id))), dict(sorted(skipped.items()))
    )


def _question(path: Path, shape: Shape, row: Row) -> Question:
    if missing := sorted(shape.fields - row.fields.keys()):
        raise Malformed(f"no {' and no '.join(missing)}")
    question = shape.question(row)
    if shape.name == "mmlu":
        return replace(question, group=re.sub("_(dev|val|test)$", "", _stem(path)))
    return question


def _counted_from_one(path: Path, rows: list[Row]) -> Iterable[Row]:
    """MedMCQA's answers count from 1 as published and from 0 on the hub; the whole file tells which."""
    answers = {row.fields.get("cop") for row in rows if type(row.fields.get("cop")) is int}
    if {0, 4} <= answers:
        raise InputError(path, "answers (cop) from 0 to 4: neither counted from 0 nor from 1")
    if not {0, 4} & answers:
        warn(f"{path}: no answer (cop) is 0 or 4; read as counted from 1, as published")
    if 0 not in answers:
        return rows
    return (replace(row, fields=row.fields | {"cop": _next(row.fields.get("cop"))}) for row in rows)


def _next(cop: object) -> object:
    return cop + 1 if type(cop) is int and cop >= 0 else cop


def _official(questions: Questions, truths: Path) -> dict[Split, Questions]:
    """PubMedQA's own split; InputError where the two files do not belong together."""
    labels = read_json(truths)
    if not isinstance(labels, dict):
        raise InputError(truths, "no object of labels by PMID")
    told = {question.id: question.options[question.gold] for question in questions.rows}
    for identity, label in labels.items():
        if told.get(identity) != label:
            problem = f"{label!r}, where the questions have {told.get(identity)!r}"
            raise InputError(truths, problem, place=identity)
    test = tuple(question for question in questions.rows if question.id in labels)
    train = tuple(question for question in questions.rows if question.id not in labels)
    return {"train": Questions(train), "test": Questions(test)}
