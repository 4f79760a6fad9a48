"""Conversion of MathML to one line of plain text: `1/2`, `x²`, `√(a+b)`, `V_max`.

Adjacent numbers are kept apart. Of a `semantics` element the presentation is converted, or, if that is empty,
the TeX annotation.
"""

import re
from typing import TYPE_CHECKING

from meditron.sources.scripts import END, SUB, SUP

if TYPE_CHECKING:
    from lxml import etree

__all__ = ["math_text"]

_INVISIBLE = str.maketrans({"\u2061": " ", "\u2062": "", "\u2063": ",", "\u2064": " "})
# A number or a word with its superscripts and subscripts, which needs no parentheses as an operand.
_OPERAND = re.compile(
    f"(?:[0-9]+(?:[.,][0-9]+)?|[^\\W\\d_]+|.)(?:[{SUP}{SUB}][^{SUP}{SUB}{END}]*{END})*", re.DOTALL
)
_ACCENTS = frozenset("¯^~˙→‾ˉ′″\u0302\u0304*")


def math_text(element: "etree._Element") -> str:
    """Return the text of a `math` element, with marks for superscripts and subscripts (see `scripts`)."""
    return " ".join(_element_text(element).split())


def _join_pieces(pieces: list[str]) -> str:
    """Join pieces of text, with a blank between adjacent numbers and between adjacent words."""
    joined_pieces: list[str] = []
    last = ""
    for piece in filter(None, pieces):
        words = last[-1:].isalpha() and piece[0].isalpha() and len(last) + len(piece) > 2
        if words or (last[-1:].isdigit() and piece[0].isdigit()):
            joined_pieces.append(" ")
        joined_pieces.append(piece)
        last = piece
    return "".join(joined_pieces)


def _element_text(element: "etree._Element") -> str:
    name = _local_name(element)
    if name in {"mi", "mn", "mo", "mtext", "ms"}:
        return _token_text(element)
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
    parts = [_element_text(child) for child in element]
    match name, parts:
        case "mfrac", [above, below]:
            return f"{_parenthesize_operand(above)}/{_parenthesize_operand(below)}"
        case "msqrt", _:
            return f"√{_parenthesize_operand(_join_pieces(parts))}"
        case "mroot", [base, index]:
            return f"{SUP}{index}{END}√{_parenthesize_operand(base)}"
        case "msup" | "mover", [base, above]:
            return (
                f"{base}{above}" if above in _ACCENTS else f"{_parenthesize_operand(base)}{SUP}{above}{END}"
            )
        case "msub" | "munder", [base, below]:
            return f"{base}{SUB}{below}{END}"
        case "msubsup" | "munderover", [base, below, above]:
            return f"{base}{SUB}{below}{END}{SUP}{above}{END}"
        case "mmultiscripts", [base, *_]:
            return _render_multiscripts(element, base)
        case "mfenced", _:
            return _render_fenced(element, parts)
        case "mtr" | "mlabeledtr", _:
            return ", ".join(part for part in parts if part)
        case "mtable", _:
            return "; ".join(part for part in parts if part)
        case "semantics", [first, *_]:
            return first or _tex_annotation(element)
        case _:
            return _join_pieces([(element.text or "").strip(), *_interleave_tails(element, parts)])


def _interleave_tails(element: "etree._Element", parts: list[str]) -> list[str]:
    """Return the children's texts and the text between the children, which is invalid but occurs in files."""
    return [piece for part, child in zip(parts, element, strict=True) for piece in (part, child.tail or "")]


def _token_text(element: "etree._Element") -> str:
    text = " ".join("".join(map(str, element.itertext())).split())
    return text.translate(_INVISIBLE)


def _tex_annotation(element: "etree._Element") -> str:
    for child in element:
        if _local_name(child) == "annotation" and "tex" in child.get("encoding", "").lower():
            return _token_text(child)
    return ""


def _render_fenced(element: "etree._Element", parts: list[str]) -> str:
    separators = "".join(element.get("separators", ",").split())
    text = ""
    for number, part in enumerate(parts):
        if number and separators:
            text += separators[min(number, len(separators)) - 1]
        text = _join_pieces([text, part])
    return f"{element.get('open', '(')}{text}{element.get('close', ')')}"


def _render_multiscripts(element: "etree._Element", base: str) -> str:
    prescripts: list[str] = []
    postscripts: list[str] = []
    scripts = postscripts
    for child in element[1:]:
        if _local_name(child) == "mprescripts":
            scripts = prescripts
        else:
            scripts.append(_element_text(child))

    def render_sub_and_sup_pairs(texts: list[str]) -> str:
        marks = (SUB, SUP)
        return "".join(f"{marks[number % 2]}{text}{END}" for number, text in enumerate(texts) if text)

    return f"{render_sub_and_sup_pairs(prescripts)}{base}{render_sub_and_sup_pairs(postscripts)}"


def _parenthesize_operand(text: str) -> str:
    """Put parentheses around an operand of a power, fraction or root unless it is a single number or word."""
    inner = text[1:-1]
    closed = text[:1] == "(" and text[-1:] == ")" and "(" not in inner and ")" not in inner
    return text if closed or _OPERAND.fullmatch(text) else f"({text})"


def _local_name(element: "etree._Element") -> str:
    return str(element.tag).rpartition("}")[2]
