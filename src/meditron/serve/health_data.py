"""Warning about personal health data before a text is sent to a model and stored.

Two things are found: information that identifies a person (the patterns of `text.personal_patterns`, dates
of care, ages over 89, as in the HIPAA list of identifiers), and statements about the writer's own or a
relative's health. A vignette of an exam question (`A 54-year-old man presents with …`) is neither.
"""

import re
from dataclasses import dataclass

from meditron.text.personal_patterns import find_personal_information

__all__ = ["HealthDataSpan", "find_health_data"]

_NAMES = {
    "email": "an e-mail address",
    "national_id": "a national identification number",
    "record_number": "a record number",
    "iban": "a bank account",
    "payment_card": "a payment card",
    "phone": "a telephone number",
    "ip_address": "an IP address",
    "street_address": "a street address",
    "birth_date": "a date of birth",
    "name": "a person's name",
}
_MONTHS = "jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec"
_DATE = (
    r"(?:(?:19|20)\d\d[-/.]\d{1,2}[-/.]\d{1,2}|\d{1,2}[-/.]\d{1,2}[-/.](?:19|20)?\d\d"
    rf"|\d{{1,2}}(?:st|nd|rd|th)? (?:{_MONTHS})[a-z]{{0,6}}\.?,? (?:19|20)\d\d"
    rf"|(?:{_MONTHS})[a-z]{{0,6}}\.? \d{{1,2}}(?:st|nd|rd|th)?,? (?:19|20)\d\d)\b"
)
_RELATIVE = (
    r"(?:mother|father|mum|mom|dad|son|daughter|child|baby|wife|husband|partner|brother|sister|"
    r"grand(?:mother|father|ma|pa)|aunt|uncle|friend|patient)"
)
_CONDITION = (
    r"(?:diagnos\w+|cancer|tumou?r|diabet\w+|asthma|hiv|hepatitis|depress\w+|epilep\w+|seizures?|stroke|"
    r"heart (?:attack|failure|disease)|pregnan\w+|miscarriage|surgery|operat(?:ed|ion)|chemotherapy|biopsy|"
    r"fever|pain|rash|bleeding|cough|symptoms?|infection|allerg\w+|medication|tablets?|prescribed|dose|"
    r"blood (?:pressure|sugar|test)|hypertension|treated|therapy)"
)
# Words between `I` and the condition. With any other words `I study diabetes` would be found.
_FIRST_PERSON = (
    r"(?:have|had|am|was|been|got|get|take|took|taking|feel|felt|suffer(?:ed|ing)?|experienc(?:ed|ing)|having|"
    r"a|an|some|the|my|on|with|from|also|now|just|still|recently|severe|mild|bad|strong|chronic|type|1|2|"
    r"high|low|chest|back|abdominal|joint|breast|lung|prostate|skin|knee|heart)"
)
_STATEMENTS = (
    ("a date of care", rf"\b(?:admitted|discharged|seen|examined|operated|biopsied|died|visit(?:ed)?)\b"
     rf"[^.\n]{{0,40}}?\b(?P<v>{_DATE})"),
    ("an age over 89", r"(?P<v>\b(?:9\d|1[01]\d)[- ]years?[- ](?:old|of age)\b)"),
    ("your own health", rf"(?P<v>\bI(?:['’](?:ve|m))?(?: {_FIRST_PERSON}){{1,6}} {_CONDITION}\b)"),
    ("your own health", rf"(?P<v>\bI['’](?:ve|m) {_CONDITION}\b)"),
    ("your own health", rf"(?P<v>\bmy (?!{_RELATIVE}\b)(?:\w+ )?"
     rf"(?:{_CONDITION}|doctor|hba1c|results?|mri|ct|scan)\b)"),
    ("another person's health", rf"(?P<v>\b(?:my|our) {_RELATIVE}\b[^.\n]{{0,80}}?\b{_CONDITION}\b)"),
)  # fmt: skip
_PATTERNS = tuple((name, re.compile(pattern, re.IGNORECASE)) for name, pattern in _STATEMENTS)


@dataclass(frozen=True, slots=True)
class HealthDataSpan:
    """A part of a text that looks like personal health data."""

    kind: str
    """What it looks like, in words: `a record number`."""
    text: str


def find_health_data(text: str) -> list[HealthDataSpan]:
    """Return the parts of a text that look like personal health data, in order, each kind once."""
    found = [(s.start, _NAMES[s.kind], text[s.start : s.end]) for s in find_personal_information(text)]
    for name, pattern in _PATTERNS:
        found += [(m.start("v"), name, m["v"]) for m in pattern.finditer(text)]
    first: dict[str, HealthDataSpan] = {}
    for _, kind, part in sorted(found):
        first.setdefault(kind, HealthDataSpan(kind, part))
    return list(first.values())
