"""One class for each item, every class equally often: as often as the items allow, which greed misses.

An item can stand for several classes (an abstract has a sentence of methods and one of results), but only for
one at a time. By Hall's theorem (1935), k items of each class can be had exactly when, for every set of
classes, at least k times its size of items can stand for one of them. The classes are few, so all sets are
looked at; picking only what leaves none of them short then reaches that k.
"""

from collections import Counter, deque
from collections.abc import Iterable, Iterator
from itertools import combinations

__all__ = ["balanced"]

_Classes = frozenset[int]


def balanced(items: Iterable[tuple[str, _Classes]]) -> list[tuple[str, int]]:
    """Items with a class for each: one of each class in turn, the rarest first.

    Items without a class are left out, and classes without an item. Where the items' order leaves a choice,
    the earlier is taken. Time grows with the items, and doubles with each class.
    """
    waiting: dict[_Classes, deque[tuple[int, str]]] = {}
    for place, (item, classes) in enumerate(items):
        if classes:
            waiting.setdefault(classes, deque()).append((place, item))
    return list(_rounds(waiting))


def _rounds(waiting: dict[_Classes, deque[tuple[int, str]]]) -> Iterator[tuple[str, int]]:
    common: Counter[int] = Counter()
    for classes, items in waiting.items():
        common.update(dict.fromkeys(classes, len(items)))
    order = sorted(common, key=lambda one: (common[one], one))
    spare = _Spare(waiting, order)
    for _ in range(spare.rounds):
        for one in order:
            fits = (classes for classes, items in waiting.items() if items and spare.allows(classes, one))
            chosen = min(fits, key=lambda classes: waiting[classes][0])
            spare.take(chosen, one)
            yield waiting[chosen].popleft()[1], one


class _Spare:
    """For every set of classes: how many items can stand for one of them beyond those still needed."""

    def __init__(self, waiting: dict[_Classes, deque[tuple[int, str]]], order: list[int]) -> None:
        sets = [frozenset(some) for size in range(1, len(order) + 1) for some in combinations(order, size)]
        reach = {some: sum(len(items) for kinds, items in waiting.items() if kinds & some) for some in sets}
        self.rounds = min((reach[some] // len(some) for some in sets), default=0)
        """How many items each class gets."""
        self._of = {some: reach[some] - self.rounds * len(some) for some in sets}
        self._short = {some for some, spare in self._of.items() if not spare}

    def allows(self, classes: _Classes, one: int) -> bool:
        """Whether an item of these classes can be taken for this one of them and none then falls short."""
        return one in classes and all(one in some or not classes & some for some in self._short)

    def take(self, classes: _Classes, one: int) -> None:
        """Count an item of these classes as taken for this one of them."""
        for some in self._of:
            if classes & some and one not in some:
                self._of[some] -= 1
                if not self._of[some]:
                    self._short.add(some)
