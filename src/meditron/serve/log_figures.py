"""Figures and charts of the request log: requests, errors, latency and tokens over time and by model."""

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from meditron.serve.log_rows import LogFilter
from meditron.store.database import Database

__all__ = ["CHARTS", "GroupFigures", "LogFigures", "draw_chart", "log_figures"]

_BUCKETS = 48
_MOST = 100_000  # rows of one page's figures
CHARTS: Mapping[str, str] = {
    "requests": "Requests and errors",
    "latency": "Seconds to the first token and to the end",
    "tokens": "Tokens read and written",
}
"""Name of a chart → what it shows."""
_HOUR = 3600.0
# matplotlib's settings are global: charts are drawn one at a time.
_drawing = threading.Lock()
Point = tuple[float, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupFigures:
    """Figures of the requests of one model, or with one version of a prompt."""

    name: str
    requests: int
    errors: int
    first_token: tuple[float, float] | None
    """Median and 95th percentile of the seconds to the first token; None if none was sent."""
    total: tuple[float, float] | None
    """Median and 95th percentile of the seconds to the end, of requests without an error."""
    input_tokens: int
    output_tokens: int
    scores: Mapping[str, tuple[float, int]]
    """Name of a score → its mean and number."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LogFigures:
    """Figures of the rows that match a filter."""

    all: GroupFigures
    models: Sequence[GroupFigures]
    prompts: Sequence[GroupFigures]
    limited: bool
    """True if only the newest rows were counted."""
    series: Mapping[str, Mapping[str, tuple[Point, ...]]]
    """Chart → name of a curve → points of (hours before the end, value)."""


def log_figures(database: Database, rows: LogFilter, *, start: float, end: float) -> LogFigures:
    """Compute the figures of the rows that match a filter and started between two times, not its own.

    Raises:
        UsageError: the filter is invalid.
        StorageError: another process holds the file.
    """
    where, values = replace(rows, since="", until="").where()
    with database.snapshot() as connection:
        found = connection.execute(
            "SELECT id, started, seconds, first_token_seconds, input_tokens, output_tokens, status, model, "  # noqa: S608
            f"prompt_name, prompt_version FROM request WHERE {where} AND started >= ? AND started < ? "
            "ORDER BY number DESC LIMIT ?",
            [*values, start, end, _MOST],
        ).fetchall()
        scores = _scores(connection, found)
    return LogFigures(
        all=_group("all", found, scores),
        models=_groups(found, scores, lambda row: str(row["model"])),
        prompts=_groups(
            [row for row in found if row["prompt_name"]],
            scores,
            lambda row: f"{row['prompt_name']}@{row['prompt_version'][:12]}",
        ),
        limited=len(found) == _MOST,
        series=_series(found, start, end),
    )


def draw_chart(figures: LogFigures, name: str) -> str:
    """Return a chart of CHARTS as an SVG file; KeyError for another name."""
    from meditron.report.charts import line_chart
    from meditron.report.svg import standalone_svg

    with _drawing:
        return standalone_svg(line_chart(figures.series[name], "hours before the end", CHARTS[name].lower()))


def _scores(connection: Any, rows: Sequence[Any]) -> dict[str, list[tuple[str, float]]]:  # noqa: ANN401
    known = {row["id"] for row in rows}
    scores: dict[str, list[tuple[str, float]]] = {}
    for request, name, value in connection.execute("SELECT request, name, value FROM score"):
        if request in known:
            scores.setdefault(request, []).append((name, value))
    return scores


def _groups(rows: Sequence[Any], scores: Mapping[str, Any], key: Any) -> list[GroupFigures]:  # noqa: ANN401
    named = [(name, list(group)) for name, group in groupby(sorted(rows, key=key), key)]
    return [_group(name, group, scores) for name, group in sorted(named, key=lambda each: -len(each[1]))]


def _group(name: str, rows: Sequence[Any], scores: Mapping[str, Sequence[tuple[str, float]]]) -> GroupFigures:
    by_name: dict[str, list[float]] = {}
    for row in rows:
        for score, value in scores.get(row["id"], ()):
            by_name.setdefault(score, []).append(value)
    return GroupFigures(
        name=name,
        requests=len(rows),
        errors=sum(row["status"] >= 400 for row in rows),
        first_token=_percentiles(
            [row["first_token_seconds"] for row in rows if row["first_token_seconds"] is not None]
        ),
        total=_percentiles([row["seconds"] for row in rows if row["status"] < 400]),
        input_tokens=sum(row["input_tokens"] or 0 for row in rows),
        output_tokens=sum(row["output_tokens"] or 0 for row in rows),
        scores={name: (sum(each) / len(each), len(each)) for name, each in sorted(by_name.items())},
    )


def _percentiles(values: Sequence[float]) -> tuple[float, float] | None:
    if not values:
        return None
    ordered = sorted(values)
    return tuple(_quantile(ordered, share) for share in (0.5, 0.95))  # type: ignore[return-value]


def _quantile(ordered: Sequence[float], share: float) -> float:
    """Return a quantile by linear interpolation, as numpy does by default."""
    place = share * (len(ordered) - 1)
    low = int(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def _series(rows: Sequence[Any], start: float, end: float) -> dict[str, dict[str, tuple[Point, ...]]]:
    width = (end - start) / _BUCKETS
    buckets: list[list[Any]] = [[] for _ in range(_BUCKETS)]
    for row in rows:
        buckets[min(_BUCKETS - 1, int((row["started"] - start) / width))].append(row)
    hours = [(start + width * (place + 0.5) - end) / _HOUR for place in range(_BUCKETS)]
    figures = [_group("", bucket, {}) for bucket in buckets]

    def curve(value: Any) -> tuple[Point, ...]:  # noqa: ANN401
        points = ((hour, value(figure)) for hour, figure in zip(hours, figures, strict=True))
        return tuple((round(hour, 4), float(number)) for hour, number in points if number is not None)

    return {
        "requests": {
            "requests": curve(lambda each: each.requests),
            "errors": curve(lambda each: each.errors),
        },
        "latency": {
            "end, 95 %": curve(lambda each: each.total and each.total[1]),
            "end, median": curve(lambda each: each.total and each.total[0]),
            "first token, 95 %": curve(lambda each: each.first_token and each.first_token[1]),
            "first token, median": curve(lambda each: each.first_token and each.first_token[0]),
        },
        "tokens": {
            "read": curve(lambda each: each.input_tokens),
            "written": curve(lambda each: each.output_tokens),
        },
    }
