"""Headings, labels and list marks in JATS."""

import re
from typing import TYPE_CHECKING

from meditron.sources.numerals import roman_numeral

if TYPE_CHECKING:
    from lxml import etree

__all__ = ["FUNDING_TYPES", "is_funding", "item_mark", "join_label", "section_category", "tidy_heading"]

_ENDS_WITH_SIGN = (".", ":", ",", ";", "?", "!", "-", "\u2013", "\u2014")
# NLM's categories of the section types in JATS; a section of several types (`materials|methods`) has the
# category of the first.
_CATEGORIES = {
    **dict.fromkeys(("intro", "introduction", "background"), "BACKGROUND"),
    **dict.fromkeys(("objective", "objectives", "aim", "aims", "purpose"), "OBJECTIVE"),
    **dict.fromkeys(("methods", "method", "materials", "subjects", "materials and methods"), "METHODS"),
    **dict.fromkeys(("results", "result", "findings"), "RESULTS"),
    **dict.fromkeys(("conclusions", "conclusion"), "CONCLUSIONS"),
}
FUNDING_TYPES = frozenset(
    {"funding", "funding-information", "funding-statement", "financial-disclosure", "supported-by"}
)
"""Types of sections, notes and footnotes that are about funding."""
_MONEY = (
    r"(?:fund(?:ing|ings|s)|financing|grants?|(?:financial |research |study |grant )?support|"
    r"financial disclosures?)"
)
_FUNDING = re.compile(
    rf"(?:[0-9.]+ )?(?:(?:sources?|statements?) of )?(?:research |study |project )?{_MONEY}"
    rf"(?:(?: and |/| & ){_MONEY})?"
    r"(?: (?:sources?|statements?|information|support|details|disclosures?|acknowledge?ments?|bod(?:y|ies)))?"
    r"[.:]?",
    re.IGNORECASE,
)


def tidy_heading(heading: str) -> str:
    """Remove the sign at the end of a heading that is printed in the line of its text: `Methods:`."""
    return heading.rstrip(" .:") or heading.strip()


def section_category(element: "etree._Element") -> str | None:
    """Return NLM's category of a section, by its `sec-type`; None if it states none."""
    kind = element.get("sec-type")
    return _CATEGORIES.get(kind.partition("|")[0].strip().lower()) if kind else None


def is_funding(element: "etree._Element", heading: str) -> bool:
    """Return True for a section about funding alone, by its type or its heading."""
    kinds = {element.get("sec-type"), element.get("notes-type"), element.get("content-type")}
    return not kinds.isdisjoint(FUNDING_TYPES) or _FUNDING.fullmatch(heading) is not None


def join_label(label: str, text: str, separator: str) -> str:
    """Put a label before a text, with a separator unless the label ends with a sign."""
    return f"{label} {text}" if label.endswith(_ENDS_WITH_SIGN) else f"{label}{separator}{text}"


def item_mark(kind: str, number: int) -> str:
    """Return the mark of an item in a list without labels: `-`, `2.`, `b.`, `ii.`, or nothing."""
    if kind == "simple":
        return ""
    if kind.startswith("alpha") and number <= 26:
        mark = chr(ord("a") + number - 1)
    elif kind.startswith("roman"):
        mark = roman_numeral(number)
    elif kind == "order" or kind.startswith(("alpha", "roman")):
        mark = str(number)
    else:
        return "-"
    return f"{mark.upper() if kind.endswith('upper') else mark}."
