"""Rows of published sets of questions as drafts, and drafts as questions.

Field names are compared in lower case. Texts are unchanged, white space at their ends included, because
prompts are compared to the character.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from string import ascii_uppercase
from typing import Any

from meditron.store.identity import hash_order_key
from meditron.tasks.choices import NO_ANSWER, AnswerOptions, MalformedRow, answer_keys, read_options
from meditron.tasks.file_rows import SourceRow
from meditron.tasks.question import Question

__all__ = [
    "QUESTION_KEYS",
    "REPEATED",
    "Draft",
    "normalize_keys",
    "plain_draft",
    "pubmedqa_draft",
    "standard_draft",
    "to_question",
    "truthfulqa_best_draft",
    "truthfulqa_mc1_draft",
]

REPEATED = "two options are the same"
QUESTION_KEYS = ("question", "question_stem", "stem", "sent1", "qtext", "input", "prompt", "query", "problem")

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_CONTEXT_KEYS = ("context", "article", "passage")
_GROUP_KEYS = ("group", "meta_info", "subject_name", "subject", "category", "body_system")
_EXPLANATION_KEYS = ("explanation", "exp")


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A row whose gold answer is not decided yet: that takes all rows of the file."""

    row: SourceRow
    text: object
    options: AnswerOptions
    answers: Mapping[str, object]
    """Key → the gold answer as it is in the row; several keys have to agree."""
    context: object = ""
    group: object = None
    explanation: object = None


def normalize_keys(row: SourceRow) -> SourceRow:
    """Return the row with field names in lower case with underscores: `Best Answer` is `best_answer`.

    Fields that ARC and the hub's MedQA nest in `question` or `data` become fields of the row.
    """
    fields = row.fields
    if isinstance(fields.get("data"), dict) and "question" not in fields:
        fields = fields | fields["data"]
    if isinstance(inner := fields.get("question"), dict) and "stem" in inner:
        fields = fields | inner | {"question": inner["stem"]}
    normalized: dict[str, Any] = {}
    for key, value in fields.items():
        name = re.sub(r"[ -]+", "_", key.strip().lower())
        if name in normalized:
            raise MalformedRow("two fields have the same name, apart from capitals and blanks", key)
        normalized[name] = value
    return replace(row, fields=normalized)


def standard_draft(row: SourceRow) -> Draft:
    """Read a row whose question, options and answer are under any of the usual keys."""
    fields = row.fields
    return Draft(
        row=row,
        text=_first(fields, QUESTION_KEYS, "question"),
        options=read_options(fields),
        answers={key: fields[key] for key in answer_keys(fields)},
        context=_first(fields, _CONTEXT_KEYS),
        group=_first(fields, _GROUP_KEYS),
        explanation=_first(fields, _EXPLANATION_KEYS),
    )


def plain_draft(row: SourceRow) -> Draft:
    """Read a row in our own format: only `gold` is the answer, an index from 0, a letter or a text."""
    return replace(
        standard_draft(row), answers={"gold": row.fields.get("gold")}, context=row.fields.get("context")
    )


def _first(fields: Mapping[str, Any], names: tuple[str, ...], required: str | None = None) -> object:
    for name in names:
        if fields.get(name) is not None:
            return fields[name]
    if required and not any(name in fields for name in names):
        raise MalformedRow(f"no {required}")
    return None


def pubmedqa_draft(row: SourceRow) -> Draft:
    """Read a row of PubMedQA as its authors publish it, or as on the hub, with contexts inside `context`."""
    fields = row.fields
    contexts = fields.get("contexts")
    if isinstance(inner := fields.get("context"), dict):
        contexts = inner.get("contexts")
    if not isinstance(contexts, list) or not contexts:
        raise MalformedRow("the contexts are not a list of texts", contexts)
    return Draft(
        row=row,
        text=_first(fields, ("question",), "question"),
        options=AnswerOptions(texts=("yes", "no", "maybe"), labels=("yes", "no", "maybe")),
        answers={"final_decision": fields.get("final_decision")},
        context="\n".join(_string(context, "context") for context in contexts),
        explanation=fields.get("long_answer"),
    )


def truthfulqa_mc1_draft(row: SourceRow) -> Draft:
    """Read answers with 1 for the right one: an object, or on the hub two lists."""
    targets = row.fields.get("mc1_targets")
    if isinstance(targets, dict) and targets.keys() == {"choices", "labels"}:
        choices, labels = targets["choices"], targets["labels"]
    elif isinstance(targets, dict):
        choices, labels = list(targets), list(targets.values())
    else:
        choices = labels = None
    if (
        not isinstance(choices, list)
        or not isinstance(labels, list)
        or len(choices) != len(labels)
        or sorted(labels, key=str) != [0] * (len(labels) - 1) + [1]
    ):
        raise MalformedRow("not one right answer among its targets", targets)
    return _one_right_draft(row, choices[labels.index(1)], choices)


def truthfulqa_best_draft(row: SourceRow) -> Draft:
    """Read the best answer and the incorrect ones: a list on the hub, text with semicolons in CSV."""
    best, wrong = _string(row.fields.get("best_answer"), "best answer"), row.fields.get("incorrect_answers")
    if not isinstance(wrong, list):
        wrong = _string(wrong, "answers").split(";")
    wrong = [_string(answer, "answer").strip() for answer in wrong]
    if best in wrong:
        raise MalformedRow("the best answer is among the incorrect ones", best)
    # Some incorrect answers are listed twice.
    return _one_right_draft(row, best, [best, *filter(None, dict.fromkeys(wrong))])


def _one_right_draft(row: SourceRow, right: object, options: list[Any]) -> Draft:
    # In hash order: the published order has the right answer first, which would give it away.
    texts = sorted(options, key=lambda option: hash_order_key(str(option)))
    return Draft(
        row=row,
        text=_first(row.fields, ("question",), "question"),
        options=AnswerOptions(texts=tuple(texts), labels=tuple(ascii_uppercase[: len(texts)])),
        answers={"gold": texts.index(right)},
        group=row.fields.get("category"),
    )


def to_question(draft: Draft, gold: Callable[[Draft], int | None]) -> Question:
    """Validate a draft and make it a question; its id is the row's number if the row has none.

    Args:
        draft: The draft.
        gold: Returns the gold option of a draft with valid options, or None if it is withheld.

    Raises:
        MalformedRow: the row is not a question.
    """
    text = _string(draft.text, "question")
    if not text.strip():
        raise MalformedRow("the question is empty")
    options = tuple(_string(option, "option") for option in draft.options.texts)
    if not 2 <= len(options) <= len(ascii_uppercase):
        raise MalformedRow(f"{len(options)} options; a question needs 2 to {len(ascii_uppercase)}")
    if not all(option.strip() for option in options):
        raise MalformedRow("an option is empty")
    for index, option in enumerate(options):
        if option in options[:index]:
            raise MalformedRow(REPEATED, option)
    if (right := gold(draft)) is None:
        raise MalformedRow(NO_ANSWER)
    fields = draft.row.fields
    # Null is absent here as well: a table in JSON lines has every column in every row.
    identity = next((fields[key] for key in ("id", "pubid") if fields.get(key) is not None), draft.row.id)
    if type(identity) not in (str, int) or identity == "":
        raise MalformedRow("the id is neither text nor number", identity)
    return Question(
        id=_string(str(identity), "id"),
        text=text,
        options=options,
        gold=right,
        context=_string(draft.context or "", "context"),
        group=_string(draft.group, "group") if draft.group and isinstance(draft.group, str) else None,
        explanation=_string(draft.explanation, "explanation") if isinstance(draft.explanation, str) else "",
    )


def _string(value: object, name: str) -> str:
    if not isinstance(value, str):
        raise MalformedRow(f"the {name} is not a text", value)
    if not value.isascii() and _LONE_SURROGATE.search(value):
        raise MalformedRow(f"the {name} contains a lone surrogate, which UTF-8 cannot encode")
    return value
