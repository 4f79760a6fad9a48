"""Numbers as people read them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meditron.core.errors import UsageError
from meditron.core.units import format_bytes, format_count, format_duration, is_numeric_cell, parse_bytes


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.7, "1 min 00 s"),
        (200, "3 min 20 s"),
        (3599.6, "1 h 00 min"),
        (7500, "2 h 05 min"),
        (273_600, "3 d 04 h"),
        (86_400 * 999.9, "999 d 21 h"),
        (86_400 * 5_433_230, "5,433,230 d"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1234, "1.23 kB"), (999_600, "1.00 MB"), (98_700_000_000, "98.7 GB")],
)
def test_sizes(count: float, text: str) -> None:
    assert format_bytes(count) == text


@pytest.mark.parametrize(
    ("count", "unit", "text"),
    [
        (20_788, "citations", "20,788 citations"),
        (2.5, "", "2.50"),
        (512.4, "", "512"),
        (5e6, "B", "5.00 MB"),
        (3, "", "3"),
        (1, "documents", "1 document"),
    ],
)
def test_amounts(count: float, unit: str, text: str) -> None:
    assert format_count(count, unit) == text


@given(st.integers(0, 10**17))
def test_a_size_has_three_figures_and_is_near_the_truth(count: int) -> None:
    number, unit = format_bytes(count).split()
    scale = 1000 ** ("B", "kB", "MB", "GB", "TB", "PB").index(unit)
    assert float(number) * scale == pytest.approx(count, rel=0.006)
    assert len(number.replace(".", "")) <= 3


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("4096", 4096),
        ("50M", 50_000_000),
        ("1.5GB", 1_500_000_000),
        ("2 kib", 2048),
        ("0.1T", 10**11),
        ("1GiB", 1 << 30),
        ("7b", 7),
    ],
)
def test_sizes_are_parsed(text: str, count: int) -> None:
    assert parse_bytes(text, "--size") == count


@pytest.mark.parametrize("text", ["", "0", "0.9", "M", "-1", "1e3", "5 apples", "1ki", "1.M", "nan"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--size: must be a size"):
        parse_bytes(text, "--size")


@given(st.integers(1, 10**15))
def test_a_size_parses_as_itself(count: int) -> None:
    assert parse_bytes(str(count), "--size") == parse_bytes(f"{count}B", "--size") == count


@given(st.one_of(st.integers().map(lambda n: f"{n:,}"), st.floats(-1e9, 1e9).map(lambda x: f"{x:+.4f}")))
def test_written_numbers_are_figures(text: str) -> None:
    assert is_numeric_cell(text)
    assert is_numeric_cell(f"[{text}, {text}]")
    assert is_numeric_cell(f"{text} … {text}")


@pytest.mark.parametrize("text", ["pubmed", "4ae14ae1", "3 of 4", "-", "1.2.3 beta"])
def test_words_are_no_figures(text: str) -> None:
    assert not is_numeric_cell(text)


@given(st.floats(0, 1e7), st.integers(0, 10**15))
def test_written_times_and_sizes_are_figures(seconds: float, count: int) -> None:
    assert is_numeric_cell(format_duration(seconds))
    assert is_numeric_cell(format_bytes(count))
