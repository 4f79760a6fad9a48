"""Formatting of durations, sizes and counts, shared by the console and the reports."""

import re
from decimal import Decimal

from meditron.core.errors import UsageError

__all__ = ["format_bytes", "format_count", "format_duration", "is_numeric_cell", "parse_bytes"]

_NUMBER = r"[-+−]?\d[\d,.]*(e[-+]?\d+)?"
_DURATION = r"\d[\d,]*(\.\d)? (s|min|h|d)( \d\d (s|min|h))?"
_FIGURE = re.compile(
    rf"(< ?)?{_NUMBER}( ?%| [kMGTP]?B)?|{_NUMBER} … {_NUMBER}|({_NUMBER}( %)? )?\[{_NUMBER}, {_NUMBER}\]"
    rf"|{_NUMBER}( %)? \(no interval\)|no interval"
    rf"|{_DURATION}|[–—]?"
)
_SIZE = re.compile(
    r"(?P<number>\d{1,20}(\.\d{1,20})?) ?((?P<power>[kmgt])(?P<binary>i(?=b))?)?b?", re.IGNORECASE
)
_SIZES = ("B", "kB", "MB", "GB", "TB", "PB")


def format_duration(seconds: float) -> str:
    """Format a duration: `0.4 s`, `12 s`, `3 min 20 s`, `2 h 05 min`, `3 d 04 h`, `1,200 d`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86_400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    days = whole // 86_400
    return f"{days} d {whole % 86_400 // 3600:02d} h" if days < 1000 else f"{days:,} d"


def format_bytes(count: float) -> str:
    """Format bytes in powers of a thousand, with three figures: `512 B`, `1.23 MB`, `98.7 GB`."""
    power = 0
    # Not 1000, because 999.5 kB would be rounded to 1000 kB, which has four figures.
    while count >= 999.5 and power < len(_SIZES) - 1:
        count, power = count / 1000, power + 1
    return f"{_three_figures(count) if power else round(count)} {_SIZES[power]}"


def format_count(count: float, unit: str = "") -> str:
    """Format a count with its unit; bytes (`B`) as `format_bytes` does, fractions with three figures.

    `unit` is a regular plural: 1 with `documents` gives `1 document`.
    """
    if unit == "B":
        return format_bytes(count)
    text = f"{count:,.0f}" if count >= 100 or count == int(count) else _three_figures(count)
    return f"{text} {unit.removesuffix('s') if text == '1' else unit}".rstrip()


def is_numeric_cell(text: str) -> bool:
    """Return whether a table cell is a number, interval, size, duration or empty; such cells align right."""
    return _FIGURE.fullmatch(text) is not None


def _three_figures(value: float) -> str:
    """Format with three significant figures, without an exponent."""
    return f"{value:.0f}" if value >= 99.95 else f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"


def parse_bytes(text: str, name: str) -> int:
    """Parse a size: `50M`, `1.5GB` and `4096` are 50,000,000, 1,500,000,000 and 4,096 bytes.

    Args:
        text: A positive number, with K, M, G or T (optionally followed by B) in powers of 1,000, or KiB, MiB,
            GiB or TiB in powers of 1,024; case and blanks are ignored.
        name: The option, for the error.

    Raises:
        UsageError: it is not a size of at least one byte.
    """
    match = _SIZE.fullmatch(text.strip())
    count = 0
    if match is not None:
        base = 1024 if match["binary"] else 1000
        power = " kmgt".index((match["power"] or " ").lower())
        count = int(Decimal(match["number"]) * base**power)
    if count < 1:
        raise UsageError(f"{name}: must be a size such as 50M or 1.5GB, got {text!r:.60}")
    return count
