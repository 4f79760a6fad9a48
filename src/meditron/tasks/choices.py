"""Reading of a row's options and gold answer, in every form that published datasets use.

Options are a list, an object with a letter as key, lists of texts and labels, a list of objects, one text
with a lettered line for each option, or columns (`A` … `J`, `opa` … `ope`, `ending0` …). A gold answer is a
letter or label, the option's text, both (`B. Pancreas`), or an index that counts from 0 or from 1. If a value
is ambiguous, the other rows of the file decide how to read it; if they do not, the row is refused.
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
    "remove_option_letters",
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
# These keys are read only if the row has none of the keys above: some datasets use them for something else.
_WEAK_ANSWERS = ("label", "target", "correct", "ra")
_WITHHELD = (None, "", -1, "-1")
_MANY = 10
"""Number of rows from which indexes without any 0 suggest that they count from 1."""
_LETTERED = re.compile(r"\(?([A-Za-z])[.):] (.*)", re.DOTALL)
_LETTER = re.compile(r"\(?([A-Za-z])[.):]?")


class MalformedRow(Exception):
    """A row that cannot be read as a question. The message has the reason, the value, and a remark."""

    def __init__(self, reason: str, shown: object = "", remark: str = "") -> None:
        text = f"{reason}: {_in_message(shown)}" if shown != "" else reason
        super().__init__(f"{text} ({remark})" if remark else text)
        self.reason = reason


def _in_message(value: object) -> str:
    """Return a value as an error shows it: numbers, true, false and null without the quotes of a text."""
    if isinstance(value, int | float | None):
        return json.dumps(value)[:80]
    return repr(str(value)[:80])


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerOptions:
    """The options of one question, in the row's order."""

    texts: tuple[object, ...]
    labels: tuple[str, ...]
    """The options' labels: letters from A, or the numbers in the row."""


def answer_keys(fields: Mapping[str, object]) -> tuple[str, ...]:
    """Return the keys of a row under which its gold answer can be."""
    return tuple(key for key in _ANSWERS if key in fields) or tuple(
        key for key in _WEAK_ANSWERS if key in fields
    )


def read_options(fields: Mapping[str, Any]) -> AnswerOptions:
    """Return the options of a row.

    Raises:
        MalformedRow: the row has no options, or their labels are not consecutive.
    """
    for key in _LISTS:
        if isinstance(value := _parse_json_cell(fields.get(key)), list | dict):
            return _options_from_value(value)
        if isinstance(value, str) and (lines := _lettered_option_lines(value)):
            return _options_from_value(lines)
        if value is not None and key == "options":
            # Pandas writes a list in a CSV cell with the quotes of Python.
            listed = isinstance(value, str) and value.lstrip().startswith("[")
            hint = 'write them as JSON, ["w", "x"], or one column per option' if listed else ""
            raise MalformedRow("the options are neither a list nor an object", value, hint)
    # A single column would match by chance, for example a column `a` that has something else.
    for form in _COLUMNS:
        named = ((form.fullmatch(key), value) for key, value in fields.items() if key not in _LISTS)
        columns = {match[1]: value for match, value in named if match}
        if len(columns) >= 2:
            return _options_by_label(dict(sorted(columns.items(), key=lambda item: (len(item[0]), item[0]))))
    raise MalformedRow(NO_OPTIONS)


def _lettered_option_lines(text: str) -> list[str]:
    """Return the lines of a text if they are lettered options (`A. text`); else an empty list."""
    lines = [line.strip() for line in text.strip().splitlines()]
    return lines if len(lines) >= 2 and list(remove_option_letters(lines)) != lines else []


def _parse_json_cell(value: object) -> object:
    """Parse a CSV cell that contains a JSON list or object; return any other value unchanged."""
    if not isinstance(value, str) or not value.lstrip().startswith(("[", "{")):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def _options_from_value(value: list[Any] | dict[Any, Any]) -> AnswerOptions:
    if isinstance(value, dict):
        texts, labels = (_first_present_value(value, names) for names in (_TEXTS, _LABELS))
        if isinstance(texts, list) and isinstance(labels, list) and len(texts) == len(labels):
            return _options_by_label(dict(zip(map(str, labels), texts, strict=True)), len(labels))
        return _options_by_label({str(key): text for key, text in value.items()})
    if value and all(isinstance(option, dict) for option in value):
        pairs = [
            (_first_present_value(option, _LABELS), _first_present_value(option, _TEXTS)) for option in value
        ]
        return _options_by_label({str(label): text for label, text in pairs}, len(pairs))
    return AnswerOptions(
        texts=tuple(remove_option_letters(value)), labels=tuple(ascii_uppercase[: len(value)])
    )


def _first_present_value(fields: Mapping[str, Any], names: Iterable[str]) -> object:
    return next((fields[name] for name in names if name in fields), None)


def _options_by_label(texts: Mapping[str, object], count: int | None = None) -> AnswerOptions:
    """Return the options from a mapping of labels to texts.

    Empty options at the end are dropped: a table has as many columns as its longest question has options.

    Raises:
        MalformedRow: the labels are neither A, B, C … nor consecutive numbers from 0 or 1.
    """
    labels = [label.strip().upper() for label in texts]
    if not labels:
        raise MalformedRow(NO_OPTIONS)
    numbers = [int(label) for label in labels if label.isdecimal()]
    lettered = labels == list(ascii_uppercase[: len(labels)])
    numbered = len(numbers) == len(labels) and numbers == list(range(numbers[0], numbers[0] + len(labels)))
    if not (lettered or (numbered and numbers[0] in (0, 1))) or count not in (None, len(labels)):
        raise MalformedRow("the options are not lettered A, B, C …", list(texts))
    values = list(texts.values())
    while values and (values[-1] is None or values[-1] == ""):
        values.pop()
    return AnswerOptions(texts=tuple(values), labels=tuple(labels[: len(values)]))


def remove_option_letters(options: Sequence[T]) -> Sequence[T | str]:
    """Remove the letters before the options if they are consecutive: `A. text`, `B. text`."""
    parts = [_LETTERED.fullmatch(option) if isinstance(option, str) else None for option in options]
    lettered = [part[1] for part in parts if part] == list(ascii_uppercase[: len(options)])
    return [part[2] for part in parts if part] if lettered else options


class AnswerConvention:
    """The way to read the gold answers under one key, decided by all rows of a file."""

    def __init__(self, key: str, rows: Iterable[tuple[object, AnswerOptions]]) -> None:
        answers = list(rows)
        readings = [(_possible_readings(value, options), len(options.texts)) for value, options in answers]
        indexes = [(kinds["index"], count) for kinds, count in readings if set(kinds) == {"index"}]
        # MedMCQA's JSON files count `cop` from 1; CSV files are exports of the hub's copy, which counts from
        # 0.
        self.first_index = int(key == "cop" and not all(isinstance(value, str) for value, _ in answers))
        """The index of the first option, 0 or 1."""
        self._zero, last = any(not i for i, _ in indexes), any(i == count for i, count in indexes)
        few = key == "gold" and len(indexes) < _MANY
        self.certain = not indexes or self._zero or last or few
        """True if the rows show whether indexes count from 0 or 1; `gold` counts from 0 by definition."""
        if key != "gold" and (self._zero or last):
            self.first_index = 0 if self._zero else 1
        # Rows that can be read in one way only decide how to read the ambiguous ones.
        in_range = (self._readings_in_range(kinds, count) for kinds, count in readings)
        unambiguous = {next(iter(kinds)) for kinds in in_range if len(kinds) == 1}
        default = "letter" if key == "gold" else None
        self._preferred = next(iter(unambiguous)) if len(unambiguous) == 1 else default

    def gold_index(self, value: object, options: AnswerOptions) -> int | None:
        """Return the index of the gold option, from 0; None if the answer is withheld.

        Raises:
            MalformedRow: the value names no option, or can be read as two different options.
        """
        if _is_withheld(value):
            return None
        by_kind = self._readings_in_range(_possible_readings(value, options), len(options.texts))
        indexes = set(by_kind.values())
        if len(indexes) > 1 and self._preferred in by_kind:
            indexes = {by_kind[self._preferred]}
        if len(indexes) > 1:
            kinds = " and the ".join(f"{kind} of option {index + 1}" for kind, index in by_kind.items())
            raise MalformedRow(f"the gold answer is ambiguous: it is the {kinds}", value)
        if not indexes:
            raise MalformedRow(
                "the gold answer is not one of the options", value, self._describe_fault(value, options)
            )
        return indexes.pop()

    def _readings_in_range(self, readings: Mapping[str, int], count: int) -> dict[str, int]:
        """Return the readings whose index, counted from 0, is that of one of `count` options."""
        from_zero = {kind: index - self.first_index * (kind == "index") for kind, index in readings.items()}
        return {kind: index for kind, index in from_zero.items() if 0 <= index < count}

    def _describe_fault(self, value: object, options: AnswerOptions) -> str:
        if isinstance(value, bool):
            return "a boolean, not a text"
        if type(value) is not int or options.labels[0].isdecimal():
            return ""
        doubt = "" if self._zero else "; no answer of the file is 0"
        return (
            f"an index counts from {self.first_index}, to {self.first_index + len(options.texts) - 1}{doubt}"
        )


def _is_withheld(value: object) -> bool:
    return type(value) in (str, int, type(None)) and value in _WITHHELD


def _possible_readings(value: object, options: AnswerOptions) -> dict[str, int]:
    """Return every way to read a gold answer: kind (text, letter, index) → index of the option.

    The reading `index` is the number in the row, which may count from 0 or from 1.
    """
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if _is_withheld(value):
        return {}
    if type(value) is int:
        # If the options are labelled with numbers, a number in the answer is a label.
        if not options.labels or not options.labels[0].isdecimal():
            return {"index": value}
        value = str(value)
    if not isinstance(value, str):
        return {}
    text, texts = value.strip(), [str(option).strip() for option in options.texts]
    readings: dict[str, int] = {}
    # An exact match takes precedence, because options can differ in upper and lower case only (`k`, `K`).
    if text in texts:
        readings["text"] = texts.index(text)
    elif sum(text.casefold() == other.casefold() for other in texts) == 1:
        readings["text"] = [other.casefold() for other in texts].index(text.casefold())
    letter = _LETTER.fullmatch(text)
    label = letter[1] if letter else text
    # A lower-case letter is read as a label only if it is not an option's text.
    if label.upper() in options.labels and (label.isupper() or label.isdecimal() or not readings):
        readings["letter"] = options.labels.index(label.upper())
    elif re.fullmatch(r"\d{1,2}", text):
        readings["index"] = int(text)
    if not readings and (both := _LETTERED.fullmatch(text)) and both[1].upper() in options.labels:
        index = options.labels.index(both[1].upper())
        # `B. Pancreas` is accepted only if option B is "Pancreas".
        if texts[index].casefold() == both[2].strip().casefold():
            readings["letter"] = index
    return readings
