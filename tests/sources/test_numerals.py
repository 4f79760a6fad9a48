"""Roman numerals of lists."""

import pytest

from meditron.sources.numerals import roman_numeral


@pytest.mark.parametrize(
    ("number", "numeral"),
    [(1, "i"), (4, "iv"), (9, "ix"), (14, "xiv"), (40, "xl"), (49, "xlix"), (99, "xcix"), (1994, "mcmxciv")],
)
def test_numerals(number: int, numeral: str) -> None:
    assert roman_numeral(number) == numeral
