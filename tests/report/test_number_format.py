"""Measured values as people read them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from meditron.core.units import is_numeric_cell
from meditron.report import number_format


@pytest.mark.parametrize(
    ("form", "value", "text"),
    [
        (number_format.count, 20_788, "20,788"),
        (number_format.decimal, 0.0001, "0.0001"),
        (number_format.decimal, 12.3456, "12.35"),
        (number_format.decimal, 61_440, "61,440"),
        (number_format.decimal, 1.5e-8, "1.5e-08"),
        (number_format.decimal, -0.25, "−0.25"),
        (number_format.perplexity, 15.8539, "15.85"),
        (number_format.perplexity, 49_152.4, "49,152"),
        (number_format.percent, 2 / 3, "66.7 %"),
        (number_format.percent, 1e304, "1e+306 %"),
        (number_format.points, -0.0321, "−3.2"),
        (number_format.points, 0.394, "+39.4"),
        (number_format.nats, -0.19, "−0.1900"),
        (number_format.ratio, 1.03124, "1.0312"),
        (number_format.ratio, 1e304, "1e+304"),
        (number_format.probability, 0.0004, "< 0.001"),
        (number_format.probability, 0.0341, "0.034"),
    ],
)
def test_each_measure_has_its_form(form: object, value: float, text: str) -> None:
    assert form(value) == text  # type: ignore[operator]


@given(st.floats(0, 1), st.floats(0, 1), st.sampled_from(number_format.FORMATS))
def test_a_figure_with_its_interval_is_a_figure(low: float, high: float, form: object) -> None:
    ends = number_format.interval((low, high), form)  # type: ignore[arg-type]
    if form is not number_format.probability:
        assert is_numeric_cell(ends)
        assert is_numeric_cell(f"{form(low)} {ends}")  # type: ignore[operator]
    assert "%" not in ends
