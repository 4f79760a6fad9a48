"""Charts: the page's colours, text as text, the same bytes every time."""

import math
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meditron.report.charts import bar_chart, interval_chart, line_chart

NAMESPACE = "{http://www.w3.org/2000/svg}"
CURVES = {"pubmed": [(0.0, 3.0), (1000.0, 2.5), (2000.0, 2.4)], "wiki": [(0.0, 2.8), (2000.0, 2.7)]}
ALL = {
    "lines": lambda: line_chart(CURVES, "tokens", "loss"),
    "log": lambda: line_chart(CURVES, "tokens", "loss", log_x=True),
    "one point": lambda: line_chart({"pubmed": [(5.0, 2.0)]}, "tokens", "loss"),
    "none": lambda: line_chart({}, "tokens", "loss"),
    "many": lambda: line_chart({f"s{k}": [(0, k), (1, k + 1)] for k in range(9)}, "x", "y"),
    "intervals": lambda: interval_chart(
        [("pretrain − base", -0.19, (-0.202, -0.178)), ("few", -0.1, None)], "nats"
    ),
    "bars": lambda: bar_chart([("pubmed", 1_234_567.0), ("wiki", 3.5), ("none", 0.0)], "tokens"),
}


def texts(svg: str) -> list[str]:
    return ["".join(node.itertext()).strip() for node in parse(svg).iter(f"{NAMESPACE}text")]


def parse(svg: str) -> ET.Element:
    # matplotlib made it a moment ago: nothing from outside.
    return ET.fromstring(svg)  # noqa: S314


@pytest.fixture(params=ALL, scope="module")
def svg(request: pytest.FixtureRequest) -> str:
    return ALL[request.param]()


def test_it_is_one_svg_element_and_speaks_of_no_time_or_maker(svg: str) -> None:
    assert parse(svg).tag == f"{NAMESPACE}svg"
    assert not re.search(r"metadata|matplotlib|\d{4}-\d\d-\d\d|<script|<style|<!DOCTYPE", svg)
    assert "width" not in parse(svg).attrib  # the page decides


def test_bars_of_a_chart_have_the_same_number_of_decimals() -> None:
    shown = texts(bar_chart([("pubmed", 91.1634), ("wiki", 8.8366)], "%"))
    assert {"91.16", "8.84"} <= set(shown)


def test_every_colour_is_the_pages(svg: str) -> None:
    outside = re.sub(r"var\(--[\w-]+, #[0-9a-f]+\)", "", svg)
    assert not re.search(r"(?:fill|stroke): ?#[0-9a-f]{3,6}", outside)
    assert "font-family: var(--sans" in svg or "<text" not in svg
    assert "DejaVu" not in svg


def test_clips_and_markers_that_are_used_are_there(svg: str) -> None:
    used = set(re.findall(r"(?:url\(|href=\")#([\w-]+)", svg))
    assert used <= set(re.findall(r'id="([\w-]+)"', svg))


@pytest.mark.parametrize("name", ["many", "intervals", "bars"])
def test_the_same_figures_give_the_same_bytes(name: str) -> None:
    assert ALL[name]() == ALL[name]()


def test_series_are_named_at_their_ends_or_in_a_legend() -> None:
    assert {"pubmed", "wiki", "tokens", "loss"} <= set(texts(ALL["lines"]()))
    assert {f"s{k}" for k in range(9)} <= set(texts(ALL["many"]()))


def test_names_of_curves_that_end_together_do_not_overlap() -> None:
    svg = line_chart({name: [(0.0, 1.0), (1.0, 2.0)] for name in ("one", "two", "three")}, "x", "y")
    heights = {node.text: float(node.attrib["y"]) for node in parse(svg).iter(f"{NAMESPACE}text")}
    ends = sorted(heights[name] for name in ("one", "two", "three"))
    assert all(below - above > 8 for above, below in pairwise(ends))


def test_a_single_point_is_seen() -> None:
    assert ALL["one point"]().count("<use") >= 1


def test_points_that_are_no_numbers_are_left_out() -> None:
    broken = [(0.0, math.nan), (1.0, 2.0), (2.0, math.inf), (3.0, 1.0)]
    assert line_chart({"a": broken}, "x", "y") == line_chart({"a": [(1.0, 2.0), (3.0, 1.0)]}, "x", "y")
    assert line_chart({"a": [(0.0, 1.0), (10.0, 2.0)]}, "x", "y", log_x=True) == line_chart(
        {"a": [(10.0, 2.0)]}, "x", "y", log_x=True
    )


def test_differences_have_a_line_at_zero_and_values_have_none() -> None:
    assert "stroke-dasharray" in interval_chart([("a", -0.1, (-0.2, -0.05))], "nats")
    assert "stroke-dasharray" not in interval_chart([("a", 19.0, (18.0, 20.0))], "perplexity")
    assert "stroke-dasharray" in interval_chart([("a", 0.1, (0.05, 0.2))], "nats", reference=0.0)


def test_a_value_without_an_interval_is_drawn_open_and_labelled() -> None:
    svg = interval_chart([("pubmed", 19.0, (18.0, 20.0)), ("wiki", 21.0, None)], "perplexity")
    assert {"pubmed", "wiki (no interval)"} <= set(texts(svg))
    assert svg.count('stroke-width: 2"') == 1
    assert "stroke-dasharray" in interval_chart([("a", -0.1, None)], "nats")


@settings(max_examples=6, deadline=None)
@given(st.text(st.characters(codec="utf-8", categories=["L", "N", "P", "S"]), min_size=1, max_size=20))
def test_labels_are_text_and_never_markup_or_formulas(label: str) -> None:
    assert f"{label}$x$<b>" in texts(bar_chart([(f"{label}$x$<b>", 1.0)], "n"))


def test_ticks_share_their_precision() -> None:
    ticks = [
        text
        for text in texts(line_chart({"a": [(0, 2.86), (1, 2.95)]}, "x", "loss"))
        if text.startswith("2.")
    ]
    assert len(ticks) > 2
    assert len({len(tick) for tick in ticks}) == 1


def test_pyplot_is_not_imported_and_settings_are_left_alone() -> None:
    code = (
        "import sys, matplotlib; before = matplotlib.rcParams.copy()\n"
        "from meditron.report.charts import bar_chart; bar_chart([('a', 1.0)], 'x')\n"
        "print('matplotlib.pyplot' in sys.modules, matplotlib.rcParams.copy() == before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]
