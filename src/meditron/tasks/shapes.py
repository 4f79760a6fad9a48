"""The shapes in which published sets of multiple-choice questions come, and the plain one of our own.

Each shape says how its rows become questions. Texts are kept as they are, blanks at their ends included, for
prompts are compared to the character.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from string import ascii_uppercase

from meditron.tasks.question import Question
from meditron.tasks.rows import Row

__all__ = ["NO_ANSWER", "REPEATED", "SHAPES", "Malformed", "Shape"]

NO_ANSWER = "no answer is given"
REPEATED = "two options are the same"

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


class Malformed(Exception):
    """A row is no question: the reason, and what shows it."""

    def __init__(self, reason: str, shown: object = "") -> None:
        super().__init__(f"{reason}: {str(shown)[:80]!r}" if shown != "" else reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Shape:
    """A kind of file: by which fields it is known, how a row becomes a question, and whose it is."""

    name: str
    fields: frozenset[str]
    """What every row has; the first shape whose fields are there is the file's."""
    question: Callable[[Row], Question]
    """Raises Malformed."""
    layout: str
    version: int
    """Raised whenever a row gives another question."""
    title: str
    licence: str
    origin: str
    left_out: frozenset[str] = frozenset()
    """The reasons for which rows of the published set are no questions: left out and counted. Any other row
    that is none makes the file an error."""


def _plain(row: Row) -> Question:
    options = row.fields["options"]
    if not isinstance(options, list):
        raise Malformed("the options are no list", options)
    identity = row.fields.get("id", row.id)
    if type(identity) not in (str, int) or identity == "":
        raise Malformed("the id is neither text nor number", identity)
    return _question(
        row,
        row.fields["question"],
        options,
        row.fields["gold"],
        id=str(identity),
        context=_string(row.fields.get("context") or "", "context"),
        group=row.fields.get("group"),
        explanation=row.fields.get("explanation"),
    )


def _medqa(row: Row) -> Question:
    """Options by letter and the letter, as published; or `A. text` in a list and the answer's text."""
    options, answer = row.fields["options"], row.fields["answer"]
    if isinstance(options, dict):
        if list(options) != list(ascii_uppercase[: len(options)]):
            raise Malformed("the options are not lettered A, B, C …", list(options))
        gold = row.fields.get("answer_idx")
        if not isinstance(gold, str) or options.get(gold) != answer:
            raise Malformed("the answer is not the option of its letter", answer)
        texts = list(options.values())
    elif isinstance(options, list):
        texts = _unlettered(options)
        if answer not in texts:
            raise Malformed("the gold answer is no option", answer)
        gold = texts.index(answer)
    else:
        raise Malformed("the options are neither list nor object", options)
    return _question(row, row.fields["question"], texts, gold, group=row.fields.get("meta_info"))


def _medmcqa(row: Row) -> Question:
    """`cop` counts from 1 here; the reader of the file has seen to that."""
    cop = row.fields["cop"]
    if cop is None or cop == -1:
        raise Malformed(NO_ANSWER)
    if type(cop) is not int or not 1 <= cop <= 4:
        raise Malformed("the gold answer is no option", cop)
    return _question(
        row,
        row.fields["question"],
        [row.fields[key] for key in ("opa", "opb", "opc", "opd")],
        cop - 1,
        id=_string(row.fields.get("id", row.id), "id"),
        group=row.fields.get("subject_name"),
        explanation=row.fields.get("exp"),
    )


def _pubmedqa(row: Row) -> Question:
    contexts = row.fields["CONTEXTS"]
    if not isinstance(contexts, list) or not contexts:
        raise Malformed("the contexts are no list of texts", contexts)
    options = ["yes", "no", "maybe"]
    decision = row.fields["final_decision"]
    if decision not in options:
        raise Malformed("the gold answer is no option", decision)
    return _question(
        row,
        row.fields["QUESTION"],
        options,
        options.index(decision),
        context="\n".join(_string(context, "context") for context in contexts),
        explanation=row.fields.get("LONG_ANSWER"),
    )


def _mmlu(row: Row) -> Question:
    options = [row.fields[letter] for letter in "ABCD"]
    return _question(row, row.fields["question"], options, row.fields["answer"])


def _truthfulqa_mc(row: Row) -> Question:
    targets = row.fields["mc1_targets"]
    if not isinstance(targets, dict) or sorted(targets.values(), key=str) != [0] * (len(targets) - 1) + [1]:
        raise Malformed("not one right answer among its targets", targets)
    right = next(answer for answer, value in targets.items() if value == 1)
    return _one_right(row, row.fields["question"], right, list(targets))


def _truthfulqa_csv(row: Row) -> Question:
    """The best answer among the incorrect ones, which stand between semicolons, some of them twice."""
    best = _string(row.fields["Best Answer"], "best answer")
    wrong = [answer.strip() for answer in _string(row.fields["Incorrect Answers"], "answers").split(";")]
    if best in wrong:
        raise Malformed("the best answer is among the incorrect ones", best)
    options = [best, *filter(None, dict.fromkeys(wrong))]
    return _one_right(row, row.fields["Question"], best, options, row.fields.get("Category"))


def _one_right(row: Row, text: object, right: str, options: list[str], group: object = None) -> Question:
    """Options in the order of their SHA-256: where the right one always stands first, its place tells."""
    options = sorted(options, key=lambda option: sha256(option.encode("utf-8", "replace")).digest())
    return _question(row, text, options, options.index(right), group=group)


def _question(
    row: Row,
    text: object,
    options: Sequence[object],
    gold: object,
    *,
    id: str | None = None,
    context: str = "",
    group: object = None,
    explanation: object = None,
) -> Question:
    """The question, if it is one; its id is the row's where none is given. Raises Malformed."""
    asked = _string(text, "question")
    if not asked.strip():
        raise Malformed("the question is empty")
    texts = tuple(_string(option, "option") for option in options)
    if not 2 <= len(texts) <= len(ascii_uppercase):
        raise Malformed(f"{len(texts)} options, where 2 to {len(ascii_uppercase)} can be asked")
    if not all(option.strip() for option in texts):
        raise Malformed("an option is empty")
    for place, option in enumerate(texts):
        if option in texts[:place]:
            raise Malformed(REPEATED, option)
    return Question(
        _string(row.id if id is None else id, "id"),
        asked,
        texts,
        _index(gold, len(texts)),
        context,
        _string(group or "", "group") or None,
        _string(explanation or "", "explanation"),
    )


def _index(gold: object, options: int) -> int:
    """An index, or its letter."""
    if type(gold) is int and 0 <= gold < options:
        return gold
    if isinstance(gold, str) and len(gold) == 1 and gold in ascii_uppercase[:options]:
        return ascii_uppercase.index(gold)
    if gold is None or gold == "":
        raise Malformed(NO_ANSWER)
    raise Malformed("the gold answer is no option", gold)


def _string(value: object, what: str) -> str:
    if not isinstance(value, str):
        raise Malformed(f"the {what} is no text", value)
    if not value.isascii() and _LONE_SURROGATE.search(value):
        raise Malformed(f"the {what} holds half of a character, which no UTF-8 can")
    return value


def _unlettered(options: list[object]) -> list[object]:
    """Options without their letters, where each has its own: `A. text`, `B. text`."""
    parts = [option.partition(". ") if isinstance(option, str) else ("", "", "") for option in options]
    lettered = [letter for letter, _, _ in parts] == list(ascii_uppercase[: len(parts)])
    return [text for _, _, text in parts] if lettered else options


SHAPES: tuple[Shape, ...] = (
    Shape(
        "plain",
        frozenset({"question", "options", "gold"}),
        _plain,
        "letters",
        1,
        "Multiple-choice questions",
        "not stated",
        "a file of one's own",
    ),
    Shape(
        "medqa",
        frozenset({"question", "options", "answer"}),
        _medqa,
        "letters",
        1,
        "MedQA (USMLE): questions of the United States Medical Licensing Examination",
        "MIT",
        "Jin et al. 2020, arXiv 2009.13081",
    ),
    Shape(
        "medmcqa",
        frozenset({"question", "opa", "opb", "opc", "opd", "cop"}),
        _medmcqa,
        "letters",
        1,
        "MedMCQA: questions of Indian medical entrance examinations",
        "MIT",
        "Pal et al. 2022, arXiv 2203.14371",
        frozenset({NO_ANSWER, REPEATED}),
    ),
    Shape(
        "pubmedqa",
        frozenset({"QUESTION", "CONTEXTS", "final_decision"}),
        _pubmedqa,
        "yes-no-maybe",
        1,
        "PubMedQA: does the abstract answer its question with yes, no or maybe",
        "MIT",
        "Jin et al. 2019, arXiv 1909.06146",
    ),
    Shape(
        "mmlu",
        frozenset({"question", "A", "B", "C", "D", "answer"}),
        _mmlu,
        "letters",
        1,
        "MMLU: examination questions of many subjects",
        "MIT",
        "Hendrycks et al. 2021, arXiv 2009.03300",
        frozenset({REPEATED}),
    ),
    Shape(
        "truthfulqa",
        frozenset({"question", "mc1_targets"}),
        _truthfulqa_mc,
        "texts",
        1,
        "TruthfulQA, MC1: the true answer among common misconceptions",
        "Apache-2.0",
        "Lin et al. 2022, arXiv 2109.07958",
    ),
    Shape(
        "truthfulqa-csv",
        frozenset({"Question", "Best Answer", "Incorrect Answers"}),
        _truthfulqa_csv,
        "texts",
        1,
        "TruthfulQA: the best answer among the incorrect ones",
        "Apache-2.0",
        "Lin et al. 2022, arXiv 2109.07958",
    ),
)
