"""Roman numerals, with which lists are numbered."""

__all__ = ["roman_numeral"]

_DIGITS = (
    *((1_000, "m"), (900, "cm"), (500, "d"), (400, "cd"), (100, "c"), (90, "xc"), (50, "l"), (40, "xl")),
    *((10, "x"), (9, "ix"), (5, "v"), (4, "iv"), (1, "i")),
)


def roman_numeral(number: int) -> str:
    """Return a number above 0 as a Roman numeral in lower case: `xiv`."""
    text = ""
    for value, digits in _DIGITS:
        text += digits * (number // value)
        number %= value
    return text
