"""Conversion of a row of a question file to a draft, and of a draft to a question.

Field names are compared in lower case. Texts are left unchanged, including white space at their ends, so that
prompts equal those of other evaluation tools to the character.
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
    "QuestionDraft",
    "normalize_keys",
    "read_medxpertqa_draft",
    "read_plain_draft",
    "read_pubmedqa_draft",
    "read_standard_draft",
    "read_truthfulqa_best_draft",
    "read_truthfulqa_mc1_draft",
    "to_question",
]

REPEATED = "two options are the same"
QUESTION_KEYS = ("question", "question_stem", "stem", "sent1", "qtext", "input", "prompt", "query", "problem")

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_CONTEXT_KEYS = ("context", "article", "passage")
_GROUP_KEYS = ("group", "meta_info", "subject_name", "subject", "category", "body_system")
_EXPLANATION_KEYS = ("explanation", "exp", "reasoning", "rationale")
_ANSWER_CHOICES = re.compile(r"\s*Answer Choices:\s*\(A\)(?:(?!Answer Choices:).)*\Z", re.DOTALL)


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionDraft:
    """A question whose gold answer is not read yet, because that needs all rows of the file."""

    row: SourceRow
    text: object
    options: AnswerOptions
    answers: Mapping[str, object]
    """Key → the gold answer as it is in the row. If there are several, they must name the same option."""
    context: object = ""
    group: object = None
    explanation: object = None


def normalize_keys(row: SourceRow) -> SourceRow:
    """Return the row with normalized field names: `Best Answer` becomes `best_answer`.

    Fields that ARC and the hub's MedQA nest in `question` or `data` become fields of the row itself.
    """
    fields = row.fields
    if isinstance(fields.get("data"), dict) and "question" not in fields:
        fields = fields | fields["data"]
    if isinstance(inner := fields.get("question"), dict) and "stem" in inner:
        fields = fields | inner | {"question": inner["stem"]}
    normalized_fields: dict[str, Any] = {}
    for key, value in fields.items():
        name = re.sub(r"[ -]+", "_", key.strip().lower())
        # Either of the two fields could be the intended one.
        if name in normalized_fields:
            raise MalformedRow("two fields have the same name, apart from capitals and blanks", key)
        normalized_fields[name] = value
    return replace(row, fields=normalized_fields)


def read_standard_draft(row: SourceRow) -> QuestionDraft:
    """Read a row whose question, options and answer are under any of the common keys."""
    fields = row.fields
    return QuestionDraft(
        row=row,
        text=_first_value(fields, QUESTION_KEYS, "question"),
        options=read_options(fields),
        answers={key: fields[key] for key in answer_keys(fields)},
        context=_first_value(fields, _CONTEXT_KEYS),
        group=_first_value(fields, _GROUP_KEYS),
        explanation=_first_value(fields, _EXPLANATION_KEYS),
    )


def read_medxpertqa_draft(row: SourceRow) -> QuestionDraft:
    """Read a row of MedXpertQA, without the list of the options at the end of the question's text.

    A prompt template lists the options itself; with both, a model would read them twice.
    """
    draft = read_standard_draft(row)
    return replace(
        draft, text=_ANSWER_CHOICES.sub("", draft.text) if isinstance(draft.text, str) else draft.text
    )


def read_plain_draft(row: SourceRow) -> QuestionDraft:
    """Read a row in the plain format: the answer is `gold`, an index from 0, a letter or an option's text."""
    return replace(
        read_standard_draft(row), answers={"gold": row.fields.get("gold")}, context=row.fields.get("context")
    )


def _first_value(fields: Mapping[str, Any], names: tuple[str, ...], required: str | None = None) -> object:
    for name in names:
        if fields.get(name) is not None:
            return fields[name]
    if required and not any(name in fields for name in names):
        raise MalformedRow(f"no {required}")
    return None


def read_pubmedqa_draft(row: SourceRow) -> QuestionDraft:
    """Read a row of PubMedQA: in its authors' form, or in the hub's, with the contexts inside `context`."""
    fields = row.fields
    contexts = fields.get("contexts")
    if isinstance(inner := fields.get("context"), dict):
        contexts = inner.get("contexts")
    if not isinstance(contexts, list) or not contexts:
        raise MalformedRow("the contexts are not a list of texts", contexts)
    return QuestionDraft(
        row=row,
        text=_first_value(fields, ("question",), "question"),
        options=AnswerOptions(texts=("yes", "no", "maybe"), labels=("yes", "no", "maybe")),
        answers={"final_decision": fields.get("final_decision")},
        context="\n".join(_require_text(context, "context") for context in contexts),
        explanation=fields.get("long_answer"),
    )


def read_truthfulqa_mc1_draft(row: SourceRow) -> QuestionDraft:
    """Read a row of TruthfulQA MC1, in which each answer is marked with 1 (right) or 0.

    `mc1_targets` is an object answer → mark, or, on the hub, an object of two lists.
    """
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
        raise MalformedRow("`mc1_targets` needs exactly one right answer", targets)
    return _draft_with_one_right_option(row, choices[labels.index(1)], choices)


def read_truthfulqa_best_draft(row: SourceRow) -> QuestionDraft:
    """Read a row of TruthfulQA with a best answer and incorrect answers: a list, or text with semicolons."""
    best, wrong = (
        _require_text(row.fields.get("best_answer"), "best answer"),
        row.fields.get("incorrect_answers"),
    )
    if not isinstance(wrong, list):
        wrong = _require_text(wrong, "answers").split(";")
    wrong = [_require_text(answer, "answer").strip() for answer in wrong]
    if best in wrong:
        raise MalformedRow("the best answer is among the incorrect ones", best)
    # dict.fromkeys: the dataset lists some incorrect answers twice.
    return _draft_with_one_right_option(row, best, [best, *filter(None, dict.fromkeys(wrong))])


def _draft_with_one_right_option(row: SourceRow, right: object, options: list[Any]) -> QuestionDraft:
    # Sorted by hash: in the published order the right answer is first, which would give it away.
    texts = sorted(options, key=lambda option: hash_order_key(str(option)))
    return QuestionDraft(
        row=row,
        text=_first_value(row.fields, ("question",), "question"),
        options=AnswerOptions(texts=tuple(texts), labels=tuple(ascii_uppercase[: len(texts)])),
        answers={"gold": texts.index(right)},
        group=row.fields.get("category"),
    )


def to_question(draft: QuestionDraft, gold: Callable[[QuestionDraft], int | None]) -> Question:
    """Validate a draft and convert it to a question. A row without an id gets its number as id.

    Args:
        draft: The draft.
        gold: Function that returns the index of a draft's gold option, or None if the answer is withheld.

    Raises:
        MalformedRow: the row is not a question.
    """
    text = _require_text(draft.text, "question")
    if not text.strip():
        raise MalformedRow("the question is empty")
    options = tuple(_require_text(option, "option") for option in draft.options.texts)
    if not 2 <= len(options) <= len(ascii_uppercase):
        raise MalformedRow(f"{len(options)} options; a question needs 2 to {len(ascii_uppercase)}")
    if not all(option.strip() for option in options):
        raise MalformedRow("an option is empty")
    # Equal options have equal scores, so an answer could not be attributed to one of them.
    for index, option in enumerate(options):
        if option in options[:index]:
            raise MalformedRow(REPEATED, option)
    if (right := gold(draft)) is None:
        raise MalformedRow(NO_ANSWER)
    fields = draft.row.fields
    # Null is absent here as well: a table in JSON lines has every column in every row.
    identity = next((fields[key] for key in ("id", "pubid") if fields.get(key) is not None), draft.row.id)
    # `type` and not isinstance: True is an int in Python, but not an id.
    if type(identity) not in (str, int) or identity == "":
        raise MalformedRow("the id is neither text nor number", identity)
    return Question(
        id=_require_text(str(identity), "id"),
        text=text,
        options=options,
        gold=right,
        context=_require_text(draft.context or "", "context"),
        group=_require_text(draft.group, "group") if draft.group and isinstance(draft.group, str) else None,
        explanation=_require_text(draft.explanation, "explanation")
        if isinstance(draft.explanation, str)
        else "",
    )


def _require_text(value: object, name: str) -> str:
    if not isinstance(value, str):
        kinds: dict[type, str] = {bool: "a boolean", int: "a number", float: "a number"}
        raise MalformedRow(f"the {name} is not a text", value, kinds.get(type(value), ""))
    # isascii first, because it is fast and true for most texts.
    if not value.isascii() and _LONE_SURROGATE.search(value):
        raise MalformedRow(f"the {name} contains a lone surrogate, which UTF-8 cannot encode")
    return value
