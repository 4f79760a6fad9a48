"""Dates of documents, in ISO 8601 and only as precise as they are known: `2023`, `2023-08`, `2023-08-14`."""

import re
from calendar import monthrange
from datetime import date

__all__ = ["earliest_day", "iso_date", "latest_day", "leading_year", "parse_iso_date", "parse_journal_date"]

_ISO = re.compile(r"([0-9]{4})(?:-([0-9]{2})(?:-([0-9]{2})(?:[T ].*)?)?)?")
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_WRITTEN = re.compile(
    r"((?:1[6-9]|20)[0-9]{2})(?:[-/](0?[1-9]|1[0-2])(?:[-/](0?[1-9]|[12][0-9]|3[01]))?)?(?![0-9/-])"
)
_YEAR = re.compile(r"\b[12][0-9]{3}\b")
_LEADING_YEAR = re.compile("(?:1[5-9]|20)[0-9]{2}(?![0-9])")
_AFTER_YEAR = re.compile(r"[ /-]*([A-Za-z]{3})[a-z]*\.?(?: ([0-9]{1,2}))?(?![0-9A-Za-z])")
_SECOND_DAY = re.compile(r"[ /-]*([0-9]{1,2})(?![0-9])")


def latest_day(text: str) -> date | None:
    """Return the last day that an ISO date may mean (2023-12-31 for `2023`); None if the text is no date."""
    match = _ISO.fullmatch(text.strip())
    if match is None:
        return None
    year, month = int(match[1]), int(match[2] or 12)
    try:
        return date(year, month, int(match[3]) if match[3] else monthrange(year, month)[1])
    except ValueError:  # a month 13, a 30th of February
        return None


def earliest_day(text: str) -> date | None:
    """Return the first day that an ISO date may mean (2023-01-01 for `2023`); None if the text is no date."""
    last, match = latest_day(text), _ISO.fullmatch(text.strip())
    if last is None or match is None:
        return None
    return last.replace(month=int(match[2] or 1), day=int(match[3] or 1))


def iso_date(year: str, month: str = "", day: str = "") -> str | None:
    """Return a date in ISO 8601 from its parts, as precise as they are valid; None without a year.

    Args:
        year: Four digits.
        month: A number, or an English name or its first three letters.
        day: A number.
    """
    year, month, day = year.strip(), month.strip().lower(), day.strip()
    if not re.fullmatch("[12][0-9]{3}", year):
        return None
    number = _MONTHS.index(month[:3]) + 1 if month[:3] in _MONTHS else month
    dates = (f"{year}-{number:0>2}-{day:0>2}", f"{year}-{number:0>2}", year)
    return next(text for text in dates if latest_day(text))


def leading_year(text: str) -> int | None:
    """Return the year with which a date of any form begins; None if it begins otherwise."""
    match = _LEADING_YEAR.match(text)
    return int(match[0]) if match else None


def parse_iso_date(text: str) -> str | None:
    """Return the date with which a text begins, in ISO 8601: `2021/3/9 10:00` becomes `2021-03-09`."""
    match = _WRITTEN.match(text.strip())
    return iso_date(*match.groups(default="")) if match else None


def parse_journal_date(text: str) -> str | None:
    """Return the date of a journal's issue in ISO 8601, as precise as known; None without a year.

    The text is a date as MEDLINE writes it, year first: `2019 Mar 5`, `2019 03`, `1998 Dec-1999 Jan`,
    `2015 Mar 15-21`, `2001 Spring`. Of a period, the result is the end, at which the issue is complete.
    """
    years = list(_YEAR.finditer(text))
    if not years:
        return None
    year, after = years[-1][0], text[years[-1].end() :]
    after = re.sub(r"^[ -]*(0?[1-9]|1[0-2])(?= |$)", lambda m: " " + _MONTHS[int(m[1]) - 1], after)
    month = day = ""
    position = 0
    while match := _AFTER_YEAR.match(after, position):
        if match[1].lower() not in _MONTHS:
            return year  # a season or a quarter, whose months depend on the publisher
        month, day, position = match[1], match[2] or "", match.end()
        if day and (second := _SECOND_DAY.match(after, position)):
            day, position = second[1], second.end()
    return iso_date(year, month, day)
