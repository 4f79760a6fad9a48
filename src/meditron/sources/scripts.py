"""Conversion of superscripts and subscripts to plain text: `10⁹`, `H₂O`, `V_max`, `CD4^(+/low)`.

Superscripts and subscripts of digits and signs are converted to Unicode's raised and lowered characters, so
that they are never read as part of the number before them. Those with letters are written after `^` or `_`.
Raised and lowered letters of Unicode are used only for single letters (`10ⁿ`, `⁹⁹ᵐTc`, `TiO₂₋ₓ`), and of
these only `ⁱ ᵐ ⁿ` and `ᵢ ₙ ₓ`, because whole words of them are hard to read, to search and to tokenize.
Raised ordinals (`1st`), degrees (`37°C`), trade marks (`™`) and signs without a letter or digit (`*`, `†`,
`®`, `•`) are written as normal characters.
"""

import re
from functools import lru_cache

__all__ = ["END", "SUB", "SUP", "render_sup_and_sub_marks", "subscript", "superscript"]

# Marks of the start of a superscript, of the start of a subscript, and of the end of either, in text that
# `render_sup_and_sub_marks` has not converted yet. XML forbids these characters.
SUP, SUB, END = "\x01", "\x02", "\x03"

_DASHES = "-\u2010\u2011\u2012\u2013\u2212"  # characters that texts use as a raised or lowered minus
_RAISED = str.maketrans("0123456789+=()imn" + _DASHES, "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁼⁽⁾ⁱᵐⁿ" + "⁻" * len(_DASHES))
_LOWERED = str.maketrans("0123456789+=()inx" + _DASHES, "₀₁₂₃₄₅₆₇₈₉₊₌₍₎ᵢₙₓ" + "₋" * len(_DASHES))
_ON_THE_LINE = {
    **{ordinal: ordinal for ordinal in ("st", "nd", "rd", "th", "ST", "ND", "RD", "TH")},
    **{"o": "°", "º": "°", "ª": "ª", "TM": "™", "tm": "™", "SM": "℠"},
}
_ALL_RAISED = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁱᵐⁿ]+")
# Marks of references: `¹,³⁻⁵`.
_RAISED_LIST = re.compile("[¹²³⁴⁵⁶⁷⁸⁹][⁰¹²³⁴⁵⁶⁷⁸⁹⁻]*(?:, ?[¹²³⁴⁵⁶⁷⁸⁹][⁰¹²³⁴⁵⁶⁷⁸⁹⁻]*)+")
_ALL_LOWERED = re.compile("[₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎ᵢₙₓ]+(?:[.,/][₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎ᵢₙₓ]+)*")  # `PM₂.₅`, `t₁/₂`
_NUMBER_AND_WORD = re.compile("([0-9]+)([A-Za-z]+)")  # `VO₂max`, `HbA₁c`, `5-HT₂A`
_SIGN_BLANK = re.compile(f"(?<=[{_DASHES}+]) | (?=[{_DASHES}+])")
_SEVERAL_LETTERS = re.compile(r"[^\W\d_]{2}")
_LONGEST_CACHED = 100  # characters
_WORD = re.compile(r"[^\W\d_][^\W_]*")
_SCRIPT = re.compile(f"([{SUP}{SUB}])(\\s*)([^{SUP}{SUB}{END}]*){END}")


def superscript(text: str, following: str = "") -> str:
    """Convert a superscript to plain text.

    Args:
        text: The text of the superscript.
        following: The text after the superscript. If it begins with a letter or digit, a script with letters
            gets parentheses: in `CD44^lowCD62L` its end would be invisible.

    Returns:
        Plain text such as `⁹`, `ⁿ⁻¹`, `^low` or `^(1/2)`; an empty text for an empty superscript.
    """
    write = _render_superscript if len(text) <= _LONGEST_CACHED else _render_superscript.__wrapped__
    return write(text, _joins_next_character(following))


def subscript(text: str, following: str = "") -> str:
    """Convert a subscript to plain text: `₂`, `₂.₅`, `_max`, `_(i,j)`. Arguments: as for `superscript`."""
    write = _render_subscript if len(text) <= _LONGEST_CACHED else _render_subscript.__wrapped__
    return write(text, _joins_next_character(following))


def _joins_next_character(following: str) -> bool:
    return following[:1].isalnum() or following[:1] in {SUP, SUB}


@lru_cache(maxsize=1 << 12)
def _render_superscript(text: str, touching: bool) -> str:
    text = " ".join(text.split())
    if text in _ON_THE_LINE:
        return _ON_THE_LINE[text]
    raised = _SIGN_BLANK.sub("", text).translate(_RAISED)
    lone = _ALL_RAISED.fullmatch(raised) and not _SEVERAL_LETTERS.search(text)
    if lone or _RAISED_LIST.fullmatch(raised) or not any(map(str.isalnum, text)):
        return raised
    return _with_caret_or_underscore("^", text, touching)


@lru_cache(maxsize=1 << 12)
def _render_subscript(text: str, touching: bool) -> str:
    text = " ".join(text.split())
    lowered = _SIGN_BLANK.sub("", text).translate(_LOWERED)
    lone = _ALL_LOWERED.fullmatch(lowered) and not _SEVERAL_LETTERS.search(text)
    if lone or not any(map(str.isalnum, text)):
        return lowered
    if match := _NUMBER_AND_WORD.fullmatch(text):
        return match[1].translate(_LOWERED) + match[2]
    return _with_caret_or_underscore("_", text, touching)


def render_sup_and_sub_marks(text: str) -> str:
    """Convert all superscripts (between SUP and END) and subscripts (between SUB and END) to plain text."""
    while END in text:
        text = _SCRIPT.sub(_render_match, text)
    return text


def _render_match(match: re.Match[str]) -> str:
    mark, before, script = match.groups()
    after = " " if script != script.rstrip() else ""
    following = after or match.string[match.end() : match.end() + 1]
    return (" " if before else "") + (superscript if mark == SUP else subscript)(script, following) + after


def _with_caret_or_underscore(mark: str, text: str, touching: bool) -> str:
    return f"{mark}({text})" if touching or not _WORD.fullmatch(text) else f"{mark}{text}"
