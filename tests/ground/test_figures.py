"""Measured values as people read them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meditron.ground import figures
from meditron.ground.units import is_figure


@pytest.mark.parametrize(
    ("form", "value", "text"),
    [
        (figures.count, 20_788, "20,788"),
        (figures.decimal, 0.0001, "0.0001"),
        (figures.decimal, 12.3456, "12.35"),
        (figures.decimal, 61_440, "61,440"),
        (figures.decimal, 1.5e-8, "1.5e-08"),
        (figures.decimal, -0.25, "−0.25"),
        (figures.perplexity, 15.8539, "15.85"),
        (figures.perplexity, 49_152.4, "49,152"),
        (figures.percent, 2 / 3, "66.7 %"),
        (figures.points, -0.0321, "−3.2"),
        (figures.points, 0.394, "+39.4"),
        (figures.nats, -0.19, "−0.1900"),
        (figures.ratio, 1.03124, "1.0312"),
        (figures.probability, 0.0004, "< 0.001"),
        (figures.probability, 0.0341, "0.034"),
    ],
)
def test_each_measure_has_its_form(form: object, value: float, text: str) -> None:
    assert form(value) == text  # type: ignore[operator]


@given(st.floats(0, 1), st.floats(0, 1), st.sampled_from(figures.FORMS))
def test_a_figure_with_its_interval_is_a_figure(low: float, high: float, form: object) -> None:
    ends = figures.interval((low, high), form)  # type: ignore[arg-type]
    if form is not figures.probability:
        assert is_figure(ends)
        assert is_figure(f"{form(low)} {ends}")  # type: ignore[operator]
    assert "%" not in ends
