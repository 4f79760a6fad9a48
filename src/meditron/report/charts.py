"""Charts as inline SVG.

Colours and fonts are CSS variables of the page (variables.css), with fallbacks, so one chart serves light and
dark pages. Text stays text. The same values give the same bytes: ids are salted and no date is written. The
pyplot module with its global state is not used.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from meditron.report.svg import INK, MUTED, PAPER, RULE, SERIES, matplotlib_style, to_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

__all__ = [
    "IntervalPanel",
    "IntervalRow",
    "SizedLoss",
    "bar_chart",
    "interval_chart",
    "interval_panel_chart",
    "line_chart",
    "reliability_chart",
    "size_loss_chart",
]

_DASHES = ("solid", "dashed", "dashdot", "dotted")
_WIDTH, _HEIGHT = 5.0, 2.7  # inches, of 72 units each in the SVG
_SCALES = ((1e9, " B"), (1e6, " M"))
_MARKED = 40  # series of up to this many points have a marker per point
_PANEL_WIDTH = 4.0  # narrower than other charts, so that its text stays readable on a phone
_ROW, _TWO_LINE_ROW, _ABOVE, _HEADING, _BELOW, _MARGIN = 0.36, 0.5, 0.27, 0.38, 0.48, 0.12  # inches
_LINE_CHARACTERS = 62  # label and value of a row share a line up to this length
_TONES = {"better": SERIES[2], "worse": SERIES[1], "neutral": MUTED}

_LABEL_SIZE = 7.0  # points
_Box = tuple[float, float, float, float]
"""Left, lower, right and upper edge of a box, in points."""

Tone = Literal["better", "worse", "neutral"]


@dataclass(frozen=True, slots=True)
class IntervalRow:
    """A value with its interval in an `IntervalPanel`."""

    label: str
    value: float
    interval: tuple[float, float] | None
    value_text: str
    """The value, the interval and the verdict in words, in the colour of `tone`."""
    tone: Tone


@dataclass(frozen=True, slots=True)
class IntervalPanel:
    """A panel of rows in one unit under a common title."""

    title: str
    rows: Sequence[IntervalRow]
    x_label: str
    """The unit, and the side that is better."""
    heading: str = ""
    """A question and its answer above the title, a line each."""


@dataclass(frozen=True, slots=True)
class SizedLoss:
    """A point of a `size_loss_chart`."""

    label: str
    size: float
    loss: float
    interval: tuple[float, float] | None


@matplotlib_style()
def line_chart(
    series: Mapping[str, Sequence[tuple[float, float]]],
    x: str,
    y: str,
    *,
    log_x: bool = False,
    marks: Sequence[float] = (),
) -> str:
    """Draw a curve for each series of (x, y) points, named at its end; a series of one point is a dot.

    At each x of `marks` a thin vertical line is drawn.

    Points that are not finite (or, with `log_x`, not above zero) are left out. From the seventh series on,
    colours repeat with other dashes, and the names are in a legend.
    """
    figure, axes = _new_figure(_HEIGHT)
    kept = {name: _drawable_points(points, log_x=log_x) for name, points in series.items()}
    kept = {name: points for name, points in kept.items() if points}
    for index, (name, points) in enumerate(kept.items()):
        axes.plot(
            [at for at, _ in points],
            [value for _, value in points],
            color=SERIES[index % len(SERIES)],
            linestyle=_DASHES[index // len(SERIES) % len(_DASHES)],
            linewidth=1.4,
            marker="o" if len(points) <= _MARKED else "",
            markersize=3.2,
            label=name,
        )
    for mark in marks:
        axes.axvline(mark, color=MUTED, linewidth=0.8, linestyle=(0, (1, 2)), zorder=0)
    if log_x:
        axes.set_xscale("log")
    axes.set_title(y, loc="left", color=MUTED, fontsize=8.5)
    axes.set_xlabel(x, color=MUTED)
    axes.margins(x=0.02, y=0.08)
    _style_axes(axes, grid="y")
    # A name at the end of its curve is easier to read than a legend, but many names would overlap.
    if 0 < len(kept) <= len(SERIES):
        _label_curve_ends(axes, {name: points[-1][1] for name, points in kept.items()})
    elif kept:
        axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False, labelcolor=INK)
    return to_svg(figure)


@matplotlib_style()
def interval_chart(
    rows: Sequence[tuple[str, float, tuple[float, float] | None]], x: str, *, reference: float | None = None
) -> str:
    """Draw a dot and its interval for each (label, value, ends), downward, and a line at `reference`.

    A value without an interval is an open circle, and its label says so. Without a reference, a line is drawn
    at zero if a value or an interval reaches below zero, because the rows are then differences.
    """
    figure, axes = _new_figure(0.75 + 0.34 * len(rows))
    for index, (_, value, ends) in enumerate(rows):
        if ends:
            axes.plot(ends, [index, index], color=SERIES[0], linewidth=2, solid_capstyle="butt")
        fill = SERIES[0] if ends else "none"
        axes.plot([value], [index], color=SERIES[0], marker="o", markersize=6, markerfacecolor=fill)
    if reference is None and any(min((value, *(ends or ()))) < 0 for _, value, ends in rows):
        reference = 0.0
    if reference is not None:
        axes.axvline(reference, color=MUTED, linewidth=0.9, linestyle=(0, (3, 2)), zorder=0)
    axes.margins(x=0.08)
    _label_rows(axes, [label if ends else f"{label} (no interval)" for label, _, ends in rows])
    axes.set_xlabel(x, color=MUTED)
    _style_axes(axes, grid="x")
    return to_svg(figure)


@matplotlib_style()
def interval_panel_chart(*columns: Sequence[IntervalPanel]) -> str:
    """Draw columns of panels of differences with their intervals.

    Each row has its label and its value in words above the interval, so that a single column stays readable
    at the width of a phone. The colour repeats the verdict in words; a neutral row has an open marker.
    """
    from matplotlib.figure import Figure

    # The layout is in inches, not matplotlib's automatic one, which would shrink the axes beside long names.
    height = max(sum(map(_panel_height, panels)) for panels in columns)
    width = _PANEL_WIDTH * len(columns)
    figure = Figure(figsize=(width, height))
    for number, panels in enumerate(columns):
        top = height
        for panel in panels:
            rows = _rows_height(panel)
            bottom = top - _panel_height(panel) + _BELOW
            left = _PANEL_WIDTH * number + _MARGIN
            place = (
                left / width,
                bottom / height,
                (_PANEL_WIDTH - 2 * _MARGIN) / width,
                rows / height,
            )
            _draw_panel(figure.add_axes(place), panel)
            top = bottom - _BELOW
    return to_svg(figure)


def _rows_height(panel: IntervalPanel) -> float:
    return (_TWO_LINE_ROW if _needs_two_lines(panel) else _ROW) * len(panel.rows)


def _panel_height(panel: IntervalPanel) -> float:
    return _rows_height(panel) + _ABOVE + (_HEADING if panel.heading else 0) + _BELOW


def _draw_panel(axes: "Axes", panel: IntervalPanel) -> None:
    two_lines = _needs_two_lines(panel)
    for index, row in enumerate(panel.rows):
        colour = _TONES[row.tone]
        fill = "none" if row.tone == "neutral" else colour
        if row.interval:
            axes.plot(row.interval, [index, index], color=colour, linewidth=2.2, solid_capstyle="butt")
            if fill == "none":  # the line would show through the open marker
                fill = PAPER
        axes.plot([row.value], [index], color=colour, marker="o", markersize=5.5, markerfacecolor=fill)
        top = index - (0.62 if two_lines else 0.42)
        _draw_text(axes, 0.0, top, row.label, INK, "left")
        value_x, value_y, side = (0.0, index - 0.32, "left") if two_lines else (1.0, top, "right")
        _draw_text(axes, value_x, value_y, row.value_text, colour, side)
    axes.axvline(0, color=MUTED, linewidth=0.9, linestyle=(0, (3, 2)), zorder=0)
    axes.margins(x=0.06)
    axes.set_yticks([])
    axes.set_ylim(len(panel.rows) - 0.6, -0.85 if two_lines else -0.65)
    lines_above = [(panel.title, MUTED, "normal")]
    if panel.heading:
        question, _, answer = panel.heading.partition("\n")
        lines_above += [(answer, INK, "normal"), (question, INK, "bold")]
    for number, (text, colour, weight) in enumerate(lines_above):
        annotation_options: dict[str, Any] = {"xycoords": "axes fraction", "textcoords": "offset points"}
        axes.annotate(
            text, (0, 1), xytext=(0, 5 + 13 * number), color=colour, fontweight=weight, **annotation_options
        )
    axes.set_xlabel(panel.x_label, color=MUTED)
    _style_axes(axes, grid="x")


def _needs_two_lines(panel: IntervalPanel) -> bool:
    return any(len(row.label) + len(row.value_text) > _LINE_CHARACTERS for row in panel.rows)


def _draw_text(axes: "Axes", x: float, y: float, text: str, colour: str, side: str) -> None:
    """Write text at the row position `y` and at the fraction `x` of the panel's width."""
    axes.text(
        x,
        y,
        text,
        transform=axes.get_yaxis_transform(),
        ha=side,
        va="center",
        color=colour,
        fontsize=8,
        # The box behind the text keeps grid lines from crossing the letters.
        bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 0.6},
    )


@matplotlib_style()
def bar_chart(rows: Sequence[tuple[str, float]], x: str) -> str:
    """Draw a bar from zero for each (label, value), top down, with its value at the end."""
    figure, axes = _new_figure(0.75 + 0.3 * len(rows))
    drawn = axes.barh(range(len(rows)), [value for _, value in rows], height=0.62, color=SERIES[0])
    axes.bar_label(drawn, _format_bar_values([value for _, value in rows]), padding=3, color=INK)
    axes.margins(x=0.12)
    _label_rows(axes, [label for label, _ in rows])
    axes.set_xlabel(x, color=MUTED)
    _style_axes(axes, grid="x")
    return to_svg(figure)


@matplotlib_style()
def reliability_chart(
    series: Mapping[str, Sequence[tuple[float, float, tuple[float, float] | None]]],
) -> str:
    """Draw the accuracy of answers over their probability, in percent, with the diagonal of calibration.

    Args:
        series: Name → (mean probability, accuracy, interval of the accuracy) of each bin, as shares.
    """
    figure, axes = _new_figure(_WIDTH * 0.7)
    axes.plot([0, 100], [0, 100], color=MUTED, linewidth=0.9, linestyle=(0, (3, 2)), zorder=0)
    for index, (name, bins) in enumerate(series.items()):
        colour = SERIES[index % len(SERIES)]
        for confidence, _, ends in bins:
            if ends:
                axes.plot([100 * confidence] * 2, [100 * end for end in ends], color=colour, linewidth=1.0)
        axes.plot(
            [100 * confidence for confidence, _, _ in bins],
            [100 * accuracy for _, accuracy, _ in bins],
            color=colour,
            linestyle=_DASHES[index // len(SERIES) % len(_DASHES)],
            linewidth=1.4,
            marker="o",
            markersize=3.6,
            label=name,
        )
    axes.set_xlim(0, 100)
    axes.set_ylim(0, 100)
    axes.set_title("accuracy, %", loc="left", color=MUTED, fontsize=8.5)
    axes.set_xlabel("probability of the answer among the options, %", color=MUTED)
    _style_axes(axes, grid="y")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False, labelcolor=INK)
    return to_svg(figure)


@matplotlib_style()
def size_loss_chart(
    series: Mapping[str, Sequence[SizedLoss]], x: str, y: str, *, marked: str | None = None
) -> str:
    """Draw the loss of each point over its size, with its interval, on a logarithmic axis of the loss.

    The points of the first series have their labels; in every series the point `marked` has a ring. A point
    without a loss above zero is left out.
    """
    figure, axes = _new_figure(_WIDTH * 0.75)
    for index, (name, points) in enumerate(series.items()):
        colour, kept = SERIES[index % len(SERIES)], [point for point in points if point.loss > 0]
        for point in kept:
            if point.interval and point.interval[0] > 0:
                axes.plot([point.size] * 2, point.interval, color=colour, linewidth=1.0)
            if point.label == marked:
                axes.plot(
                    [point.size], [point.loss], color=INK, marker="o", markersize=9, markerfacecolor="none"
                )
        sizes, losses = [point.size for point in kept], [point.loss for point in kept]
        axes.plot(sizes, losses, color=colour, linestyle="", marker="o", markersize=4, label=name)
    axes.set_yscale("log")
    axes.set_title(y, loc="left", color=MUTED, fontsize=8.5)
    axes.set_xlabel(x, color=MUTED)
    axes.margins(x=0.08, y=0.12)
    _style_axes(axes, grid="y")
    axes.legend(loc="upper right", frameon=False, labelcolor=INK)
    every = [point for group in series.values() for point in group]
    _label_points(figure, axes, next(iter(series.values()), ()), every)
    return to_svg(figure)


def _label_points(
    figure: "Figure", axes: "Axes", points: Sequence[SizedLoss], obstacles: Sequence[SizedLoss]
) -> None:
    """Write the label of each point where it covers no other label, point or interval, if possible."""
    figure.draw_without_rendering()  # the layout, which the places depend on
    unit = figure.dpi / 72

    def place_of(size: float, loss: float) -> tuple[float, float]:
        x, y = axes.transData.transform((size, loss))
        return x / unit, y / unit

    taken: list[_Box] = []
    for point in obstacles:
        ends = [end for end in (*(point.interval or ()), point.loss) if end > 0]
        if ends:
            (x, low), (_, high) = place_of(point.size, min(ends)), place_of(point.size, max(ends))
            taken.append((x - 3, low - 3, x + 3, high + 3))
    for point in sorted(points, key=lambda point: point.size):
        if point.loss <= 0:
            continue
        x, y = place_of(point.size, point.loss)
        width = 0.62 * _LABEL_SIZE * len(point.label)
        boxes = [
            (x + dx, y + dy, x + dx + width, y + dy + _LABEL_SIZE)
            for rise in range(0, 60, 4)
            for dy in (rise - _LABEL_SIZE / 2, -rise - _LABEL_SIZE / 2)
            for dx in (6, -6 - width, -width / 2)
        ]
        box = next((box for box in boxes if not any(_overlap(box, other) for other in taken)), boxes[0])
        taken.append(box)
        axes.annotate(
            point.label,
            (point.size, point.loss),
            xytext=(box[0] - x, box[1] - y),
            textcoords="offset points",
            color=INK,
            fontsize=_LABEL_SIZE,
            arrowprops={"arrowstyle": "-", "color": RULE, "linewidth": 0.7} if abs(box[1] - y) > 8 else None,
        )


def _overlap(a: _Box, b: _Box) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _new_figure(height: float) -> "tuple[Figure, Axes]":
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, height), layout="constrained")
    return figure, figure.add_subplot()


def _drawable_points(points: Sequence[tuple[float, float]], *, log_x: bool) -> list[tuple[float, float]]:
    return [
        (at, value)
        for at, value in points
        if math.isfinite(at) and math.isfinite(value) and (at > 0 or not log_x)
    ]


def _style_axes(axes: "Axes", grid: Literal["x", "y"]) -> None:
    """Remove the frame and the tick marks, and draw grid lines across one axis only."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

    axes.patch.set_visible(False)
    axes.figure.patch.set_visible(False)
    for spine in axes.spines.values():
        spine.set_visible(False)
    axes.spines["bottom"].set(visible=True, color=RULE)
    axes.set_axisbelow(True)
    axes.grid(axis=grid, color=RULE, linewidth=0.7)
    axes.tick_params(which="both", length=0, labelcolor=MUTED)
    for axis in (axes.xaxis, axes.yaxis) if grid == "y" else (axes.xaxis,):
        if axis.get_scale() == "linear":
            axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 2.5, 5, 10]))
        axis.set_major_formatter(FuncFormatter(lambda value, _, axis=axis: _format_tick(value, axis)))
        axis.set_minor_formatter(NullFormatter())
    if grid == "x":
        axes.tick_params(axis="y", labelcolor=INK)


def _label_rows(axes: "Axes", labels: Sequence[str]) -> None:
    axes.set_yticks(range(len(labels)), labels)
    axes.set_ylim(len(labels) - 0.45, -0.55)


def _label_curve_ends(axes: "Axes", ends: Mapping[str, float]) -> None:
    """Write each series' name at the right, at the height of its end, moved apart if names overlap."""
    low, high = axes.get_ylim()
    gap = (high - low) * 0.075
    label_heights: list[float] = []
    for value in sorted(ends.values()):
        label_heights.append(max(value, label_heights[-1] + gap) if label_heights else value)
    over = max(0.0, label_heights[-1] - high)
    order = sorted(range(len(ends)), key=list(ends.values()).__getitem__)
    for height, index in zip(label_heights, order, strict=True):
        axes.annotate(
            list(ends)[index],
            (1.0, height - over),
            xycoords=axes.get_yaxis_transform(),
            xytext=(6, 0),
            textcoords="offset points",
            va="center",
            color=SERIES[index],
            annotation_clip=False,
        )


def _format_tick(value: float, axis: "Axis") -> str:
    """Return a tick's label, with as many decimals as its neighbours need (2.9 beside 2.95: 2.90)."""
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
    return _format_number(value / scale, decimals) + letter


def _format_bar_values(values: Sequence[float]) -> list[str]:
    """Format the values beside a chart's bars: separated thousands, then millions (M) and billions (B).

    Values with the same letter have the same number of decimals, so that the largest one has four digits.
    """
    scaled = []
    for value in values:
        scale, letter = next((pair for pair in _SCALES if abs(value) >= pair[0]), (1.0, ""))
        scaled.append((value / scale, letter))
    decimals: dict[str, int] = {}
    for value, letter in scaled:
        if value != int(value):
            digits = max(0, 4 - len(str(int(abs(value)))))
            decimals[letter] = min(digits, decimals.get(letter, digits))
    return [_format_number(value, decimals.get(letter, 0)) + letter for value, letter in scaled]


def _format_number(value: float, decimals: int) -> str:
    if abs(value) >= 1e6:  # millions of billions: the perplexity of a damaged model
        return f"{value:.2g}"
    return f"{value + 0.0:,.{decimals}f}".replace("-", "−")
