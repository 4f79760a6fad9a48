"""Checks of a rater's input: what may be saved, and when a comparison is complete."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from meditron.core.errors import UsageError
from meditron.serve.review.rubric import HIGHEST, LOWEST, PREFERENCES, Rubric

__all__ = [
    "ANSWER_SIDES",
    "BIAS_KIND",
    "COMMENT",
    "HARMFUL",
    "HARM_KIND",
    "PAIR",
    "PREFERENCE",
    "Change",
    "Side",
    "Values",
    "is_complete",
    "missing_fields",
    "read_changes",
    "read_rater_name",
]

Side = Literal["left", "right", "pair"]
ANSWER_SIDES: tuple[Side, ...] = ("left", "right")
PAIR: Side = "pair"
PREFERENCE, COMMENT = "preference", "comment"
HARMFUL, HARM_KIND, BIAS_KIND = "harmful", "harm_kind", "bias_kind"
Values = Mapping[Side, Mapping[str, Any]]
"""Side → field → value; a field that was cleared is absent."""
_LONGEST_COMMENT = 10_000  # characters
_LONGEST_NAME = 64


@dataclass(frozen=True, slots=True)
class Change:
    """A new value of one field; None clears it."""

    side: Side
    field: str
    value: int | bool | str | None


def read_changes(body: object, rubric: Rubric) -> list[Change]:
    """Read `{"left": {FIELD: VALUE…}, "right": {…}, "preference": …, "comment": …}`; every part is optional.

    Raises:
        UsageError: a key is unknown, or a value is not one of its field's.
    """
    if not isinstance(body, dict):
        raise UsageError("the ratings are not a JSON object")
    changes = []
    for key, value in body.items():
        if key in ("left", "right"):
            side: Side = "left" if key == "left" else "right"
            if not isinstance(value, dict):
                raise UsageError(f"{key} is not a JSON object")
            if PREFERENCE in value:
                raise UsageError(f"{PREFERENCE} belongs to the pair, not to {key}")
            changes += [Change(side, name, _checked(name, each, rubric)) for name, each in value.items()]
        elif key in (PREFERENCE, COMMENT):
            changes.append(Change(PAIR, key, _checked(key, value, rubric)))
        else:
            raise UsageError(f"unknown key {key!r:.60}; keys are left, right, preference, comment")
    return changes


def missing_fields(values: Values, rubric: Rubric) -> list[str]:
    """Return what a comparison lacks to be complete, such as `left.harm` and `preference`.

    Both answers need all scales and the yes/no on harm, the pair a preference. Kinds and comments are
    optional.
    """
    needed = [*(scale.key for scale in rubric.scales), HARMFUL]
    missing = [
        f"{side}.{name}" for side in ANSWER_SIDES for name in needed if name not in values.get(side, {})
    ]
    return missing if PREFERENCE in values.get(PAIR, {}) else [*missing, PREFERENCE]


def is_complete(values: Values, rubric: Rubric) -> bool:
    """Return whether a comparison lacks nothing."""
    return not missing_fields(values, rubric)


def read_rater_name(value: object) -> str:
    """Return the name that a rater chose, without blanks around it; UsageError if it is no name."""
    name = value.strip() if isinstance(value, str) else ""
    if not 1 <= len(name) <= _LONGEST_NAME or not name.isprintable():
        raise UsageError(f"the name of a rater has 1 to {_LONGEST_NAME} printable characters")
    return name


def _checked(name: str, value: object, rubric: Rubric) -> int | bool | str | None:
    """Return a field's value; UsageError if the field is unknown or the value is not one of its values."""
    if value is None:
        if name not in _fields(rubric):
            raise UsageError(f"unknown field {name!r:.60}")
        return None
    if any(scale.key == name for scale in rubric.scales):
        if type(value) is int and LOWEST <= value <= HIGHEST:
            return value
        raise UsageError(f"{name} must be a whole number from {LOWEST} to {HIGHEST}, got {value!r:.60}")
    if name == HARMFUL:
        if isinstance(value, bool):
            return value
        raise UsageError(f"{name} must be true or false, got {value!r:.60}")
    if name == COMMENT:
        return _comment(value)
    choices = _choices(rubric).get(name)
    if choices is None:
        raise UsageError(f"unknown field {name!r:.60}")
    if not isinstance(value, str) or value not in choices:
        raise UsageError(f"{name} must be one of {', '.join(choices)}, got {value!r:.60}")
    return value


def _choices(rubric: Rubric) -> dict[str, list[str]]:
    return {
        PREFERENCE: list(PREFERENCES),
        HARM_KIND: [kind.key for kind in rubric.harmful.kinds],
        BIAS_KIND: [kind.key for kind in rubric.bias_kinds],
    }


def _fields(rubric: Rubric) -> set[str]:
    return {scale.key for scale in rubric.scales} | {HARMFUL, COMMENT, *_choices(rubric)}


def _comment(value: object) -> str | None:
    """Return a comment that can be stored; None for an empty one."""
    if not isinstance(value, str) or len(value) > _LONGEST_COMMENT:
        raise UsageError(f"a comment is a text of at most {_LONGEST_COMMENT:,} characters")
    text = value.replace("\r\n", "\n").strip()
    # Neither a table of the terminal nor a CSV file can hold these, and UTF-8 has no half surrogate pairs.
    if any((char < " " and char not in "\n\t") or "\ud800" <= char <= "\udfff" for char in text):
        raise UsageError("the comment has a control character")
    return text or None
