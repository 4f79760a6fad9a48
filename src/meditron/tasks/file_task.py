"""Tasks from files of multiple-choice questions."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from meditron.core.console import warn
from meditron.core.errors import InputError
from meditron.sources.streams import path_as_text
from meditron.store.files import read_json
from meditron.store.identity import hash_order_key
from meditron.tasks.choices import AnswerConvention, MalformedRow
from meditron.tasks.drafts import QUESTION_KEYS, QuestionDraft, normalize_keys, to_question
from meditron.tasks.file_rows import SourceRow, read_source_rows
from meditron.tasks.formats import FORMATS, DatasetFormat
from meditron.tasks.prompt_template import PROMPT_TEMPLATES
from meditron.tasks.question import Question
from meditron.tasks.task import Split, SplitQuestions, Task

__all__ = ["name_in_reference", "open_file_task", "read_dataset_row", "task_name"]

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_SUFFIXES = {".jsonl", ".json", ".csv", ".parquet", ".gz", ".bz2", ".zst"}
_OWN_FORMAT = (
    'a question of your own is a line like {"question": "Which organ makes insulin?", "options": ["Liver", '
    '"Pancreas"], "answer": "B"}'
)


def open_file_task(path: Path) -> Task:
    """Open a file of questions as a task. The first row decides which format the file has.

    All questions are in both splits, unless there is a file of test ids, which some formats have, beside it.

    Raises:
        InputError: the file is damaged, of unknown format, or one of its rows is not a question; names the
            line.
        SourceError: there is no such file.
    """
    # All rows are read at once: the meaning of an answer can depend on the other rows (`AnswerConvention`).
    rows = list(_with_normalized_keys(path, read_source_rows(path)))
    known = _recognize_format(path, rows)
    questions = _ordered_questions(path, known, rows)
    for reason, count in questions.skipped.items():
        warn(f"{path}: {count} of {len(rows)} rows left out: {reason}")
    splits: dict[Split, SplitQuestions] = {"train": questions, "test": questions}
    split = None
    if known.test_ids and (files := sorted(path.parent.glob(known.test_ids))):
        splits, split = _split_by_ids(questions, files[0]), "test"
    return Task(
        name=task_name(path),
        version=known.version,
        title=known.title,
        licence=known.licence,
        origin=known.origin,
        template=PROMPT_TEMPLATES[known.template],
        read_split=splits.__getitem__,
        data_file=path_as_text(Path(path.name)),
        test_split_name=split,
    )


def task_name(path: Path) -> str:
    """Return the name of the task of a file: `test` for `test.jsonl.gz`."""
    while path.suffix in _SUFFIXES:
        path = path.with_suffix("")
    return _CONTROL.sub("?", path_as_text(Path(path.name)))


def name_in_reference(reference: str) -> str:
    """Return the name of the task of a file in a recipe: a path, `pypi:…#PATH` or a URL, with any digest."""
    return task_name(Path(reference.partition("@sha256:")[0].rpartition("#")[2]))


def read_dataset_row(fields: Mapping[str, Any], id_: str, gold: int) -> Question | None:
    """Read one row of a published dataset whose gold option is known from elsewhere.

    Args:
        fields: The row.
        id_: Id of the question, unless the row has one.
        gold: Index of the gold option.

    Returns:
        The question; None if the row is in none of the known formats.
    """
    try:
        row = normalize_keys(SourceRow(fields=dict(fields), id=id_, place=id_))
        known = next((known for known in FORMATS if known.matches(row.fields)), None)
        return to_question(known.read_draft(row), lambda _: gold) if known else None
    except MalformedRow:
        return None


def _recognize_format(path: Path, rows: list[SourceRow]) -> DatasetFormat:
    if not rows:
        raise InputError(path, "the file holds no questions")
    fields = rows[0].fields
    # The first row decides: published datasets have the same fields in every row.
    for known in FORMATS:
        if known.matches(fields):
            return known
    if "rubrics" in fields:
        hint = "its open answers need a judge: --judge MODEL, or `rubrics` and `judges` in a recipe"
        raise InputError(path, "conversations with rubrics, not multiple-choice questions", hint=hint)
    if any(key in fields for key in QUESTION_KEYS):
        problem = f"a question without options or without an answer, in the fields {', '.join(fields)[:120]}"
    else:
        problem = f"the fields are not those of a known set of questions: {', '.join(fields)[:120]}"
    raise InputError(path, problem, place=rows[0].place, hint=_OWN_FORMAT)


def _with_normalized_keys(path: Path, rows: Iterable[SourceRow]) -> Iterator[SourceRow]:
    for row in rows:
        try:
            yield normalize_keys(row)
        except MalformedRow as error:
            raise InputError(path, str(error), place=row.place) from error


def _ordered_questions(path: Path, known: DatasetFormat, rows: list[SourceRow]) -> SplitQuestions:
    """Return the questions of the rows, sorted by the SHA-256 of their ids."""
    questions_by_id: dict[str, Question] = {}
    skipped: Counter[str] = Counter()
    for row, question in _iterate_questions(path, known, rows):
        if isinstance(question, str):
            skipped[question] += 1
            continue
        # Rows are matched by id in comparisons, so ids must be unique.
        if question.id in questions_by_id:
            raise InputError(path, f"a second question with the id {question.id!r}", place=row.place)
        questions_by_id[question.id] = question
    if not questions_by_id:
        reasons = "; ".join(f"{reason} ({count} rows)" for reason, count in skipped.items())
        raise InputError(path, f"no row of the file is a question: {reasons}")
    if repeats := len(questions_by_id) - len(
        {question.content_sha256 for question in questions_by_id.values()}
    ):
        warn(f"{path}: {repeats} of {len(questions_by_id)} questions repeat another's text and options")
    ordered = sorted(questions_by_id.values(), key=lambda question: hash_order_key(question.id))
    return SplitQuestions(rows=tuple(ordered), skipped=dict(sorted(skipped.items())))


def _iterate_questions(
    path: Path, known: DatasetFormat, rows: list[SourceRow]
) -> Iterator[tuple[SourceRow, Question | str]]:
    """Yield each row with its question, or with the reason to skip the row.

    Warn if answers may count from 0 or from 1.
    """
    # First pass: everything except the answers, whose meaning all drafts together decide.
    drafts: list[QuestionDraft | MalformedRow] = []
    for row in rows:
        try:
            drafts.append(known.read_draft(row))
        except MalformedRow as error:
            drafts.append(error)
    conventions = _answer_conventions([draft for draft in drafts if isinstance(draft, QuestionDraft)])
    for row, draft in zip(rows, drafts, strict=True):
        try:
            if isinstance(draft, MalformedRow):
                raise draft
            question = to_question(draft, lambda draft: _gold_option(draft, conventions))
        except MalformedRow as error:
            if error.reason not in known.skipped_reasons:
                raise InputError(path, str(error), place=row.place) from error
            yield row, error.reason
            continue
        if known.group_from_file and question.group is None:
            question = replace(question, group=known.group_from_file(task_name(path)))
        yield row, question
    # After the rows: of a file that is refused, only the error matters.
    for key, convention in conventions.items():
        if not convention.certain:
            warn(
                f"{path}: the answers ({key}) do not show whether they count from 0 or 1; they are read as "
                f"counted from {convention.first_index}"
            )


def _answer_conventions(drafts: list[QuestionDraft]) -> dict[str, AnswerConvention]:
    """Decide for each key how to read its answers."""
    keys = dict.fromkeys(key for draft in drafts for key in draft.answers)
    return {
        key: AnswerConvention(key, ((d.answers[key], d.options) for d in drafts if key in d.answers))
        for key in keys
    }


def _gold_option(draft: QuestionDraft, conventions: Mapping[str, AnswerConvention]) -> int | None:
    """Return the index of the gold option; MalformedRow if two keys of the row name different options."""
    # Some datasets give the answer twice, as a letter and as a text; a contradiction is a damaged row.
    by_key = {key: conventions[key].gold_index(value, draft.options) for key, value in draft.answers.items()}
    present = {key: gold for key, gold in by_key.items() if gold is not None}
    if len(set(present.values())) > 1:
        names = " and ".join(f"{key} ({draft.answers[key]!s:.40})" for key in present)
        raise MalformedRow(f"{names} name different options")
    return next(iter(present.values()), None)


def _split_by_ids(questions: SplitQuestions, ids_file: Path) -> dict[Split, SplitQuestions]:
    """Split the questions by the test ids in a file.

    Raises:
        InputError: a gold answer in the file differs from that of the question.
    """
    labels = read_json(ids_file)
    if not isinstance(labels, dict):
        raise InputError(ids_file, "not an object of gold answers by id")
    gold = {question.id: question.options[question.gold] for question in questions.rows}
    # Compared with the questions: ids of another version of the dataset would give a wrong split unnoticed.
    for identity, label in labels.items():
        if gold.get(identity) != label:
            problem = f"the gold answer is {label!r} here, but {gold.get(identity)!r} in the questions"
            raise InputError(ids_file, problem, place=identity)
    test = tuple(question for question in questions.rows if question.id in labels)
    train = tuple(question for question in questions.rows if question.id not in labels)
    return {"train": SplitQuestions(rows=train), "test": SplitQuestions(rows=test)}
