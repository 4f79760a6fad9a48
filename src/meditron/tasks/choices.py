"""The options and the gold answer of a row, in every form of published sets.

Options come as a list, as an object by letter, as lists of texts and labels, as a list of objects, as one
text with a lettered line for each, or as columns (`A` … `J`, `opa` … `ope`, `ending0` …). A gold answer is a
letter or label, the option's text, both (`B. Pancreas`), or an index that counts from 0 or from 1. If a value
is ambiguous, the other rows of the file decide; if they do not, the row is refused.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from string import ascii_uppercase
from typing import Any, TypeVar

__all__ = [
    "NO_ANSWER",
    "NO_OPTIONS",
    "AnswerConvention",
    "AnswerOptions",
    "MalformedRow",
    "answer_keys",
    "read_options",
    "unlettered",
]

T = TypeVar("T")
NO_ANSWER = "no answer is given"
NO_OPTIONS = "no options"

_LISTS = ("options", "choices", "answer_choices", "answer_options", "endings", "answers")
_COLUMNS = tuple(
    re.compile(form)
    for form in (
        r"op([a-z])",
        r"(?:option|choice|answer)_?([a-z])",
        r"(?:option|choice|ending|answer)_?(\d+)",
        r"([a-z])",
    )
)
_TEXTS = ("text", "texts", "value", "content", "atext", "option", "choices")
_LABELS = ("label", "labels", "key", "letter", "aid", "id")
_ANSWERS = (
    "gold",
    "answer_idx",
    "answer_index",
    "answer_id",
    "answer_letter",
    "answerkey",
    "answer_key",
    "correct_option",
    "correct_index",
    "correct_answer_idx",
    "cop",
    "answer",
    "correct_answer",
)
# Read only if no other key holds the answer: some datasets use these names for something else.
_WEAK_ANSWERS = ("label", "target", "correct", "ra")
_WITHHELD = (None, "", -1, "-1")
_MANY = 10
"""Rows with an index from which it is suspicious that none of them is 0."""
_LETTERED = re.compile(r"\(?([A-Za-z])[.):] (.*)", re.DOTALL)
_LETTER = re.compile(r"\(?([A-Za-z])[.):]?")


class MalformedRow(Exception):
    """A row that is not a question: the reason, the value that shows it, and a remark."""

    def __init__(self, reason: str, shown: object = "", remark: str = "") -> None:
        text = f"{reason}: {str(shown)[:80]!r}" if shown != "" else reason
        super().__init__(f"{text} ({remark})" if remark else text)
        self.reason = reason


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerOptions:
    """The options of a row, in order."""

    texts: tuple[object, ...]
    labels: tuple[str, ...]
    """Their labels in the row: letters from A, or its own numbers."""


def answer_keys(fields: Mapping[str, object]) -> tuple[str, ...]:
    """Return the keys of a row that can hold its gold answer."""
    return tuple(key for key in _ANSWERS if key in fields) or tuple(
        key for key in _WEAK_ANSWERS if key in fields
    )


def read_options(fields: Mapping[str, Any]) -> AnswerOptions:
    """Return all options of a row.

    Raises:
        MalformedRow: there are none, or their labels are not in order, so that letters would shift.
    """
    for key in _LISTS:
        if isinstance(value := _json(fields.get(key)), list | dict):
            return _listed(value)
        if isinstance(value, str) and (lines := _lettered_lines(value)):
            return _listed(lines)
        if value is not None and key == "options":
            raise MalformedRow("the options are neither list nor object", value)
    for form in _COLUMNS:
        named = ((form.fullmatch(key), value) for key, value in fields.items() if key not in _LISTS)
        columns = {match[1]: value for match, value in named if match}
        if len(columns) >= 2:
            return _named(dict(sorted(columns.items(), key=lambda item: (len(item[0]), item[0]))))
    raise MalformedRow(NO_OPTIONS)


def _lettered_lines(text: str) -> list[str]:
    """Return the lines of a text if they are options with letters, `A. text`; else nothing."""
    lines = [line.strip() for line in text.strip().splitlines()]
    return lines if len(lines) >= 2 and list(unlettered(lines)) != lines else []


def _json(value: object) -> object:
    """Parse a CSV cell that holds a JSON list or object; anything else stays as it is."""
    if not isinstance(value, str) or not value.lstrip().startswith(("[", "{")):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def _listed(value: list[Any] | dict[Any, Any]) -> AnswerOptions:
    if isinstance(value, dict):
        texts, labels = (_first(value, names) for names in (_TEXTS, _LABELS))
        if isinstance(texts, list) and isinstance(labels, list) and len(texts) == len(labels):
            return _named(dict(zip(map(str, labels), texts, strict=True)), len(labels))
        return _named({str(key): text for key, text in value.items()})
    if value and all(isinstance(option, dict) for option in value):
        pairs = [(_first(option, _LABELS), _first(option, _TEXTS)) for option in value]
        return _named({str(label): text for label, text in pairs}, len(pairs))
    return AnswerOptions(texts=tuple(unlettered(value)), labels=tuple(ascii_uppercase[: len(value)]))


def _first(fields: Mapping[str, Any], names: Iterable[str]) -> object:
    return next((fields[name] for name in names if name in fields), None)


def _named(texts: Mapping[str, object], count: int | None = None) -> AnswerOptions:
    """Return options by label, which must be A, B, C … or consecutive numbers.

    Empty options at the end are dropped: tables have a column for the longest question.
    """
    labels = [label.strip().upper() for label in texts]
    numbers = [int(label) for label in labels if label.isdecimal()]
    lettered = labels == list(ascii_uppercase[: len(labels)])
    numbered = len(numbers) == len(labels) and numbers == list(range(numbers[0], numbers[0] + len(labels)))
    if not (lettered or (numbered and numbers[0] in (0, 1))) or count not in (None, len(labels)):
        raise MalformedRow("the options are not lettered A, B, C …", list(texts))
    values = list(texts.values())
    while values and (values[-1] is None or values[-1] == ""):
        values.pop()
    return AnswerOptions(texts=tuple(values), labels=tuple(labels[: len(values)]))


def unlettered(options: Sequence[T]) -> Sequence[T | str]:
    """Remove the options' letters, if each has its own: `A. text`, `B. text`."""
    parts = [_LETTERED.fullmatch(option) if isinstance(option, str) else None for option in options]
    lettered = [part[1] for part in parts if part] == list(ascii_uppercase[: len(options)])
    return [part[2] for part in parts if part] if lettered else options


class AnswerConvention:
    """The meaning of the gold answers under one key, decided by all rows of a file."""

    def __init__(self, key: str, rows: Iterable[tuple[object, AnswerOptions]]) -> None:
        answers = list(rows)
        readings = [(_readings(value, options), len(options.texts)) for value, options in answers]
        indexes = [(kinds["index"], count) for kinds, count in readings if set(kinds) == {"index"}]
        # MedMCQA's own JSON counts from 1; tables are made from the hub's copy, which counts from 0.
        self.first = int(key == "cop" and not all(isinstance(value, str) for value, _ in answers))
        """The index of the first option, 0 or 1."""
        self._zero, last = any(not i for i, _ in indexes), any(i == count for i, count in indexes)
        few = key == "gold" and len(indexes) < _MANY
        self.certain = not indexes or self._zero or last or few
        """True if the rows show from which number indexes count; `gold` counts from 0 by definition."""
        if key != "gold" and (self._zero or last):
            self.first = 0 if self._zero else 1
        # Rows with a single reading show how the ambiguous ones are meant.
        in_range = (self._in_range(kinds, count) for kinds, count in readings)
        unambiguous = {next(iter(kinds)) for kinds in in_range if len(kinds) == 1}
        default = "letter" if key == "gold" else None
        self._preferred = next(iter(unambiguous)) if len(unambiguous) == 1 else default

    def gold_index(self, value: object, options: AnswerOptions) -> int | None:
        """Return the index of the gold option from 0; None if the answer is withheld.

        Raises:
            MalformedRow: the value names no option, or two.
        """
        if _withheld(value):
            return None
        by_kind = self._in_range(_readings(value, options), len(options.texts))
        indexes = set(by_kind.values())
        if len(indexes) > 1 and self._preferred in by_kind:
            indexes = {by_kind[self._preferred]}
        if len(indexes) > 1:
            kinds = " and the ".join(f"{kind} of option {index + 1}" for kind, index in by_kind.items())
            raise MalformedRow(f"the gold answer is ambiguous, the {kinds}", value)
        if not indexes:
            raise MalformedRow("the gold answer is no option", value, self._counting(value, options))
        return indexes.pop()

    def _in_range(self, readings: Mapping[str, int], count: int) -> dict[str, int]:
        """Return the readings that name one of `count` options, indexes from 0."""
        from_zero = {kind: index - self.first * (kind == "index") for kind, index in readings.items()}
        return {kind: index for kind, index in from_zero.items() if 0 <= index < count}

    def _counting(self, value: object, options: AnswerOptions) -> str:
        if type(value) is not int or options.labels[0].isdecimal():
            return ""
        doubt = "" if self._zero else "; no answer of the file is 0"
        return f"an index counts from {self.first}, to {self.first + len(options.texts) - 1}{doubt}"


def _withheld(value: object) -> bool:
    return type(value) in (str, int, type(None)) and value in _WITHHELD


def _readings(value: object, options: AnswerOptions) -> dict[str, int]:
    """Return kind of reading → index of the option; an index is returned as it is in the row."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if _withheld(value):
        return {}
    if type(value) is int:
        # If options are numbered, a number is a label and not an index.
        if not options.labels or not options.labels[0].isdecimal():
            return {"index": value}
        value = str(value)
    if not isinstance(value, str):
        return {}
    text, texts = value.strip(), [str(option).strip() for option in options.texts]
    readings: dict[str, int] = {}
    if text in texts:
        readings["text"] = texts.index(text)
    elif sum(text.casefold() == other.casefold() for other in texts) == 1:
        readings["text"] = [other.casefold() for other in texts].index(text.casefold())
    letter = _LETTER.fullmatch(text)
    label = letter[1] if letter else text
    if label.upper() in options.labels and (label.isupper() or label.isdecimal() or not readings):
        readings["letter"] = options.labels.index(label.upper())
    elif re.fullmatch(r"\d{1,2}", text):
        readings["index"] = int(text)
    if not readings and (both := _LETTERED.fullmatch(text)) and both[1].upper() in options.labels:
        index = options.labels.index(both[1].upper())
        # `B. Pancreas` counts only if letter and text agree.
        if texts[index].casefold() == both[2].strip().casefold():
            readings["letter"] = index
    return readings
