"""Assignment of items to classes so that every class is equally frequent, as often as the items allow.

An item can belong to several classes (an abstract has a sentence of methods and one of results), but is used
for only one of them. By Hall's theorem (1935), k items of each class exist exactly if, for every set of
classes, the items that belong to one of them number at least k times the set's size. The classes are few, so
all sets are examined; choosing only items that leave no set short then reaches that k, which a greedy choice
can miss.
"""

from collections import Counter, deque
from collections.abc import Iterable, Iterator
from itertools import combinations

__all__ = ["balanced"]

_Classes = frozenset[int]


def balanced(items: Iterable[tuple[str, _Classes]]) -> list[tuple[str, int]]:
    """Assign items to classes.

    Args:
        items: Items with the classes that they belong to. Items without a class are left out, and so are
            classes without an item.

    Returns:
        (item, class), one of each class in turn, the rarest class first. If several items would do, the
        first is taken. Time grows with the items, and doubles with each class.
    """
    queues: dict[_Classes, deque[tuple[int, str]]] = {}
    for position, (item, classes) in enumerate(items):
        if classes:
            queues.setdefault(classes, deque()).append((position, item))
    return list(_rounds(queues))


def _rounds(queues: dict[_Classes, deque[tuple[int, str]]]) -> Iterator[tuple[str, int]]:
    counts: Counter[int] = Counter()
    for classes, items in queues.items():
        counts.update(dict.fromkeys(classes, len(items)))
    order = sorted(counts, key=lambda label: (counts[label], label))
    slack = _Slack(queues, order)
    for _ in range(slack.rounds):
        for label in order:
            usable = (classes for classes, items in queues.items() if items and slack.allows(classes, label))
            chosen = min(usable, key=lambda classes: queues[classes][0])
            slack.take(chosen, label)
            yield queues[chosen].popleft()[1], label


class _Slack:
    """For every set of classes, the number of its items beyond those that are still needed."""

    def __init__(self, queues: dict[_Classes, deque[tuple[int, str]]], order: list[int]) -> None:
        sets = [
            frozenset(labels) for size in range(1, len(order) + 1) for labels in combinations(order, size)
        ]
        reach = {
            labels: sum(len(items) for classes, items in queues.items() if classes & labels)
            for labels in sets
        }
        self.rounds = min((reach[labels] // len(labels) for labels in sets), default=0)
        """Number of items of each class."""
        self._slack = {labels: reach[labels] - self.rounds * len(labels) for labels in sets}
        self._tight = {labels for labels, slack in self._slack.items() if not slack}

    def allows(self, classes: _Classes, label: int) -> bool:
        """Return True if an item of these classes can be used for `label` without leaving a set short."""
        # A tight set loses an item if the item belongs to it but is used for a class outside of it.
        return label in classes and all(label in labels or not classes & labels for labels in self._tight)

    def take(self, classes: _Classes, label: int) -> None:
        """Count an item of these classes as used for `label`."""
        for labels in self._slack:
            if classes & labels and label not in labels:
                self._slack[labels] -= 1
                if not self._slack[labels]:
                    self._tight.add(labels)
