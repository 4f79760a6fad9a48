"""Dates as precise as they are known, and their last day."""

from datetime import date

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meditron.sources.dates import (
    earliest_day,
    iso_date,
    latest_day,
    leading_year,
    parse_iso_date,
    parse_journal_date,
)

JOURNAL = {
    "2019": "2019",
    "2019 Mar 5": "2019-03-05",
    "2019 03": "2019-03",
    "2019 3 07": "2019-03-07",
    "2019 July": "2019-07",
    "1998 Dec-1999 Jan": "1999-01",
    "2008 Nov-Dec": "2008-12",
    "2018 Mar/Apr": "2018-04",
    "2015 Mar 15-21": "2015-03-21",
    "2009 May 28-Jun 3": "2009-06-03",
    "2020 Dec 31-2021 Jan 6": "2021-01-06",
    "1977-1978": "1978",
    "2007 Oct-2008": "2008",
    "2001 Spring": "2001",
    "2000 Spring-2001 Summer": "2001",
    "Winter 2009": "2009",
    "2017 1st Quart": "2017",
    "1999 Feb 30": "1999-02",
    "": None,
    "in press": None,
}


@pytest.mark.parametrize(("text", "iso"), JOURNAL.items())
def test_dates_of_journals(text: str, iso: str | None) -> None:
    assert parse_journal_date(text) == iso


@pytest.mark.parametrize(
    ("text", "day"),
    [
        ("2023", date(2023, 12, 31)),
        ("2023-08", date(2023, 8, 31)),
        ("2024-02", date(2024, 2, 29)),
        ("2023-08-14", date(2023, 8, 14)),
        ("2023-08-14T10:00:00Z", date(2023, 8, 14)),
        ("2023-13", None),
        ("2023-02-30", None),
        ("0000", None),
        ("14.8.2023", None),
        ("", None),
    ],
)
def test_the_last_day(text: str, day: date | None) -> None:
    assert latest_day(text) == day


@given(st.dates())
def test_every_day(day: date) -> None:
    assert latest_day(day.isoformat()) == earliest_day(day.isoformat()) == day


def test_the_first_day() -> None:
    days = {"2023": date(2023, 1, 1), "2023-08": date(2023, 8, 1), "2023-13": None, "spring": None}
    assert {text: earliest_day(text) for text in days} == days


@pytest.mark.parametrize(
    ("parts", "iso"),
    [
        (("2019", "2", "3"), "2019-02-03"),
        (("2019", "February", ""), "2019-02"),
        ((" 2019 ", " Sept. ", " 30 "), "2019-09-30"),
        (("2019", "02", "30"), "2019-02"),
        (("2019", "13", "1"), "2019"),
        (("2019", "", "7"), "2019"),
        (("19", "2", "3"), None),
        (("", "", ""), None),
    ],
)
def test_dates_from_parts(parts: tuple[str, str, str], iso: str | None) -> None:
    assert iso_date(*parts) == iso


@pytest.mark.parametrize(
    ("text", "iso"),
    [
        ("2021-03-09T10:00:00Z", "2021-03-09"),
        ("2021/3/9", "2021-03-09"),
        (" 2021-03", "2021-03"),
        ("2021-02-30", "2021-02"),
        ("20210309", None),
        ("9 March 2021", None),
    ],
)
def test_dates_at_the_beginning_of_a_text(text: str, iso: str | None) -> None:
    assert parse_iso_date(text) == iso


def test_years_at_the_beginning_of_a_text() -> None:
    years = {"2021-03": 2021, "1998 Dec": 1998, "20210309": None, "March 2021": None, "": None}
    assert {text: leading_year(text) for text in years} == years


@given(st.text(max_size=30) | st.from_regex(r"[12][0-9]{3}[ -/][A-Z][a-z]{2} ?[0-9]{0,2}", fullmatch=True))
def test_any_text(text: str) -> None:
    iso = parse_journal_date(text)
    assert iso is None or latest_day(iso) is not None
