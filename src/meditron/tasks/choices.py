"""The options and the gold answer of a row, in every form in which published sets write them.

Options come as a list, as an object by letter, as lists of texts and labels, as a list of objects, or as
columns (`A` … `J`, `opa` … `ope`, `ending0` …). A gold answer is a letter or label, the option's text, both
(`B. Pancreas`), or an index that counts from 0 or from 1. Where a value can be read in two ways, the other
rows of the file decide; where they do not, the row is refused.
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
    "Convention",
    "Malformed",
    "Options",
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
# Names that say "the answer" only where no other key does: a dataset may use them for something else.
_WEAK_ANSWERS = ("label", "target", "correct", "ra")
_WITHHELD = (None, "", -1, "-1")
_MANY = 10
"""Rows with an index, none of them 0, from which that is worth a warning."""
_LETTERED = re.compile(r"\(?([A-Za-z])[.):] (.*)", re.DOTALL)
_LETTER = re.compile(r"\(?([A-Za-z])[.):]?")


class Malformed(Exception):
    """A row is no question: the reason, what shows it, and a remark."""

    def __init__(self, reason: str, shown: object = "", remark: str = "") -> None:
        text = f"{reason}: {str(shown)[:80]!r}" if shown != "" else reason
        super().__init__(f"{text} ({remark})" if remark else text)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Options:
    """The options of a row in order."""

    texts: tuple[object, ...]
    labels: tuple[str, ...]
    """What the row calls them: letters from A, or its own numbers."""


def answer_keys(fields: Mapping[str, object]) -> tuple[str, ...]:
    """Return the keys of a row that can hold its gold answer."""
    return tuple(key for key in _ANSWERS if key in fields) or tuple(
        key for key in _WEAK_ANSWERS if key in fields
    )


def read_options(fields: Mapping[str, Any]) -> Options:
    """Return all options of a row.

    Raises:
        Malformed: there are none, or they are named in an order that would shift letters.
    """
    for key in _LISTS:
        if isinstance(value := _json(fields.get(key)), list | dict):
            return _listed(value)
        if value is not None and key == "options":
            raise Malformed("the options are neither list nor object", value)
    for form in _COLUMNS:
        named = ((form.fullmatch(key), value) for key, value in fields.items() if key not in _LISTS)
        columns = {found[1]: value for found, value in named if found}
        if len(columns) >= 2:
            return _named(dict(sorted(columns.items(), key=lambda item: (len(item[0]), item[0]))))
    raise Malformed(NO_OPTIONS)


def _json(value: object) -> object:
    """Read a CSV cell that holds a JSON list or object; anything else stays as it is."""
    if not isinstance(value, str) or not value.lstrip().startswith(("[", "{")):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def _listed(value: list[Any] | dict[Any, Any]) -> Options:
    if isinstance(value, dict):
        texts, labels = (_first(value, names) for names in (_TEXTS, _LABELS))
        if isinstance(texts, list) and isinstance(labels, list) and len(texts) == len(labels):
            return _named(dict(zip(map(str, labels), texts, strict=True)), len(labels))
        return _named({str(key): text for key, text in value.items()})
    if value and all(isinstance(option, dict) for option in value):
        pairs = [(_first(option, _LABELS), _first(option, _TEXTS)) for option in value]
        return _named({str(label): text for label, text in pairs}, len(pairs))
    return Options(tuple(unlettered(value)), tuple(ascii_uppercase[: len(value)]))


def _first(fields: Mapping[str, Any], names: Iterable[str]) -> object:
    return next((fields[name] for name in names if name in fields), None)


def _named(texts: Mapping[str, object], count: int | None = None) -> Options:
    """Options by label, in the order A, B, C … or of consecutive numbers; empty ones at the end are none."""
    labels = [label.strip().upper() for label in texts]
    numbers = [int(label) for label in labels if label.isdecimal()]
    lettered = labels == list(ascii_uppercase[: len(labels)])
    numbered = len(numbers) == len(labels) and numbers == list(range(numbers[0], numbers[0] + len(labels)))
    if not (lettered or (numbered and numbers[0] in (0, 1))) or count not in (None, len(labels)):
        raise Malformed("the options are not lettered A, B, C …", list(texts))
    values = list(texts.values())
    while values and (values[-1] is None or values[-1] == ""):
        values.pop()
    return Options(tuple(values), tuple(labels[: len(values)]))


def unlettered(options: Sequence[T]) -> Sequence[T | str]:
    """Return options without their letters, if each has its own: `A. text`, `B. text`."""
    parts = [_LETTERED.fullmatch(option) if isinstance(option, str) else None for option in options]
    lettered = [part[1] for part in parts if part] == list(ascii_uppercase[: len(options)])
    return [part[2] for part in parts if part] if lettered else options


class Convention:
    """How the gold answers under one key are meant, decided by all rows of a file."""

    def __init__(self, key: str, rows: Iterable[tuple[object, Options]]) -> None:
        given = list(rows)
        readings = [(_readings(value, options), len(options.texts)) for value, options in given]
        indexes = [(found["index"], count) for found, count in readings if set(found) == {"index"}]
        # MedMCQA's own JSON counts from 1; tables are made from the hub's copy, which counts from 0.
        self.first = int(key == "cop" and not all(isinstance(value, str) for value, _ in given))
        """The index of the first option, 0 or 1."""
        self._zero, last = any(not i for i, _ in indexes), any(i == count for i, count in indexes)
        few = key == "gold" and len(indexes) < _MANY
        self.certain = not indexes or self._zero or last or few
        """Whether the rows tell where indexes count from; `gold` counts from 0 by definition."""
        if key != "gold" and (self._zero or last):
            self.first = 0 if self._zero else 1
        placed = (self._places(found, count) for found, count in readings)
        alone = {next(iter(found)) for found in placed if len(found) == 1}
        self._preferred = next(iter(alone)) if len(alone) == 1 else "letter" if key == "gold" else None

    def place(self, value: object, options: Options) -> int | None:
        """Return the index of the gold option from 0; None where the answer is withheld.

        Raises:
            Malformed: the value names no option, or two.
        """
        if _withheld(value):
            return None
        found = self._places(_readings(value, options), len(options.texts))
        places = set(found.values())
        if len(places) > 1 and self._preferred in found:
            places = {found[self._preferred]}
        if len(places) > 1:
            kinds = " and the ".join(f"{kind} of option {place + 1}" for kind, place in found.items())
            raise Malformed(f"the gold answer is ambiguous, the {kinds}", value)
        if not places:
            raise Malformed("the gold answer is no option", value, self._counted(value, options))
        return places.pop()

    def _places(self, readings: Mapping[str, int], count: int) -> dict[str, int]:
        """Readings that name one of `count` options, indexes from 0."""
        found = {kind: place - self.first * (kind == "index") for kind, place in readings.items()}
        return {kind: place for kind, place in found.items() if 0 <= place < count}

    def _counted(self, value: object, options: Options) -> str:
        if type(value) is not int or options.labels[0].isdecimal():
            return ""
        doubt = "" if self._zero else "; no answer of the file is 0"
        return f"an index counts from {self.first}, to {self.first + len(options.texts) - 1}{doubt}"


def _withheld(value: object) -> bool:
    return type(value) in (str, int, type(None)) and value in _WITHHELD


def _readings(value: object, options: Options) -> dict[str, int]:
    """Return each way to read an answer with the option's place; an index as it is given."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if _withheld(value):
        return {}
    if type(value) is int:
        # Numbered options are meant by their numbers.
        if not options.labels or not options.labels[0].isdecimal():
            return {"index": value}
        value = str(value)
    if not isinstance(value, str):
        return {}
    text, texts = value.strip(), [str(option).strip() for option in options.texts]
    found: dict[str, int] = {}
    if text in texts:
        found["text"] = texts.index(text)
    elif sum(text.casefold() == other.casefold() for other in texts) == 1:
        found["text"] = [other.casefold() for other in texts].index(text.casefold())
    letter = _LETTER.fullmatch(text)
    label = letter[1] if letter else text
    if label.upper() in options.labels and (label.isupper() or label.isdecimal() or not found):
        found["letter"] = options.labels.index(label.upper())
    elif re.fullmatch(r"\d{1,2}", text):
        found["index"] = int(text)
    if not found and (both := _LETTERED.fullmatch(text)) and both[1].upper() in options.labels:
        place = options.labels.index(both[1].upper())
        if texts[place].casefold() == both[2].strip().casefold():
            found["letter"] = place
    return found
