"""The shapes in which published sets of multiple-choice questions come, and the plain one of our own.

Each shape says how its rows become questions. Field names are compared in lower case. Texts are kept as they
are, blanks at their ends included, for prompts are compared to the character.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from hashlib import sha256
from string import ascii_uppercase
from typing import Any

from meditron.tasks.choices import NO_ANSWER, NO_OPTIONS, Malformed, Options, answer_keys, read_options
from meditron.tasks.question import Question
from meditron.tasks.rows import Row

__all__ = ["REPEATED", "SHAPES", "DatasetFormat", "Draft", "lowered", "to_question"]

REPEATED = "two options are the same"

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")
_QUESTIONS = ("question", "question_stem", "stem", "sent1", "qtext", "input")
_CONTEXTS = ("context", "article", "passage")
_GROUPS = ("group", "meta_info", "subject_name", "subject", "category", "body_system")
_EXPLANATIONS = ("explanation", "exp")


@dataclass(frozen=True, slots=True)
class Draft:
    """A row read, before the whole file has told how its gold answers are meant."""

    row: Row
    text: object
    options: Options
    answers: Mapping[str, object]
    """Key → the gold answer as given; several keys have to agree."""
    context: object = ""
    group: object = None
    explanation: object = None


@dataclass(frozen=True, slots=True)
class DatasetFormat:
    """A kind of file: by which fields it is known, how a row becomes a question, and whose it is."""

    name: str
    fits: Callable[[Mapping[str, Any]], bool]
    """Tells it by the fields of the first row; the first shape that fits is the file's."""
    draft: Callable[[Row], Draft]
    """Raises Malformed."""
    template: str
    version: int
    """Raised whenever a row gives another question."""
    title: str
    licence: str
    origin: str
    left_out: frozenset[str] = frozenset({NO_ANSWER})
    """The reasons for which rows of the published set are no questions: left out and counted. Any other row
    that is none makes the file an error."""


def lowered(row: Row) -> Row:
    """Return the row with field names as they are compared: `Best Answer` is `best_answer`.

    Fields that ARC and the hub's MedQA nest in `question` or `data` are taken out of it.
    """
    fields = row.fields
    if isinstance(fields.get("data"), dict) and "question" not in fields:
        fields = fields | fields["data"]
    if isinstance(inner := fields.get("question"), dict) and "stem" in inner:
        fields = fields | inner | {"question": inner["stem"]}
    found: dict[str, Any] = {}
    for key, value in fields.items():
        name = re.sub(r"[ -]+", "_", key.strip().lower())
        if name in found:
            raise Malformed("two fields of one name, but for capitals and blanks", key)
        found[name] = value
    return replace(row, fields=found)


def _standard(row: Row) -> Draft:
    fields = row.fields
    return Draft(
        row,
        _first(fields, _QUESTIONS, "question"),
        read_options(fields),
        {key: fields[key] for key in answer_keys(fields)},
        context=_first(fields, _CONTEXTS),
        group=_first(fields, _GROUPS),
        explanation=_first(fields, _EXPLANATIONS),
    )


def _plain(row: Row) -> Draft:
    """Read a row in our own form, in which only `gold` is the answer: an index from 0, a letter or a text."""
    draft = _standard(row)
    return replace(draft, answers={"gold": row.fields.get("gold")}, context=row.fields.get("context"))


def _first(fields: Mapping[str, Any], names: tuple[str, ...], required: str | None = None) -> object:
    for name in names:
        if fields.get(name) is not None:
            return fields[name]
    if required and not any(name in fields for name in names):
        raise Malformed(f"no {required}")
    return None


def _pubmedqa(row: Row) -> Draft:
    """As its authors publish it, or as on the hub, where the contexts are a field of `context`."""
    fields = row.fields
    contexts = fields.get("contexts")
    if isinstance(inner := fields.get("context"), dict):
        contexts = inner.get("contexts")
    if not isinstance(contexts, list) or not contexts:
        raise Malformed("the contexts are no list of texts", contexts)
    return Draft(
        row,
        _first(fields, ("question",), "question"),
        Options(("yes", "no", "maybe"), ("yes", "no", "maybe")),
        {"final_decision": fields.get("final_decision")},
        context="\n".join(_string(context, "context") for context in contexts),
        explanation=fields.get("long_answer"),
    )


def _truthfulqa_mc(row: Row) -> Draft:
    """Answers with 1 for the right one: an object, or on the hub two lists."""
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
        raise Malformed("not one right answer among its targets", targets)
    return _one_right(row, choices[labels.index(1)], choices)


def _truthfulqa_best(row: Row) -> Draft:
    """The best answer among the incorrect ones: a list on the hub, between semicolons in CSV; some twice."""
    best, wrong = _string(row.fields.get("best_answer"), "best answer"), row.fields.get("incorrect_answers")
    if not isinstance(wrong, list):
        wrong = _string(wrong, "answers").split(";")
    wrong = [_string(answer, "answer").strip() for answer in wrong]
    if best in wrong:
        raise Malformed("the best answer is among the incorrect ones", best)
    return _one_right(row, best, [best, *filter(None, dict.fromkeys(wrong))])


def _one_right(row: Row, right: object, options: list[Any]) -> Draft:
    """Options in the order of their SHA-256: where the right one always stands first, its place tells."""
    texts = sorted(options, key=lambda option: sha256(str(option).encode("utf-8", "replace")).digest())
    return Draft(
        row,
        _first(row.fields, ("question",), "question"),
        Options(tuple(texts), tuple(ascii_uppercase[: len(texts)])),
        {"gold": texts.index(right)},
        group=row.fields.get("category"),
    )


def to_question(draft: Draft, gold: Callable[[Draft], int | None]) -> Question:
    """Return the question, if the row is one; its id is the row's number where it has none.

    `gold` gives the gold option of a draft whose options are sound, or None.

    Raises:
        Malformed: it is none.
    """
    asked = _string(draft.text, "question")
    if not asked.strip():
        raise Malformed("the question is empty")
    texts = tuple(_string(option, "option") for option in draft.options.texts)
    if not 2 <= len(texts) <= len(ascii_uppercase):
        raise Malformed(f"{len(texts)} options, where 2 to {len(ascii_uppercase)} can be asked")
    if not all(option.strip() for option in texts):
        raise Malformed("an option is empty")
    for place, option in enumerate(texts):
        if option in texts[:place]:
            raise Malformed(REPEATED, option)
    if (right := gold(draft)) is None:
        raise Malformed(NO_ANSWER)
    fields = draft.row.fields
    identity = fields.get("id", fields.get("pubid", draft.row.id))
    if type(identity) not in (str, int) or identity == "":
        raise Malformed("the id is neither text nor number", identity)
    return Question(
        _string(str(identity), "id"),
        asked,
        texts,
        right,
        _string(draft.context or "", "context"),
        _string(draft.group, "group") if draft.group and isinstance(draft.group, str) else None,
        _string(draft.explanation, "explanation") if isinstance(draft.explanation, str) else "",
    )


def _string(value: object, what: str) -> str:
    if not isinstance(value, str):
        raise Malformed(f"the {what} is no text", value)
    if not value.isascii() and _LONE_SURROGATE.search(value):
        raise Malformed(f"the {what} holds half of a character, which no UTF-8 can")
    return value


def _has(*names: str) -> Callable[[Mapping[str, Any]], bool]:
    return lambda fields: set(names) <= fields.keys()


def _is_medqa(fields: Mapping[str, Any]) -> bool:
    """Tell MedQA from other sets of the same fields by what only its publications have."""
    if not {"question", "options", "answer"} <= fields.keys():
        return False
    return bool({"meta_info", "metamap_phrases", "answer_idx"} & fields.keys()) or (
        isinstance(fields["options"], list) and str(fields["options"][:1]).startswith("['A. ")
    )


def _is_mmlu(fields: Mapping[str, Any]) -> bool:
    columns = {"question", "a", "b", "c", "d", "answer"} <= fields.keys() and "e" not in fields
    return columns or {"question", "choices", "answer", "subject"} <= fields.keys()


def _is_multiple_choice(fields: Mapping[str, Any]) -> bool:
    try:
        read_options(fields)
    except Malformed as error:
        if error.reason == NO_OPTIONS:
            return False
    return bool(answer_keys(fields)) and any(name in fields for name in _QUESTIONS)


SHAPES: tuple[DatasetFormat, ...] = (
    DatasetFormat(
        "plain",
        _has("question", "options", "gold"),
        _plain,
        "letters",
        1,
        "Multiple-choice questions",
        "not stated",
        "a file of one's own",
        frozenset(),
    ),
    DatasetFormat(
        "medqa",
        _is_medqa,
        _standard,
        "letters",
        1,
        "MedQA (USMLE): questions of the United States Medical Licensing Examination",
        "MIT",
        "Jin et al. 2020, arXiv 2009.13081",
    ),
    DatasetFormat(
        "medmcqa",
        _has("question", "opa", "opb", "cop"),
        _standard,
        "letters",
        1,
        "MedMCQA: questions of Indian medical entrance examinations",
        "MIT",
        "Pal et al. 2022, arXiv 2203.14371",
        frozenset({NO_ANSWER, REPEATED}),
    ),
    DatasetFormat(
        "pubmedqa",
        lambda fields: (
            _has("question", "final_decision")(fields) and bool({"context", "contexts"} & fields.keys())
        ),
        _pubmedqa,
        "yes-no-maybe",
        1,
        "PubMedQA: does the abstract answer its question with yes, no or maybe",
        "MIT",
        "Jin et al. 2019, arXiv 1909.06146",
    ),
    DatasetFormat(
        "mmlu",
        _is_mmlu,
        _standard,
        "letters",
        1,
        "MMLU: examination questions of many subjects",
        "MIT",
        "Hendrycks et al. 2021, arXiv 2009.03300",
        frozenset({NO_ANSWER, REPEATED}),
    ),
    DatasetFormat(
        "truthfulqa",
        _has("question", "mc1_targets"),
        _truthfulqa_mc,
        "texts",
        1,
        "TruthfulQA, MC1: the true answer among common misconceptions",
        "Apache-2.0",
        "Lin et al. 2022, arXiv 2109.07958",
    ),
    DatasetFormat(
        "truthfulqa-csv",
        _has("question", "best_answer", "incorrect_answers"),
        _truthfulqa_best,
        "texts",
        1,
        "TruthfulQA: the best answer among the incorrect ones",
        "Apache-2.0",
        "Lin et al. 2022, arXiv 2109.07958",
    ),
    DatasetFormat(
        "multiple-choice",
        _is_multiple_choice,
        _standard,
        "letters",
        1,
        "Multiple-choice questions",
        "not stated",
        "a file of one's own",
    ),
)
