"""Number formats of measured values, the same in reports, model card and terminal."""

from collections.abc import Callable, Sequence

__all__ = [
    "FORMATS",
    "count",
    "decimal",
    "estimate",
    "interval",
    "known",
    "nats",
    "percent",
    "perplexity",
    "points",
    "probability",
    "ratio",
]


def count(value: float) -> str:
    """Format a whole number: `20,788`."""
    return f"{value:,.0f}"


def decimal(value: float) -> str:
    """Format with four significant digits, or as a whole number from ten thousand on: `12.34`, `61,440`."""
    whole = isinstance(value, int) or 1e4 <= abs(value) < 1e9
    return _with_minus_sign(f"{value:,.0f}" if whole else f"{value:.4g}")


def perplexity(value: float) -> str:
    """Format a perplexity: `15.85`, `49,152`, `1.2e+40`."""
    if value >= 1e9:
        return f"{value:.2g}"
    return f"{value:,.0f}" if value >= 1000 else f"{value:.2f}"


def percent(share: float | None) -> str:
    """Format a share: `66.7 %`; nothing for None."""
    if share is None:
        return ""
    if abs(share) >= 1e9:  # a damaged model: no reader counts hundreds of digits
        return f"{100 * share:.2g} %"
    return f"{_with_minus_sign(f'{100 * share:.1f}')} %"


def points(share: float) -> str:
    """Format a difference of shares in percentage points: `+39.4`."""
    return _with_minus_sign(f"{100 * share:+.1f}")


def nats(value: float) -> str:
    """Format a difference in log-loss: `−0.1900`."""
    return _with_minus_sign(f"{value:+.4f}")


def ratio(value: float) -> str:
    """Format a ratio: `1.0312`."""
    return f"{value:.4f}" if value < 1e9 else f"{value:.2g}"


def probability(value: float) -> str:
    """Format a p-value: `0.034`, `< 0.001`."""
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def estimate(value: float, ends: Sequence[float] | None, form: Callable[[float], str]) -> str:
    """Format a value with its interval: `15.85 [15.02, 16.71]`, `15.85 (no interval)`."""
    return f"{form(value)} {interval(ends, form) if ends else f'({interval(ends, form)})'}"


def known(value: object) -> str:
    """Format a setting: its text; `not known` for None, of a result that another program wrote."""
    return "not known" if value is None else str(value)


def interval(ends: Sequence[float] | None, form: Callable[[float], str]) -> str:
    """Format an interval: `[15.02, 16.71]`; `no interval` if the sample is too small."""
    if ends is None:
        return "no interval"
    low, high = (form(end).removesuffix(" %") for end in ends)
    return f"[{low}, {high}]"


def _with_minus_sign(text: str) -> str:
    """Replace ASCII hyphens by the minus sign U+2212."""
    # An exponent keeps its hyphen, so that 1e-08 can be copied as a number.
    return text.replace("-", "−") if "e" not in text else text


FORMATS: tuple[Callable[[float], str], ...] = (
    count,
    decimal,
    perplexity,
    percent,
    points,
    nats,
    ratio,
    probability,
)
"""All formats of measured values."""
