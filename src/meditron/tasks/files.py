"""A file of multiple-choice questions as a task."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from meditron.core.console import warn
from meditron.core.errors import InputError
from meditron.sources.streams import as_text
from meditron.store.files import read_json
from meditron.tasks.choices import Convention, Malformed
from meditron.tasks.formats import SHAPES, DatasetFormat, Draft, lowered, to_question
from meditron.tasks.prompt_template import PROMPT_TEMPLATES
from meditron.tasks.question import Question, place
from meditron.tasks.rows import Row, read_rows
from meditron.tasks.task import Questions, Split, Task

__all__ = ["file_task"]

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_ENDINGS = {".jsonl", ".json", ".csv", ".gz", ".bz2", ".zst"}


def file_task(path: Path) -> Task:
    """The questions of a file, whose shape its first row tells. All of them are train and test alike.

    MMLU's subject is its file's name. Only PubMedQA has a split of its own: the ids in the file
    `test_ground_truth*.json` beside it are the test, as in its authors' repository.

    Raises:
        InputError: the file is damaged, of no known shape, or one of its rows is no question; names the line.
        SourceError: there is no such file.
    """
    rows = list(_lowered(path, read_rows(path)))
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
        PROMPT_TEMPLATES[shape.template],
        splits.__getitem__,
        data=as_text(Path(path.name)),
        split=split,
    )


def _stem(path: Path) -> str:
    while path.suffix in _ENDINGS:
        path = path.with_suffix("")
    return _CONTROL.sub("?", as_text(Path(path.name)))


def _shape(path: Path, rows: list[Row]) -> DatasetFormat:
    if not rows:
        raise InputError(path, "the file holds no questions")
    for shape in SHAPES:
        if shape.fits(rows[0].fields):
            return shape
    raise InputError(
        path,
        f"a row with the fields of no known set of questions: {', '.join(rows[0].fields)[:120]}",
        place=rows[0].place,
        hint='your own rows: {"id", "question", "options": […], "gold": letter or index from 0, "context"}',
    )


def _lowered(path: Path, rows: Iterable[Row]) -> Iterator[Row]:
    for row in rows:
        try:
            yield lowered(row)
        except Malformed as error:
            raise InputError(path, str(error), place=row.place) from error


def _questions(path: Path, shape: DatasetFormat, rows: list[Row]) -> Questions:
    """The rows' questions in the order of their ids' SHA-256."""
    found: dict[str, Question] = {}
    skipped: Counter[str] = Counter()
    for row, question in _read(path, shape, rows):
        if isinstance(question, str):
            skipped[question] += 1
            continue
        if question.id in found:
            raise InputError(path, f"a second question with the id {question.id!r}", place=row.place)
        found[question.id] = question
    if not found:
        reasons = "; ".join(f"{reason} ({count} rows)" for reason, count in skipped.items())
        raise InputError(path, f"no row of the file is a question: {reasons}")
    if repeats := len(found) - len({question.content_sha256 for question in found.values()}):
        warn(f"{path}: {repeats} of {len(found)} questions repeat another's text and options")
    return Questions(
        tuple(sorted(found.values(), key=lambda question: place(question.id))), dict(sorted(skipped.items()))
    )


def _read(path: Path, shape: DatasetFormat, rows: list[Row]) -> Iterator[tuple[Row, Question | str]]:
    """Yield each row with its question, or with the reason for which it is left out."""
    drafts: list[Draft | Malformed] = []
    for row in rows:
        try:
            drafts.append(shape.draft(row))
        except Malformed as error:
            drafts.append(error)
    conventions = _conventions(path, [draft for draft in drafts if isinstance(draft, Draft)])
    for row, draft in zip(rows, drafts, strict=True):
        try:
            if isinstance(draft, Malformed):
                raise draft
            found = to_question(draft, lambda draft: _gold(draft, conventions))
        except Malformed as error:
            if error.reason not in shape.left_out:
                raise InputError(path, str(error), place=row.place) from error
            yield row, error.reason
            continue
        if shape.name == "mmlu" and found.group is None:
            found = replace(found, group=re.sub("_(dev|val|test)$", "", _stem(path)))
        yield row, found


def _conventions(path: Path, drafts: list[Draft]) -> dict[str, Convention]:
    """Decide how the answers under each key are meant; warn if their indexes may count from 0 or from 1."""
    keys = dict.fromkeys(key for draft in drafts for key in draft.answers)
    found = {
        key: Convention(key, ((d.answers[key], d.options) for d in drafts if key in d.answers))
        for key in keys
    }
    for key, convention in found.items():
        if not convention.certain:
            warn(
                f"{path}: the answers ({key}) do not tell what they count from; read as counted from "
                f"{convention.first}"
            )
    return found


def _gold(draft: Draft, conventions: Mapping[str, Convention]) -> int | None:
    """The gold option by every key that has an answer; Malformed where they name different options."""
    told = {key: conventions[key].place(value, draft.options) for key, value in draft.answers.items()}
    given = {key: gold for key, gold in told.items() if gold is not None}
    if len(set(given.values())) > 1:
        names = " and ".join(f"{key} ({draft.answers[key]!s:.40})" for key in given)
        raise Malformed(f"{names} name different options")
    return next(iter(given.values()), None)


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
