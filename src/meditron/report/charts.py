"""Charts as inline SVG whose colours and fonts are the page's own.

matplotlib draws with placeholder colours that are then replaced by the CSS variables of `pages.css` (with a
fallback, so that a chart also stands alone): one chart serves light and dark pages. Text stays text. The same
figures give the same bytes: ids are salted, and no date is written. pyplot and its global state are not used.
"""

import io
import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

__all__ = ["bars", "intervals", "lines"]

# Placeholder → the page's variable and its fallback. No two placeholders are a colour anyone would choose.
# The series are Okabe and Ito's palette, which readers with any colour vision tell apart.
_INK, _MUTED, _RULE = "#010203", "#010204", "#010205"
_SERIES = tuple(f"#0a0b{index:02x}" for index in range(1, 7))
_COLOURS = {
    _INK: "var(--ink, #1c1c1c)",
    _MUTED: "var(--muted, #666)",
    _RULE: "var(--rule, #ddd)",
    _SERIES[0]: "var(--series-1, #0072b2)",
    _SERIES[1]: "var(--series-2, #d55e00)",
    _SERIES[2]: "var(--series-3, #009e73)",
    _SERIES[3]: "var(--series-4, #cc79a7)",
    _SERIES[4]: "var(--series-5, #e69f00)",
    _SERIES[5]: "var(--series-6, #56b4e9)",
}
_DASHES = ("solid", "dashed", "dashdot", "dotted")
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "meditron",
    "text.parse_math": False,
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 8.5,
    "axes.unicode_minus": True,
}
_WIDTH, _HEIGHT = 5.0, 2.7  # inches, of 72 units each in the SVG
_SCALES = ((1e9, " B"), (1e6, " M"))
_MARKED = 40  # up to so many points are marked one by one


@contextmanager
def _styled() -> Iterator[None]:
    """Matplotlib's settings while a chart is made; they are put back after it."""
    from matplotlib import rc_context

    with rc_context(_STYLE):
        yield


@_styled()
def lines(series: Mapping[str, Sequence[tuple[float, float]]], x: str, y: str, *, log_x: bool = False) -> str:
    """A curve for each series of (x, y) points, named at its end; a series of one point is a dot.

    Points that are not finite (or, with `log_x`, not above zero) are left out. At most six colours are told
    apart; further series repeat them with other dashes, and a legend takes the names.
    """
    figure, axes = _canvas(_HEIGHT)
    kept = {name: _drawable(points, log_x=log_x) for name, points in series.items()}
    kept = {name: points for name, points in kept.items() if points}
    for index, (name, points) in enumerate(kept.items()):
        axes.plot(
            [at for at, _ in points],
            [value for _, value in points],
            color=_SERIES[index % len(_SERIES)],
            linestyle=_DASHES[index // len(_SERIES) % len(_DASHES)],
            linewidth=1.4,
            marker="o" if len(points) <= _MARKED else "",
            markersize=3.2,
            label=name,
        )
    if log_x:
        axes.set_xscale("log")
    axes.set_title(y, loc="left", color=_MUTED, fontsize=8.5)
    axes.set_xlabel(x, color=_MUTED)
    axes.margins(x=0.02, y=0.08)
    _tidy(axes, grid="y")
    if 0 < len(kept) <= len(_SERIES):
        _name_ends(axes, {name: points[-1][1] for name, points in kept.items()})
    elif kept:
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False, labelcolor=_INK)
    return _svg(figure)


@_styled()
def intervals(
    rows: Sequence[tuple[str, float, tuple[float, float] | None]], x: str, *, reference: float | None = None
) -> str:
    """Draw a dot and its interval for each (label, value, ends), top down, and a line at `reference`.

    A value without an interval is an open circle, and its label says so. Without a reference, a line is drawn
    at zero if a row reaches below it: then the rows are differences.
    """
    figure, axes = _canvas(0.75 + 0.34 * len(rows))
    for index, (_, value, ends) in enumerate(rows):
        if ends:
            axes.plot(ends, [index, index], color=_SERIES[0], linewidth=2, solid_capstyle="butt")
        fill = _SERIES[0] if ends else "none"
        axes.plot([value], [index], color=_SERIES[0], marker="o", markersize=6, markerfacecolor=fill)
    if reference is None and any(min((value, *(ends or ()))) < 0 for _, value, ends in rows):
        reference = 0.0
    if reference is not None:
        axes.axvline(reference, color=_MUTED, linewidth=0.9, linestyle=(0, (3, 2)), zorder=0)
    axes.margins(x=0.08)
    _label_rows(axes, [label if ends else f"{label} (no interval)" for label, _, ends in rows])
    axes.set_xlabel(x, color=_MUTED)
    _tidy(axes, grid="x")
    return _svg(figure)


@_styled()
def bars(rows: Sequence[tuple[str, float]], x: str) -> str:
    """A bar from zero for each (label, value), top down, with its value at the end."""
    figure, axes = _canvas(0.75 + 0.3 * len(rows))
    drawn = axes.barh(range(len(rows)), [value for _, value in rows], height=0.62, color=_SERIES[0])
    axes.bar_label(drawn, [_figure(value) for _, value in rows], padding=3, color=_INK)
    axes.margins(x=0.12)
    _label_rows(axes, [label for label, _ in rows])
    axes.set_xlabel(x, color=_MUTED)
    _tidy(axes, grid="x")
    return _svg(figure)


def _canvas(height: float) -> "tuple[Figure, Axes]":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    return figure, figure.add_subplot()


def _drawable(points: Sequence[tuple[float, float]], *, log_x: bool) -> list[tuple[float, float]]:
    return [
        (at, value)
        for at, value in points
        if math.isfinite(at) and math.isfinite(value) and (at > 0 or not log_x)
    ]


def _tidy(axes: "Axes", grid: Literal["x", "y"]) -> None:
    """Take away what carries no information: frame, tick marks, grid across the reading direction."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

    axes.patch.set_visible(False)
    axes.figure.patch.set_visible(False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.spines["bottom"].set(visible=True, color=_RULE)
    axes.set_axisbelow(True)
    axes.grid(axis=grid, color=_RULE, linewidth=0.7)
    axes.tick_params(which="both", length=0, labelcolor=_MUTED)
    for axis in (axes.xaxis, axes.yaxis) if grid == "y" else (axes.xaxis,):
        if axis.get_scale() == "linear":
            axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
        axis.set_major_formatter(FuncFormatter(lambda value, _, axis=axis: _tick(value, axis)))
        axis.set_minor_formatter(NullFormatter())
    if grid == "x":
        axes.tick_params(axis="y", labelcolor=_INK)


def _label_rows(axes: "Axes", labels: Sequence[str]) -> None:
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.45, -0.55)


def _name_ends(axes: "Axes", ends: Mapping[str, float]) -> None:
    """Write each series' name at the right, at the height where it ends, or as near as the others let it."""
    low, high = axes.get_ylim()
    gap = (high - low) * 0.075
    heights: list[float] = []
    for value in sorted(ends.values()):
        heights.append(max(value, heights[-1] + gap) if heights else value)
    over = max(0.0, heights[-1] - high)
    order = sorted(range(len(ends)), key=list(ends.values()).__getitem__)
    for height, index in zip(heights, order, strict=True):
        axes.annotate(
            list(ends)[index],
            (1.0, height - over),
            xycoords=axes.get_yaxis_transform(),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            color=_SERIES[index],
            annotation_clip=False,
        )


def _tick(value: float, axis: "Axis") -> str:
    """A tick's label, with as many decimals as the finest of its neighbours needs (2.9 beside 2.95: 2.90)."""
    if value == 0:
        return "0"
    ticks = axis.get_majorticklocs()
    spread = float(max(abs(tick) for tick in ticks)) if axis.get_scale() == "linear" else abs(value)
    scale, letter = next((pair for pair in _SCALES if spread >= pair[0]), (1.0, ""))
    finest = ticks if axis.get_scale() == "linear" else [value]
    decimals = next(
        (
            d
            for d in range(6)
            if all(math.isclose(round(t / scale, d), t / scale, abs_tol=1e-9) for t in finest)
        ),
        6,
    )
    return _written(value / scale, decimals) + letter


def _figure(value: float) -> str:
    """A value beside its bar: four figures, thousands apart, then millions (M) and billions (B)."""
    scale, letter = next((pair for pair in _SCALES if abs(value) >= pair[0]), (1.0, ""))
    value /= scale
    decimals = 0 if value == int(value) else max(0, 4 - len(str(int(abs(value)))))
    return _written(value, decimals) + letter


def _written(value: float, decimals: int) -> str:
    return f"{value + 0.0:,.{decimals}f}".replace("-", "−")


def _svg(figure: "Figure") -> str:
    """The figure's `<svg>` element, with the page's colours and font for the placeholders."""
    buffer = io.StringIO()
    with warnings.catch_warnings():
        # The text is the browser's to draw, which has fonts for every script.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure.savefig(buffer, format="svg", transparent=True)
    text = buffer.getvalue()
    text = text[text.index("<svg") :].strip()
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    # Groups' ids are used by nothing and would repeat on a page; those of clips and markers are hashes.
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(r"font-family: [^;\"]+", "font-family: var(--sans, sans-serif)", text)
    # A style element would reach beyond its own chart; what it says is inherited just as well.
    text = re.sub(r"<defs>\s*<style[^>]*>\*{(.*?)}</style>\s*</defs>", "", text, count=1, flags=re.DOTALL)
    text = text.replace("<svg", '<svg style="stroke-linejoin: round; stroke-linecap: butt"', 1)
    for placeholder, colour in _COLOURS.items():
        text = text.replace(placeholder, colour)
    return text
