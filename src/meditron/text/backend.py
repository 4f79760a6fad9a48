"""HF tokenizers behind checks that bound the time and memory of an untrusted tokenizer.json.

The library matches patterns with Oniguruma, which backtracks, and a match that has begun cannot be stopped.
A pattern whose time may grow faster than the square of a text's length is therefore refused by its form.
Cases that the form does not show end at Oniguruma's limit of retries, on which the library panics.
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
# A character, a class, a group's beginning or end, an alternative, or a repeat.
_PART = re.compile(
    r"\\[pPx]\{[^}]*\}|\\u[0-9a-fA-F]{4}|\\.|\[(?:\\.|\[:\^?\w+:\]|[^\]\\])+\]"
    r"|\((?:\?(?:[imsx-]*:|[=!>]|<[=!]|<\w+>|#))?|[)|]|[*+?][?+]?|\{\d*,?\d*\}[?+]?|.",
    re.DOTALL,
)


def build_tokenizer(spec: Mapping[str, Any], path: Path) -> Backend:
    """Build the library's tokenizer.

    Raises:
        InputError: The file does not describe a tokenizer, or one whose time or memory is not bounded.
    """
    # The vocabulary and the added tokens are literals; only the rules can hold patterns.
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
    """Call `work`; raise InputError if the library panics, which Python sees as a BaseException."""
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
    """Return the factor by which a normalizer may lengthen a text."""
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
    """Repeats within a group: of the current alternative, and the maximum of all alternatives."""

    repeats: int = 0
    choices: int = 0
    max_repeats: int = 0
    is_variable: bool = False
    """True if it has a repeat of variable length or alternatives: repeated, it may match in many ways."""


def slow_pattern_reason(pattern: str) -> str | None:
    """Return why a pattern may take more than quadratic time; None if its form excludes that."""
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
