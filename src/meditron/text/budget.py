"""Limits on the time and memory that the rendering of one chat template may use.

Each operation of a template costs steps in proportion to the size of its operands and its result; the limit
on steps bounds the time. The size of a value is about the number of characters that printing it would give; a
part that occurs several times counts each time. No value may have more than `MAX_TEXT` characters or
`MAX_ITEMS` parts. If an operation could give a result much larger than its operands, the result's size is
bounded before the operation runs. All values of one rendering together may have at most `MAX_MADE`
characters, which bounds memory even if a template keeps every value.
"""

import re
import string
from collections.abc import Callable, ItemsView, Iterable, Iterator, KeysView, Mapping, Sequence, ValuesView
from itertools import islice
from operator import length_hint
from typing import Any, TypeVar

from jinja2.exceptions import SecurityError
from jinja2.runtime import Undefined
from jinja2.utils import Cycler, Joiner, Namespace

__all__ = [
    "MAX_ITEMS",
    "MAX_MADE",
    "MAX_STEPS",
    "MAX_TEXT",
    "Budget",
    "MeasuredItems",
    "check_call",
    "check_join",
    "check_operands",
    "prints_within_measure",
    "refuse_longer",
]

_T = TypeVar("_T")
MAX_STEPS = 200_000
MAX_TEXT = 1 << 22  # characters of the text, and of any value on the way
MAX_ITEMS = 1 << 16  # parts of any value, lists within lists written out
MAX_MADE = 1 << 26  # characters of all values that one rendering makes: 256 MB at four bytes each
_TEXT_PER_STEP, _TEXT_PER_ITEM = 1024, 64
_MAX_BITS = 1 << 12  # of an integer: multiplying and printing take time in the square of its length
_MAX_DECIMALS = 400  # a float has no more; `round` of an integer would compute a power of ten
_MAX_TIME_FORMAT = 256  # characters
_LINE_ENDS = "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"
# Filters that iterate over their operand. If it is a text, each of its characters becomes a value of its own.
_ITERATING = frozenset(
    {
        "batch",
        "dictsort",
        "groupby",
        "items",
        "join",
        "list",
        "map",
        "max",
        "min",
        "random",
        "reject",
        "rejectattr",
        "select",
        "selectattr",
        "slice",
        "sort",
        "sum",
        "unique",
    }
)
_CONVERSION = re.compile(r"%(?:\([^)]*\))?[-#0 +]*(\*|\d+)?(?:\.(\*|\d+)?)?")
_NUMBER_WIDTH = 330  # characters of a printed float


class Budget:
    """Steps and characters used by one rendering; a hidden variable of the template contains it."""

    KEY = "budget of steps"  # with spaces: a template cannot write this name

    def __init__(self) -> None:
        self.steps = MAX_STEPS
        self.made = 0
        self.written = 0

    def charge_steps(self, steps: int) -> None:
        """Subtract `steps` from the remaining steps; raise SecurityError if too few are left."""
        self.steps -= steps
        if self.steps < 0:
            raise SecurityError(f"takes more than {MAX_STEPS:,} steps")

    def measure_and_charge(self, value: object) -> int:
        """Return a value's size and charge steps in proportion; SecurityError if the value is too large."""
        size = len(value) if type(value) is str else _estimated_length(value)
        if size > MAX_TEXT:
            refuse_longer(size)
        self.steps -= 1 + size // _TEXT_PER_STEP
        if self.steps < 0:
            self.charge_steps(0)
        return size

    def charge_value(self, value: _T) -> _T:
        """Charge a newly computed value to the limits on steps and characters, and return the value."""
        self.made += self.measure_and_charge(value)
        if self.made > MAX_MADE:
            raise SecurityError(f"makes values of more than {MAX_MADE:,} characters")
        return value

    def charge_reading(self, value: object) -> None:
        """Charge the steps of an operation that reads every part of `value`."""
        if isinstance(value, str):
            self.charge_steps(len(value) // _TEXT_PER_STEP)
        elif isinstance(value, list | tuple | KeysView | ValuesView | ItemsView):
            self.charge_steps(_estimated_length(value) // _TEXT_PER_STEP)

    def charge_output(self, piece: str) -> None:
        """Charge a piece of the rendered text; raise SecurityError if the whole text becomes too long."""
        self.charge_steps(1)
        self.written += len(piece)
        refuse_longer(self.written)


class MeasuredItems(Iterator[Any]):
    """Items of a generator, all computed at once so that they can be measured; iterated only once."""

    def __init__(self, items: Iterable[Any]) -> None:
        self._items = _collect_within_limits(items)
        self._at = 0

    def __length_hint__(self) -> int:
        """Return the number of all items."""
        return len(self._items)

    def __next__(self) -> Any:  # noqa: ANN401
        """Return the next item."""
        if self._at == len(self._items):
            raise StopIteration
        self._at += 1
        return self._items[self._at - 1]


def _collect_within_limits(items: Iterable[Any]) -> list[Any]:
    """Return the items as a list; raise SecurityError as soon as there are too many or they are too large."""
    values: list[Any] = []
    size = 0
    for item in islice(items, MAX_ITEMS + 1):
        refuse_longer(size := size + (len(item) if isinstance(item, str) else _estimated_length(item)))
        values.append(item)
    if len(values) > MAX_ITEMS:
        raise SecurityError(f"makes a value of more than {MAX_ITEMS:,} parts")
    return values


def refuse_longer(count: int) -> None:
    """Raise SecurityError if a value has more characters than allowed."""
    if count > MAX_TEXT:
        raise SecurityError(f"makes more than {MAX_TEXT:,} characters")


def prints_within_measure(value: object) -> bool:
    """Return whether printing a value gives no more characters than its measured size."""
    return isinstance(value, str | int | float | Undefined) or value is None


def _estimated_length(value: object) -> int:
    """Estimate the number of characters of a value's printed form; SecurityError if there are too many."""
    if isinstance(value, str):
        refuse_longer(len(value))
        return len(value)
    # A loop is used instead of recursion, because a template can nest lists deeper than Python's stack.
    total, items, left = 0, 0, [value]
    while left:
        item = left.pop()
        if isinstance(item, str):
            total += len(item)
        elif isinstance(item, int):
            if item.bit_length() > _MAX_BITS:
                raise SecurityError(f"makes a number of more than {_MAX_BITS:,} bits")
        else:
            left += _parts_of_value(item)
        items += 1
        if items > MAX_ITEMS or len(left) > 2 * MAX_ITEMS:
            raise SecurityError(f"makes a value of more than {MAX_ITEMS:,} parts")
        refuse_longer(total)
    return total + items * _TEXT_PER_ITEM


def _parts_of_value(value: object) -> Iterable[object]:
    """Return the parts of a container that a template can access or print."""
    if isinstance(value, Namespace):
        value = value._Namespace__attrs
    if isinstance(value, Mapping):
        return [part for pair in islice(value.items(), MAX_ITEMS) for part in pair]
    if isinstance(value, MeasuredItems):
        return value._items
    if isinstance(value, Cycler):
        return value.items
    if isinstance(value, Joiner):
        return [value.sep]
    if isinstance(value, list | tuple | set | frozenset | KeysView | ValuesView | ItemsView | range):
        return islice(value, MAX_ITEMS + 1)
    return []


def check_operands(operator: str, left: Any, right: Any) -> None:  # noqa: ANN401
    """Raise SecurityError if the result of `left operator right` could be huge or slow to compute."""
    if isinstance(left, int) and isinstance(right, int):
        lengths = left.bit_length(), right.bit_length()
        bits = {"*": sum(lengths), "**": lengths[0] * abs(right)}
        if max(bits.get(operator, 0), *lengths) > _MAX_BITS:
            raise SecurityError(f"makes a number of more than {_MAX_BITS:,} bits")
    elif operator == "*":
        count, other = (left, right) if isinstance(left, int) else (right, left)
        if isinstance(count, int) and isinstance(other, str | list | tuple):
            refuse_longer(len(other) * max(count, 0))
    elif operator == "%" and isinstance(left, str):
        _check_conversions(left, right)


def check_call(name: str, owner: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:  # noqa: ANN401
    """Raise SecurityError if the result of `owner.name(*args)` or `owner|name(*args)` could be huge.

    The filter `format` is named `%` in this function, to tell it from the method `format`, whose syntax
    differs. Functions that this function does not check return at most a small multiple of their operands.
    """
    values = (*args, *kwargs.values())
    if name in _ITERATING and isinstance(owner, str) and len(owner) > MAX_ITEMS:
        raise SecurityError(f"makes a value of more than {MAX_ITEMS:,} parts")
    if name in _WIDENED_PARTS:
        widths = (len(v) if isinstance(v, str) else abs(v) for v in values if isinstance(v, int | str))
        refuse_longer(max(widths, default=0) * _WIDENED_PARTS[name](owner))
    elif name == "replace":
        text, old, new = (str(v) for v in (owner, *_replace_arguments(args, kwargs)))
        refuse_longer(len(text) + text.count(old) * len(new))
    elif name == "%":
        _check_conversions(str(owner), values)
    elif name in ("format", "format_map"):
        _check_format_fields(str(owner), values)
    elif name == "round" and any(isinstance(v, int) and abs(v) > _MAX_DECIMALS for v in values):
        raise SecurityError(f"rounds to more than {_MAX_DECIMALS} places")
    elif name == "sum" and not all(isinstance(v, int | float | str | None) for v in values):
        raise SecurityError("sums lists")  # each addition copies: quadratic time
    elif name == "strftime_now" and any(len(str(v)) > _MAX_TIME_FORMAT for v in values):
        raise SecurityError(f"formats the time with more than {_MAX_TIME_FORMAT} characters")


def check_join(separator: str, items: Iterable[object]) -> None:
    """Raise SecurityError if the separators make a joined text too long; the items were measured before."""
    refuse_longer(len(separator) * length_hint(items))


def _count_lines(value: object) -> int:
    return 1 + sum(map(value.count, _LINE_ENDS)) if isinstance(value, str) else 1


def _count_tabs(value: object) -> int:
    return 1 + value.count("\t") if isinstance(value, str) else 1


def _count_parts(value: object) -> int:
    return 1 + _estimated_length(value) // _TEXT_PER_ITEM


def _count_one(_: object) -> int:
    return 1


# Methods and filters that pad parts of a value to a width, or insert a text between them, given as an
# argument. Each has a function that returns the number of these parts in the value.
_WIDENED_PARTS: Mapping[str, Callable[[object], int]] = {
    "batch": _count_parts,
    "center": _count_one,
    "expandtabs": _count_tabs,
    "indent": _count_lines,
    "ljust": _count_one,
    "rjust": _count_one,
    "slice": _count_parts,
    "tojson": _count_parts,
    "truncate": _count_one,
    "zfill": _count_one,
}


def _replace_arguments(args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, Any]:
    old = args[0] if args else kwargs.get("old", "")
    return old, args[1] if len(args) > 1 else kwargs.get("new", "")


def _check_conversions(template: str, values: object) -> None:
    """Check the length of a text formatted by `%` or by the filter `format`."""
    conversions = _CONVERSION.findall(template)
    _check_formatted_length(
        template, [width for pair in conversions for width in pair if width], len(conversions), values
    )


def _check_format_fields(template: str, values: object) -> None:
    """Check the length of a text formatted by the method `format`."""
    parsed = islice(string.Formatter().parse(template), MAX_ITEMS + 1)
    fields = [spec or "" for _, name, spec, _ in parsed if name is not None]
    if any("{" in spec for spec in fields):
        raise SecurityError("formats with a width of its own")
    _check_formatted_length(template, re.findall(r"\d+", " ".join(fields)), len(fields), values)


def _check_formatted_length(template: str, widths: Sequence[str], count: int, values: object) -> None:
    """Raise SecurityError if the text would be too long with all values printed by each of `count` fields."""
    if any(width == "*" or len(width) > len(str(MAX_TEXT)) for width in widths):
        raise SecurityError("formats with a width of its own")
    longest = _estimated_length(values) + _NUMBER_WIDTH if count else 0
    refuse_longer(len(template) + count * longest + sum(map(int, widths)))
