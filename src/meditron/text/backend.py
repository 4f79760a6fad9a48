"""Construction of HF tokenizers from untrusted tokenizer.json files, with bounds on their time and memory.

The tokenizers library matches regular expressions with Oniguruma, which backtracks, and a running match
cannot be stopped. A pattern whose matching time may grow faster than the square of the text's length is
therefore refused before it is used. Slow patterns that this check does not recognise end at Oniguruma's limit
of retries, at which the library panics.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tokenizers import Tokenizer as Backend

from meditron.core.errors import InputError

__all__ = ["build_tokenizer", "call_backend", "slow_pattern_reason"]

_T = TypeVar("_T")
_MAX_PATTERN = 1 << 14  # characters; GPT-4o's has 300
_MAX_REPEATS = 2  # unbounded repeats in a row: `\s*[\r\n]+` takes quadratic time, three take cubic
_BOUND = 64  # a repeat of more counts as unbounded
_MAX_CHOICES = 8  # bounded repeats of variable length in a row: each multiplies the ways to match
_MAX_NESTED = 4  # repeats of a group of variable length
_MAX_GROWTH = 64  # factor by which a normalizer may lengthen a text
# One part of a regular expression: a character, a character class, a group's beginning or end, `|`, or a
# repeat.
_PART = re.compile(
    r"\\[pPx]\{[^}]*\}|\\u[0-9a-fA-F]{4}|\\.|\[(?:\\.|\[:\^?\w+:\]|[^\]\\])+\]"
    r"|\((?:\?(?:[imsx-]*:|[=!>]|<[=!]|<\w+>|#))?|[)|]|[*+?][?+]?|\{\d*,?\d*\}[?+]?|.",
    re.DOTALL,
)


def build_tokenizer(spec: Mapping[str, Any], path: Path) -> Backend:
    """Build the library's tokenizer from the content of a tokenizer.json.

    Raises:
        InputError: The file does not describe a tokenizer, or its rules may take unbounded time or memory.
    """
    # The vocabulary and the added tokens are literal texts; only the other rules can contain patterns.
    rules = {key: value for key, value in spec.items() if key not in ("model", "added_tokens")}
    for pattern in _regex_patterns(rules):
        if problem := slow_pattern_reason(pattern):
            raise InputError(path, f"the pattern {pattern[:80]!r} {problem}", place="Regex")
    if _max_growth_factor(rules.get("normalizer")) > _MAX_GROWTH:
        raise InputError(path, f"may lengthen a text more than {_MAX_GROWTH} times", place="normalizer")
    if isinstance(model := spec.get("model"), dict) and model.get("dropout"):
        raise InputError(
            path, "dropout is set: merges are random, so the ids of a text would vary", place="model.dropout"
        )
    try:
        return Backend.from_str(json.dumps(spec))
    except Exception as error:  # the library raises nothing narrower
        raise InputError(path, f"not a tokenizer: {error}") from error


def call_backend(path: Path, work: Callable[[], _T]) -> _T:
    """Call `work`; raise InputError if the tokenizers library panics (a BaseException in Python)."""
    try:
        return work()
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise InputError(path, f"tokenization of this text fails: {error}", place="pre_tokenizer") from error


def _regex_patterns(rules: object) -> Iterator[str]:
    if isinstance(rules, dict):
        for key, value in rules.items():
            if key == "Regex" and isinstance(value, str):
                yield value
            else:
                yield from _regex_patterns(value)
    elif isinstance(rules, list):
        for item in rules:
            yield from _regex_patterns(item)


def _max_growth_factor(normalizer: object) -> float:
    """Return the largest factor by which a normalizer may lengthen a text."""
    if not isinstance(normalizer, dict):
        return 1
    steps = normalizer.get("normalizers")
    growth = 1.0
    for step in steps if isinstance(steps, list) else []:
        growth = min(growth * _max_growth_factor(step), _MAX_GROWTH + 1)
    content, pattern = normalizer.get("content"), normalizer.get("pattern")
    if isinstance(content, str):
        literal = pattern.get("String") if isinstance(pattern, dict) else None
        growth *= max(1.0, len(content) / max(1, len(literal) if isinstance(literal, str) else 1))
    if isinstance(prepended := normalizer.get("prepend"), str) and len(prepended) > _MAX_GROWTH:
        return _MAX_GROWTH + 1
    return growth


@dataclass(slots=True)
class _RegexGroup:
    """Counts of repeats in a group of a regular expression."""

    repeats: int = 0
    """Unbounded repeats in the current alternative."""
    choices: int = 0
    """Repeats of variable length in the current alternative."""
    max_repeats: int = 0
    """Most unbounded repeats in one of the alternatives so far."""
    is_variable: bool = False
    """True if the group has alternatives or a repeat of variable length. If such a group is itself repeated,
    it may match a text in many ways."""


def slow_pattern_reason(pattern: str) -> str | None:
    """Return the reason why a pattern may take more than quadratic time; None if it cannot."""
    if len(pattern) > _MAX_PATTERN:
        return f"has more than {_MAX_PATTERN:,} characters"
    stack, last = [_RegexGroup()], _RegexGroup()
    for part in _PART.findall(pattern):
        group = stack[-1]
        if part[0] == "(":
            stack.append(_RegexGroup())
        elif part == ")" and len(stack) > 1:
            last = stack.pop()
            last.max_repeats = max(last.max_repeats, last.repeats)
            stack[-1].repeats += last.max_repeats
            stack[-1].is_variable |= last.is_variable
        elif part == "|":
            group.max_repeats, group.repeats, group.is_variable = (
                max(group.max_repeats, group.repeats),
                0,
                True,
            )
            group.choices = 0
        elif (bounds := _repeat_bounds(part)) is not None:
            least, most = bounds
            if last.is_variable and most > _MAX_NESTED:
                return "repeats a group of variable length"
            group.repeats += most > _BOUND
            group.choices += least != most
            group.is_variable |= least != most
        else:
            if re.fullmatch(r"\\[1-9k]", part):
                return "has a back reference"
            last = _RegexGroup()
        if stack[-1].repeats > _MAX_REPEATS or stack[-1].choices > _MAX_CHOICES:
            return "has too many repeats in a row"
    return None


def _repeat_bounds(part: str) -> tuple[int, int] | None:
    """Return the minimum and maximum of a repeat; None if `part` is not a repeat."""
    if part[0] in "*+?" and len(part) <= 2:
        return {"*": (0, _BOUND + 1), "+": (1, _BOUND + 1), "?": (0, 1)}[part[0]]
    if bounds := re.fullmatch(r"\{(\d*)(,?)(\d*)\}[?+]?", part):
        low, comma, high = bounds.groups()
        if low or high:
            least = int(low or 0)
            return least, int(high) if high else _BOUND + 1 if comma else least
    return None
