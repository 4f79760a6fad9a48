"""Conversion of superscripts and subscripts to plain text: `10⁹`, `H₂O`, `V_max`, `CD4^(+/low)`.

A script of digits and signs becomes Unicode's own characters, so a power or an index never fuses with the
number before it. Letters stay letters after `^` or `_`: of Unicode's raised and lowered letters only `ⁱ ᵐ ⁿ`
and `ᵢ ₙ ₓ` are used, and only alone (`10ⁿ`, `⁹⁹ᵐTc`, `TiO₂₋ₓ`): words of them are hard to read, to search
and to tokenize. Ordinals (`1st`), degrees (`37°C`), trade marks (`™`) and signs without a letter or
digit (`*`, `†`, `®`, `•`) stay on the line.
"""

import re
from functools import lru_cache

__all__ = ["END", "SUB", "SUP", "resolve_scripts", "subscript", "superscript"]

# Marks of a script's start and end in unresolved text. XML forbids these characters.
SUP, SUB, END = "\x01", "\x02", "\x03"

_DASHES = "-\u2010\u2011\u2012\u2013\u2212"  # all are in use as a raised or lowered minus
_RAISED = str.maketrans("0123456789+=()imn" + _DASHES, "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁼⁽⁾ⁱᵐⁿ" + "⁻" * len(_DASHES))
_LOWERED = str.maketrans("0123456789+=()inx" + _DASHES, "₀₁₂₃₄₅₆₇₈₉₊₌₍₎ᵢₙₓ" + "₋" * len(_DASHES))
_ON_THE_LINE = {
    **{ordinal: ordinal for ordinal in ("st", "nd", "rd", "th", "ST", "ND", "RD", "TH")},
    **{"o": "°", "º": "°", "ª": "ª", "TM": "™", "tm": "™", "SM": "℠"},
}
_ALL_RAISED = re.compile("[⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁱᵐⁿ]+")
_RAISED_LIST = re.compile(
    "[¹²³⁴⁵⁶⁷⁸⁹][⁰¹²³⁴⁵⁶⁷⁸⁹⁻]*(?:, ?[¹²³⁴⁵⁶⁷⁸⁹][⁰¹²³⁴⁵⁶⁷⁸⁹⁻]*)+"
)  # marks of references: `¹,³⁻⁵`
_ALL_LOWERED = re.compile("[₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎ᵢₙₓ]+(?:[.,/][₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎ᵢₙₓ]+)*")  # `PM₂.₅`, `t₁/₂`
_NUMBER_AND_WORD = re.compile("([0-9]+)([A-Za-z]+)")  # `VO₂max`, `HbA₁c`, `5-HT₂A`
_SIGN_BLANK = re.compile(f"(?<=[{_DASHES}+]) | (?=[{_DASHES}+])")
_SEVERAL_LETTERS = re.compile(r"[^\W\d_]{2}")
_LONGEST_CACHED = 100  # characters
_WORD = re.compile(r"[^\W\d_][^\W_]*")
_SCRIPT = re.compile(f"([{SUP}{SUB}])(\\s*)([^{SUP}{SUB}{END}]*){END}")


def superscript(text: str, following: str = "") -> str:
    """Write raised text on the line.

    Args:
        text: The raised text.
        following: The text after it. A script of letters before a letter or digit gets parentheses:
            the end of the script in `CD44^lowCD62L` would be invisible.

    Returns:
        `⁹`, `ⁿ⁻¹`, `^low`, `^(1/2)`; an empty text for an empty text.
    """
    write = _superscript if len(text) <= _LONGEST_CACHED else _superscript.__wrapped__
    return write(text, _touching(following))


def subscript(text: str, following: str = "") -> str:
    """Write lowered text on the line: `₂`, `₂.₅`, `_max`, `_(i,j)`. Arguments as of `superscript`."""
    write = _subscript if len(text) <= _LONGEST_CACHED else _subscript.__wrapped__
    return write(text, _touching(following))


def _touching(following: str) -> bool:
    return following[:1].isalnum() or following[:1] in {SUP, SUB}


@lru_cache(maxsize=1 << 12)
def _superscript(text: str, touching: bool) -> str:
    text = " ".join(text.split())
    if text in _ON_THE_LINE:
        return _ON_THE_LINE[text]
    raised = _SIGN_BLANK.sub("", text).translate(_RAISED)
    lone = _ALL_RAISED.fullmatch(raised) and not _SEVERAL_LETTERS.search(text)
    if lone or _RAISED_LIST.fullmatch(raised) or not any(map(str.isalnum, text)):
        return raised
    return _marked("^", text, touching)


@lru_cache(maxsize=1 << 12)
def _subscript(text: str, touching: bool) -> str:
    text = " ".join(text.split())
    lowered = _SIGN_BLANK.sub("", text).translate(_LOWERED)
    lone = _ALL_LOWERED.fullmatch(lowered) and not _SEVERAL_LETTERS.search(text)
    if lone or not any(map(str.isalnum, text)):
        return lowered
    if match := _NUMBER_AND_WORD.fullmatch(text):
        return match[1].translate(_LOWERED) + match[2]
    return _marked("_", text, touching)


def resolve_scripts(text: str) -> str:
    """Write all scripts between SUP or SUB and END on the line, inner ones first."""
    while END in text:
        text = _SCRIPT.sub(_resolved, text)
    return text


def _resolved(match: re.Match[str]) -> str:
    mark, before, script = match.groups()
    after = " " if script != script.rstrip() else ""
    following = after or match.string[match.end() : match.end() + 1]
    return (" " if before else "") + (superscript if mark == SUP else subscript)(script, following) + after


def _marked(mark: str, text: str, touching: bool) -> str:
    return f"{mark}({text})" if touching or not _WORD.fullmatch(text) else f"{mark}{text}"
