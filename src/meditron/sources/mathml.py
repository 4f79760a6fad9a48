"""Conversion of MathML to one line of plain text: `1/2`, `x²`, `√(a+b)`, `V_max`; numbers never fuse.

Of a `semantics` element the presentation is read, else the TeX annotation, never both.
"""

import re
from typing import TYPE_CHECKING

from meditron.sources.scripts import END, SUB, SUP

if TYPE_CHECKING:
    from lxml import etree

__all__ = ["math_text"]

_INVISIBLE = str.maketrans({"\u2061": " ", "\u2062": "", "\u2063": ",", "\u2064": " "})
# A number or a word, with its scripts: needs no parentheses as an operand.
_OPERAND = re.compile(
    f"(?:[0-9]+(?:[.,][0-9]+)?|[^\\W\\d_]+|.)(?:[{SUP}{SUB}][^{SUP}{SUB}{END}]*{END})*", re.DOTALL
)
_ACCENTS = frozenset("¯^~˙→‾ˉ′″\u0302\u0304*")


def math_text(element: "etree._Element") -> str:
    """Return the text of a `math` element, with scripts between the marks of `scripts.resolve_scripts`."""
    return " ".join(_text(element).split())


def _join(pieces: list[str]) -> str:
    """Join pieces, with a blank between two numbers or two words that would fuse."""
    joined: list[str] = []
    last = ""
    for piece in filter(None, pieces):
        words = last[-1:].isalpha() and piece[0].isalpha() and len(last) + len(piece) > 2
        if words or (last[-1:].isdigit() and piece[0].isdigit()):
            joined.append(" ")
        joined.append(piece)
        last = piece
    return "".join(joined)


def _text(element: "etree._Element") -> str:
    name = _name(element)
    if name in {"mi", "mn", "mo", "mtext", "ms"}:
        return _token(element)
    if name in {
        "annotation",
        "annotation-xml",
        "mphantom",
        "none",
        "mprescripts",
        "maligngroup",
        "malignmark",
    }:
        return ""
    if name == "mspace":
        return " "
    parts = [_text(child) for child in element]
    match name, parts:
        case "mfrac", [above, below]:
            return f"{_operand(above)}/{_operand(below)}"
        case "msqrt", _:
            return f"√{_operand(_join(parts))}"
        case "mroot", [base, index]:
            return f"{SUP}{index}{END}√{_operand(base)}"
        case "msup" | "mover", [base, above]:
            return f"{base}{above}" if above in _ACCENTS else f"{_operand(base)}{SUP}{above}{END}"
        case "msub" | "munder", [base, below]:
            return f"{base}{SUB}{below}{END}"
        case "msubsup" | "munderover", [base, below, above]:
            return f"{base}{SUB}{below}{END}{SUP}{above}{END}"
        case "mmultiscripts", [base, *_]:
            return _multiscripts(element, base)
        case "mfenced", _:
            return _fenced(element, parts)
        case "mtr" | "mlabeledtr", _:
            return ", ".join(part for part in parts if part)
        case "mtable", _:
            return "; ".join(part for part in parts if part)
        case "semantics", [first, *_]:
            return first or _annotation(element)
        case _:
            return _join([(element.text or "").strip(), *_with_tails(element, parts)])


def _with_tails(element: "etree._Element", parts: list[str]) -> list[str]:
    """Return the parts and the text between them, which MathML does not allow but real files have."""
    return [piece for part, child in zip(parts, element, strict=True) for piece in (part, child.tail or "")]


def _token(element: "etree._Element") -> str:
    text = " ".join("".join(map(str, element.itertext())).split())
    return text.translate(_INVISIBLE)


def _annotation(element: "etree._Element") -> str:
    for child in element:
        if _name(child) == "annotation" and "tex" in child.get("encoding", "").lower():
            return _token(child)
    return ""


def _fenced(element: "etree._Element", parts: list[str]) -> str:
    separators = "".join(element.get("separators", ",").split())
    text = ""
    for number, part in enumerate(parts):
        if number and separators:
            text += separators[min(number, len(separators)) - 1]
        text = _join([text, part])
    return f"{element.get('open', '(')}{text}{element.get('close', ')')}"


def _multiscripts(element: "etree._Element", base: str) -> str:
    before: list[str] = []
    after: list[str] = []
    scripts = after
    for child in element[1:]:
        if _name(child) == "mprescripts":
            scripts = before
        else:
            scripts.append(_text(child))

    def pairs(texts: list[str]) -> str:
        marks = (SUB, SUP)
        return "".join(f"{marks[number % 2]}{text}{END}" for number, text in enumerate(texts) if text)

    return f"{pairs(before)}{base}{pairs(after)}"


def _operand(text: str) -> str:
    """Put parentheses around an expression if otherwise only its last part would be raised or divided."""
    inner = text[1:-1]
    closed = text[:1] == "(" and text[-1:] == ")" and "(" not in inner and ")" not in inner
    return text if closed or _OPERAND.fullmatch(text) else f"({text})"


def _name(element: "etree._Element") -> str:
    return str(element.tag).rpartition("}")[2]
