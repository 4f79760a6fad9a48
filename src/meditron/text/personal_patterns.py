"""Detection of personal information in text, by patterns and checksums. Precision goes before recall.

Medical text is full of numbers that look personal: PubMed ids, trial registrations, ISBNs, grants, doses,
enzyme classes, versions. A number therefore counts only if a label (`MRN`, `Tel.`), a checksum (IBAN, payment
card, NHS number) or a form that nothing else has (`+41 21 693 11 11`) says what it is. Names are found only
after a label (`Patient: Jane Doe`): a name alone is mostly an author, an eponym or a drug company.
"""

import re
from collections.abc import Callable, Iterator
from typing import NamedTuple

from meditron.text.personal_checks import (
    is_distinct_ipv4,
    is_ean13,
    is_iban,
    is_international_phone,
    is_ip,
    is_luhn,
    is_name,
    is_nhs_number,
    is_phone,
    is_record_number,
)

__all__ = ["KINDS", "PersonalSpan", "find_personal_information"]

KINDS = (
    "email",
    "national_id",
    "record_number",
    "iban",
    "payment_card",
    "phone",
    "ip_address",
    "street_address",
    "birth_date",
    "name",
)
"""Kinds of personal information, in the order in which overlapping spans are resolved."""


class PersonalSpan(NamedTuple):
    """The position of personal information in a text."""

    start: int
    end: int
    kind: str


Check = Callable[[str], bool]


class _Rule(NamedTuple):
    """A pattern whose group `v` is the personal information, and the places at which it is tried.

    Python finds a fixed string fifty times as fast as it tries a pattern everywhere.
    """

    kind: str
    keywords: tuple[str, ...]
    """Strings in lower case, where the pattern begins; or `_NUMBERS`, `_POSTCODES` or `_ANYWHERE`."""
    pattern: re.Pattern[str]
    check: Check = bool
    """Returns True if the value is what it looks like."""
    before: int = 0
    """Maximum number of characters between the beginning of the value and the keyword, if it is inside."""


_ANYWHERE = ()
_NUMBERS = ("long numbers",)
_POSTCODES = ("postcodes",)
# Both begin with a character class, which Python searches faster than an alternative or a look-behind.
_LONG_NUMBER = re.compile(r"\d[\d. -]{9,}")
_POSTCODE = re.compile(r"[A-Z](?:[A-Z],? \d{5}|[A-Z]?\d[A-Z\d]? \d[A-Z]{2})\b")
_WINDOW = 160  # characters after a keyword in which a value that contains it ends


def find_personal_information(text: str) -> list[PersonalSpan]:
    """Return the spans of personal information in a text, in order and without overlaps."""
    lower = text.lower()
    if len(lower) != len(text):  # only U+0130 has a longer lower case
        lower = text.replace("\u0130", "I").lower()
    places: dict[tuple[str, ...], list[tuple[int, int]]] = {
        _NUMBERS: [match.span() for match in _LONG_NUMBER.finditer(text)],
        _POSTCODES: [match.span() for match in _POSTCODE.finditer(text)],
    }
    spans = [
        PersonalSpan(*match.span("v"), rule.kind)
        for rule in _RULES
        for match in _matches(rule, text, lower, places)
        if rule.check(match["v"])
    ]
    order = {kind: number for number, kind in enumerate(KINDS)}
    spans.sort(key=lambda span: (span.start, order[span.kind], -span.end))
    result: list[PersonalSpan] = []
    for span in spans:
        if not result or span.start >= result[-1].end:
            result.append(span)
    return result


def _matches(
    rule: _Rule, text: str, lower: str, places: dict[tuple[str, ...], list[tuple[int, int]]]
) -> Iterator[re.Match[str]]:
    """Yield the matches of a rule's pattern; `places` are the spans of long numbers and of postcodes."""
    if rule.keywords is _ANYWHERE:
        yield from rule.pattern.finditer(text)
        return
    if rule.keywords in places:
        for start, end in places[rule.keywords]:
            # The pattern looks at what follows, at most at a unit.
            yield from rule.pattern.finditer(text, max(0, start - rule.before), min(len(text), end + 12))
        return
    for keyword in rule.keywords:
        start = end = 0
        at = lower.find(keyword)
        while at >= 0:
            if rule.before:
                # Overlapping windows are searched as one: a text of nothing but `@` would take minutes.
                if at - rule.before > end:
                    yield from rule.pattern.finditer(text, start, end)
                    start = at - rule.before
                end = at + _WINDOW
            elif match := rule.pattern.match(text, at):
                yield match
            at = lower.find(keyword, at + len(keyword))
        yield from rule.pattern.finditer(text, start, end)


def _pattern(text: str, flags: int = re.IGNORECASE) -> re.Pattern[str]:
    return re.compile(text, flags)


_LABEL_END = r"(?:\s*(?:number|num|no|nr|id|#)\b)?[\s:.#=]*(?:(?:is|was|at)\s+)?"
_PHONE_NUMBER = r"(?P<v>\+?\(?\d(?:[ ().\-–/]{0,2}\d){6,14}+)(?![\d%]|[.,]\d)"
# What follows a number that is an amount, and not a number to call.
_NO_UNIT = r"(?!\s*(?:mg|g|kg|ng|µg|μg|ml|l|cells?|bp|kb|nm|mm|cm|hz|units?|iu|patients?|%)\b)"
_DAY = r"(?:0?[1-9]|[12]\d|3[01])"
_MONTH = r"(?:0?[1-9]|1[0-2])"
_YEAR = r"(?:1[89]|20)\d\d"
_MONTH_NAME = (
    r"(?:jan(?:uary)?|feb(?:ruary)?|mar(?:ch)?|apr(?:il)?|may|june?|july?|aug(?:ust)?|sept?(?:ember)?|"
    r"oct(?:ober)?|nov(?:ember)?|dec(?:ember)?)\.?"
)
_DATE = (
    rf"(?P<v>{_YEAR}[-/.]{_MONTH}[-/.]{_DAY}|{_DAY}[-/. ]{_MONTH}[-/. ](?:{_YEAR}|\d\d)\b|"
    rf"{_MONTH}[-/.]{_DAY}[-/.](?:{_YEAR}|\d\d)\b|{_DAY}(?:st|nd|rd|th)?[- ]"
    rf"(?:of )?{_MONTH_NAME},?[- ]{_YEAR}|"
    rf"{_MONTH_NAME} {_DAY}(?:st|nd|rd|th)?,? {_YEAR})(?!\d)"
)
_NAME_WORD = r"[A-Z](?:[a-zà-öø-ÿ]+(?:[-'’][A-Z]?[a-zà-öø-ÿ]+)*|['’][A-Z][a-zà-öø-ÿ]+|\.)"
_CAPITALS = r"[A-Z]{2,}(?:[-'’][A-Z]+)*"
_TITLE = r"(?:(?:Mr|Mrs|Ms|Miss|Dr)\.? )?"
_STREET = (
    r"(?:(?:Street|Avenue|Road|Boulevard|Lane|Drive|Court|Place|Square|Terrace|Way|Close|Crescent|Parkway"
    r"|Highway)\b"
    r"|(?:St|Ave|Rd|Blvd|Ln|Dr|Ct|Pl|Sq|Pkwy|Hwy)\b\.?)"
)
_STREET_NAME = r"(?:[NSEW]{1,2}\.? )?(?:[A-Z0-9][\w'’.-]* ){1,4}?"
_TOP_DOMAIN = (
    r"(?:com|org|net|edu|gov|mil|int|info|biz|name|health|clinic|hospital|care|science|online|email|doctor|"
    r"university|academy|institute|foundation|[a-z]{2})"
)

_RULES: tuple[_Rule, ...] = (
    _Rule(
        "email",
        ("@", "＠", "[at]", "(at)", " dot "),
        _pattern(
            r"(?<![\w.%+@-])(?P<v>[^\W_](?:[\w.%+'-]{0,62}[\w%+-])?\s?(?:[@＠]|\[at\]|\(at\)|\s+at\s+"
            r"(?=[\w-]+\s+dot\s))\s?"
            rf"[^\W_](?:[^\W_]|-){{0,62}}(?:(?:\.|\s?(?:\[dot\]|\(dot\)"
            rf"|\sdot\s)\s?)(?:[^\W_]|-){{1,63}}){{0,5}}?"
            rf"(?:\.|\s?(?:\[dot\]|\(dot\)|\sdot\s)\s?){_TOP_DOMAIN})(?![\w-]|\.\w|@)"
        ),
        before=70,
    ),
    _Rule(
        "phone",
        ("phone", "telephone", "tel", "fax", "pager", "mobile", "cell phone", "cellphone", "cell:"),
        _pattern(
            r"(?<![a-z])(?:(?:tele)?phone|tel|(?:tele)?fax|pager|mobile(?=\s*(?:phone|number|no\b|:))|"
            r"cell(?=\s*phone|\s*:\s*[+(]?\d{3}\D\d))(?:\s*phone|/fax|/tel)?"
            + _LABEL_END
            + r"(?:\((?=\+))?"
            + _PHONE_NUMBER
        ),
        is_phone,
    ),
    _Rule(
        "phone",
        ("+",),
        _pattern(
            r"(?<![\w+\-.)*/])(?P<v>\+(?:[1-9]\d{0,2}[ .-]\d{1,5}(?:[ .-]\d{2,8}){1,4}"
            r"|[1-9]\d{0,2}[ .-]?\(0?\d{1,4}\)(?:[ .-]\d{2,8}){1,4}"
            r"|[1-9]\d{8,14}|"
            r"[1-9]\d{0,2} [1-9]\d{6,11}))(?![\d\w%]|[.,-]\d| ?[×x*/+±])"
            + _NO_UNIT
        ),
        is_international_phone,
    ),
    _Rule(
        "phone",
        ("(",),
        _pattern(r"(?<![\w)])(?P<v>\([2-9]\d\d\)[ -]?[2-9]\d\d[-. ]\d{4})(?![\d\w%-]|[.,]\d)" + _NO_UNIT),
    ),
    _Rule(
        "phone",
        _NUMBERS,
        _pattern(
            r"(?<![\w.+/–−-])(?<!no\. )(?<!no\.)(?<!lot )(?<!nct)(?<!id )(?<!id: )(?<!grant )(?<!number )"
            r"(?<!# )(?<!#)"
            r"(?<!cat )(?<!ref )(?<!code )(?<!protocol )(?<!study )(?<!trial )(?<!sn )"
            r"(?P<v>(?:1[- ])?[2-9]\d\d([-.])[2-9](?!11)\d\d\2\d{4})(?![\d\w%–-]|[.,]\d)"
            + _NO_UNIT
        ),
    ),
    _Rule(
        "national_id",
        _NUMBERS,
        _pattern(
            r"(?<![\w.+/–−-])(?<!(?-i:[A-Z]{2} ))(?<!no\. )(?<!no\.)(?<!lot )(?<!id )(?<!grant )"
            r"(?<!protocol )"
            r"(?<!trial )"
            r"(?<!compound )(?<!cas )(?<!study )(?<!catalog )(?<!number )(?<!code )"
            r"(?P<v>(?!000|666|9)\d{3}-(?!00)\d\d-(?!0000)\d{4})(?![\d\w%–-]|[.,]\d)"
        ),
    ),
    _Rule(
        "national_id",
        ("ssn", "social security"),
        _pattern(
            r"(?<![a-z])(?:ssn|social security)(?:\s*(?:number|no|#)\b)?[\s:.#=]*(?:(?:is|was)\s+)?"
            r"(?P<v>(?!000|666|9)\d{3}[- ]?(?!00)\d\d[- ]?(?!0000)\d{4})(?![\d\w-])"
        ),
    ),
    _Rule(
        "national_id",
        ("nhs",),
        _pattern(r"(?<![a-z])nhs" + _LABEL_END + r"(?P<v>\d{3}[- ]?\d{3}[- ]?\d{4})(?![\d\w-])"),
        is_nhs_number,
    ),
    _Rule("national_id", ("756.",), _pattern(r"(?<![\w.])(?P<v>756\.\d{4}\.\d{4}\.\d\d)(?![\w.])"), is_ean13),
    _Rule(
        "record_number",
        (
            *("mrn", "medical record", "health record", "hospital number", "hospital no", "patient id"),
            *("patient number", "patient no", "chart number", "chart no", "case file"),
        ),
        _pattern(
            r"(?<![a-z])(?:mrn|(?:medical|health) record|hospital|patient|chart|case file)"
            # Bounded repetitions: others take quadratic time for `###…` and `MRN-MRN-…`.
            r"(?:\s*(?:number|num|no|nr|id|identifier|identification number|#)"
            r"(?![a-z])\.?){0,8}\s?(?:\(mrn\))?[\s:.#=]*(?:(?:is|was)\s+)?"
            r"(?P<v>(?=[A-Z0-9-]{0,100}\d{4})(?:[A-Z]{1,3}-?)?\d[\d-]{4,14}(?:[A-Z]\b)?)(?![\d\w%]|[.,]\d|\s*"
            r"(?:patients|subjects|cases|records)\b)"
        ),
        is_record_number,
    ),
    _Rule(
        "iban",
        _ANYWHERE,
        _pattern(
            # A character class first, which Python searches faster than a look-behind.
            r"(?P<v>[A-Z](?<![\w-].)[A-Z]\d{2}(?:[ -]?[A-Z0-9]{4}){2,7}(?:[ -]?[A-Z0-9]{1,3})?)(?![\w-])",
            re.ASCII,
        ),
        is_iban,
    ),
    _Rule(
        "payment_card",
        _NUMBERS,
        _pattern(
            r"(?<![\w.+/-])(?P<v>(?:4\d{3}|5[1-5]\d\d|2[2-7]\d\d|6011|65\d\d)([ -])\d{4}\2\d{4}\2\d{4}|"
            r"3[47]\d\d([ -])\d{6}\3\d{5})(?![\d\w-]|[.,]\d)"
        ),
        is_luhn,
    ),
    _Rule(
        "payment_card",
        (
            *("visa", "mastercard", "amex", "american express"),
            *("credit card", "debit card", "card number", "card no"),
        ),
        _pattern(
            r"(?<![a-z])(?:visa|mastercard|amex|american express|(?:credit |debit )?card)(?: card)?"
            + _LABEL_END
            + r"(?:ending\s)?(?P<v>\d(?:[ -]?\d){12,18})(?![\d\w])"
        ),
        is_luhn,
    ),
    _Rule(
        "ip_address",
        ("ip", "host", "server", "http://", "https://", "ssh", "ping"),
        _pattern(
            r"(?<![a-z])(?:ip(?:v[46])?(?:[ -]?addr(?:ess)?)?|host|server|https?://|ssh|ping)[\s:=(]*(?:"
            r"(?:is|was|at)\s+)?"
            r"(?P<v>(?:\d{1,3}\.){3}\d{1,3}(?![\d\w]|\.\d)|(?:[0-9a-f]{1,4}:){2,7}(?::?[0-9a-f]{1,4}){1,5}"
            r"(?![\w:]))"
        ),
        is_ip,
    ),
    _Rule(
        "ip_address",
        _NUMBERS,
        _pattern(
            r"(?<![\w.:/–−-])(?<!version )(?<!ec )(?<!v\. )(?P<v>(?:\d{1,3}\.){3}\d{1,3})(?![\d\w–-]|\.\d)"
        ),
        is_distinct_ipv4,
    ),
    _Rule(
        "street_address",
        _POSTCODES,
        # A house number, a street and a postcode: a street alone may be the name of a study or a hospital.
        re.compile(
            rf"(?<![\w.,/-])(?P<v>\d{{1,5}}[A-Za-z]? {_STREET_NAME}{_STREET}"
            r"(?:,? (?:Apt|Apartment|Suite|Ste|Unit|Floor|Flat|Room|Rm|#)\.? ?#?\w{1,5})?,? "
            r"(?:[A-Z][\w'’.-]+,? ){1,4}(?:[A-Z]{2},? \d{5}(?:-\d{4})?|[A-Z]{1,2}\d[A-Z\d]? \d[A-Z]{2}))"
            r"(?!\w)"
        ),
        before=120,
    ),
    _Rule(
        "street_address",
        ("address", "lives at", "living at", "residing at", "resides at"),
        re.compile(
            r"(?<![A-Za-z])(?:[Aa]ddress|ADDRESS|[Ll]iv(?:es|ing) at|[Rr]esid(?:es|ing) at)[\s:]*(?:(?:is"
            r"|was)\s+)?"
            rf"(?P<v>\d{{1,5}}[A-Za-z]? {_STREET_NAME}{_STREET}(?:,? [A-Z][\w'’.-]+)*|[A-Z][a-zß-ü]+"
            rf"(?:strasse|straße|str\.|weg|gasse|platz) \d{{1,4}}[a-z]?"
            r"(?:, \d{4,5} [A-Z]\w+)?|\d{1,4},? (?:rue|avenue|boulevard|place|chemin) (?:de |du |des "
            r"|de la |d['’])?[A-Z]\w+(?:,? \d{4,5} [A-Z]\w+)?)"
        ),
    ),
    _Rule(
        "birth_date",
        (
            *("dob", "d.o.b", "date of birth", "birth date", "birthdate", "birthday", "b.d."),
            *("patient was born", "patient born", "patient, born"),
        ),
        _pattern(
            r"(?<![a-z])(?:dob|d\.o\.b\.?|date of birth|birth ?date|birthday|b\.d\.|patient,? (?:was )?born)"
            r"(?: \(dob\))?[\s:=]*(?:(?:is|was|on|of)\s+)*" + _DATE
        ),
    ),
    _Rule(
        "name",
        (
            *("patient name", "patient's name", "patient’s name", "patient full name", "pt name"),
            *("name of patient", "name of the patient"),
        ),
        re.compile(
            r"(?<![A-Za-z])(?i:(?:patient(?:['’]s)?(?: full)?|pt) name|name of (?:the )?patient)"
            rf"(?i:\s*(?:[:=]|\b(?:is|was)\b))\s*{_TITLE}(?P<v>{_NAME_WORD}(?:,? {_NAME_WORD}){{1,3}}"
            rf"|{_CAPITALS}(?:,? {_CAPITALS}){{1,3}})(?!\w)"
        ),
        is_name,
    ),
    _Rule(
        "name",
        ("patient:", "next of kin", "emergency contact"),
        re.compile(
            # A colon after "the pediatric patient" in a title is followed by a subtitle, not by a name.
            r"(?<![A-Za-z])(?i:(?<![a-z] )patient|next of kin|emergency contact)\s*:\s*"
            rf"{_TITLE}(?P<v>{_NAME_WORD}(?:,? {_NAME_WORD}){{1,3}})(?!\w)"
        ),
        is_name,
    ),
    _Rule(
        "name",
        ("name:", "full name:"),
        re.compile(
            rf"^(?i:(?:full )?name):\s*(?P<v>{_NAME_WORD}(?:,? {_NAME_WORD}){{1,3}})"
            r"(?=\s*$|\s*[,;(]|\s+(?:DOB|MRN|Age|Sex)\b)",
            re.MULTILINE,
        ),
        is_name,
    ),
)  # fmt: skip
