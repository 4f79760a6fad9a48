"""HF tokenizers behind checks: what a tokenizer.json from outside may do is bounded before it runs.

The library matches patterns with Oniguruma, which backtracks. A pattern whose time may grow faster than the
square of a text's length is refused by its form, for nothing can stop a match that has begun. What the form
does not show ends at Oniguruma's limit of retries, on which the library panics.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tokenizers import Tokenizer as Backend

from meditron.core.errors import InputError

__all__ = ["build", "guarded", "risky"]

_T = TypeVar("_T")
_MAX_PATTERN = 1 << 14  # characters; GPT-4o's has 300
_MAX_REPEATS = 2  # without an upper bound, in a row: `\s*[\r\n]+`
_BOUND = 64  # a repeat of more counts as one without an upper bound
_MAX_CHOICES = 8  # bounded repeats of varying length in a row
_MAX_NESTED = 4  # times that what itself varies in length may be repeated
_MAX_GROWTH = 64  # times that a normalizer may lengthen a text
# A character, a class, a group's beginning or end, an alternative, or a repeat.
_PART = re.compile(
    r"\\[pPx]\{[^}]*\}|\\u[0-9a-fA-F]{4}|\\.|\[(?:\\.|\[:\^?\w+:\]|[^\]\\])+\]"
    r"|\((?:\?(?:[imsx-]*:|[=!>]|<[=!]|<\w+>|#))?|[)|]|[*+?][?+]?|\{\d*,?\d*\}[?+]?|.",
    re.DOTALL,
)


def build(spec: Mapping[str, Any], path: Path) -> Backend:
    """Build the library's tokenizer; InputError for a file that describes none, or one without bounds."""
    rules = {key: value for key, value in spec.items() if key not in ("model", "added_tokens")}
    for pattern in _patterns(rules):
        if problem := risky(pattern):
            raise InputError(path, f"has a pattern that {problem}: {pattern[:80]!r}", place="Regex")
    if _growth(rules.get("normalizer")) > _MAX_GROWTH:
        raise InputError(path, f"lengthens a text more than {_MAX_GROWTH} times", place="normalizer")
    if isinstance(model := spec.get("model"), dict) and model.get("dropout"):
        raise InputError(path, "draws merges at random; the ids of a text would vary", place="model.dropout")
    try:
        return Backend.from_str(json.dumps(spec))
    except Exception as error:  # the library raises nothing narrower
        raise InputError(path, f"is no tokenizer: {error}") from error


def guarded(path: Path, work: Callable[[], _T]) -> _T:
    """Do `work` with the library; InputError where it panics, which is no Exception in Python."""
    try:
        return work()
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise InputError(path, f"fails on this text: {error}", place="pre_tokenizer") from error


def _patterns(rules: object) -> Iterator[str]:
    if isinstance(rules, dict):
        for key, value in rules.items():
            if key == "Regex" and isinstance(value, str):
                yield value
            else:
                yield from _patterns(value)
    elif isinstance(rules, list):
        for item in rules:
            yield from _patterns(item)


def _growth(normalizer: object) -> float:
    """Return the factor by which a text may grow."""
    if not isinstance(normalizer, dict):
        return 1
    steps = normalizer.get("normalizers")
    growth = 1.0
    for step in steps if isinstance(steps, list) else []:
        growth = min(growth * _growth(step), _MAX_GROWTH + 1)
    content, pattern = normalizer.get("content"), normalizer.get("pattern")
    if isinstance(content, str):
        literal = pattern.get("String") if isinstance(pattern, dict) else None
        growth *= max(1.0, len(content) / max(1, len(literal) if isinstance(literal, str) else 1))
    if isinstance(prepended := normalizer.get("prepend"), str) and len(prepended) > _MAX_GROWTH:
        return _MAX_GROWTH + 1
    return growth


@dataclass(slots=True)
class _Group:
    """Repeats within a group: of the alternative that is read, and the most of any."""

    repeats: int = 0
    choices: int = 0
    most: int = 0
    variable: bool = False
    """A repeat of varying length, or a choice: a repeat of the group could match in many ways."""


def risky(pattern: str) -> str | None:
    """Say why a pattern may take more than quadratic time; None where its form allows no such thing."""
    if len(pattern) > _MAX_PATTERN:
        return f"has more than {_MAX_PATTERN:,} characters"
    stack, last = [_Group()], _Group()
    for part in _PART.findall(pattern):
        group = stack[-1]
        if part[0] == "(":
            stack.append(_Group())
        elif part == ")" and len(stack) > 1:
            last = stack.pop()
            last.most = max(last.most, last.repeats)
            stack[-1].repeats += last.most
            stack[-1].variable |= last.variable
        elif part == "|":
            group.most, group.repeats, group.variable = max(group.most, group.repeats), 0, True
            group.choices = 0
        elif (bounds := _bounds(part)) is not None:
            least, most = bounds
            if last.variable and most > _MAX_NESTED:
                return "repeats what itself varies in length"
            group.repeats += most > _BOUND
            group.choices += least != most
            group.variable |= least != most
        else:
            if re.fullmatch(r"\\[1-9k]", part):
                return "refers back to a group"
            last = _Group()
        if stack[-1].repeats > _MAX_REPEATS or stack[-1].choices > _MAX_CHOICES:
            return "has too many repeats in a row"
    return None


def _bounds(part: str) -> tuple[int, int] | None:
    """Least and most times of a repeat; None for what is no repeat."""
    if part[0] in "*+?" and len(part) <= 2:
        return {"*": (0, _BOUND + 1), "+": (1, _BOUND + 1), "?": (0, 1)}[part[0]]
    if found := re.fullmatch(r"\{(\d*)(,?)(\d*)\}[?+]?", part):
        low, comma, high = found.groups()
        if low or high:
            least = int(low or 0)
            return least, int(high) if high else _BOUND + 1 if comma else least
    return None
