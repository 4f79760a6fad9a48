"""What the templates of the pages of reviews show."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from meditron.report.number_format import estimate, percent
from meditron.serve.markdown import render_markdown
from meditron.serve.review.ratings import (
    ANSWER_SIDES,
    BIAS_KIND,
    COMMENT,
    HARM_KIND,
    HARMFUL,
    PAIR,
    PREFERENCE,
)
from meditron.serve.review.records import Item, ItemLink, Review, ReviewModel
from meditron.serve.review.rubric import HIGHEST, LOWEST, PREFERENCES
from meditron.serve.review.statistics import Estimate, ReviewResult
from meditron.serve.review.tables import METHOD, headline, result_tables

__all__ = ["item_context", "result_context"]

_MOST_ROWS = 100
"""Rows of a table on a page; the export has all."""
_WIDTH, _MARGIN = 300, 10  # of a drawing, in units of its view box


@dataclass(frozen=True, slots=True)
class _Bar:
    """A value with its interval, as places in a drawing."""

    label: str
    text: str
    value: float
    low: float | None
    high: float | None


def item_context(item: Item, items: Sequence[ItemLink], review: Review) -> dict[str, Any]:
    """Return the variables of the page of a comparison."""
    values = item.values
    return {
        "item": item,
        "rubric": review.rubric,
        "points": range(LOWEST, HIGHEST + 1),
        "answers": [
            # The same rendering as on the chat page; it lets no markup of the answer through.
            {
                "side": side,
                "number": number,
                "html": render_markdown(text),
                "values": values.get(side, {}),
            }
            for number, (side, text) in enumerate(zip(ANSWER_SIDES, (item.left, item.right), strict=True), 1)
        ],
        "pair": values.get(PAIR, {}),
        "preferences": PREFERENCES,
        "following": _following(item, items),
        "names": {
            "harmful": HARMFUL,
            "harm_kind": HARM_KIND,
            "bias_kind": BIAS_KIND,
            "comment": COMMENT,
            "preference": PREFERENCE,
        },
    }


def _following(item: Item, items: Sequence[ItemLink]) -> str:
    """Return the token of the next incomplete comparison after this one, or else before; `` if none is."""
    others = [*items[item.place + 1 :], *items[: item.place]]
    return next((each.token for each in others if not each.complete), "")


def result_context(result: ReviewResult, review: Review, models: Sequence[ReviewModel]) -> dict[str, Any]:
    """Return the variables of the page of results."""
    tables = [table for table in result_tables(result, review.rubric) if table.rows]
    return {
        "sentences": headline(result),
        "charts": [*_charts(result, review)],
        "tables": [(table.caption, table.headers, table.rows[:_MOST_ROWS]) for table in tables],
        "left_out": sum(max(0, len(table.rows) - _MOST_ROWS) for table in tables),
        "method": METHOD,
        "identities": [(model.label, sorted(model.identity.items())) for model in models],
        "settings": sorted(review.settings.items()),
    }


def _charts(result: ReviewResult, review: Review) -> Iterator[dict[str, Any]]:
    """Yield the drawings: shares of wins, then the means of each scale."""
    shares = [
        _bar(f"{pair.b} against {pair.a}", share, 0, 1, estimate(share.value, share.interval, percent))
        for pair in result.preferences
        if (share := pair.share.get(pair.b)) is not None
    ]
    if shares:
        yield {
            "title": "Share of wins",
            "ends": ("0 %", "100 %"),
            "middle": _place(0.5, 0, 1),
            "bars": shares,
        }
    for scale in review.rubric.scales:
        bars = [
            _bar(model, mean, LOWEST, HIGHEST, estimate(mean.value, mean.interval, "{:.2f}".format))
            for model, scores in result.models.items()
            if (mean := scores.scales.get(scale.key)) is not None
        ]
        if bars:
            title = f"{scale.label}: {scale.better} is better"
            yield {
                "title": title,
                "ends": (f"{LOWEST}, {scale.low}", f"{HIGHEST}, {scale.high}"),
                "middle": None,
                "bars": bars,
            }


def _bar(label: str, value: Estimate, low: float, high: float, text: str) -> _Bar:
    ends = [_place(end, low, high) for end in value.interval] if value.interval else [None, None]
    return _Bar(label, text, _place(value.value, low, high), ends[0], ends[1])


def _place(value: float, low: float, high: float) -> float:
    return round(_MARGIN + (value - low) / (high - low) * (_WIDTH - 2 * _MARGIN), 2)
