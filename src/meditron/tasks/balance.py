"""Assignment of items to classes so that every class gets the same number of items, as many as possible.

An item can belong to several classes (an abstract has a sentence of methods and one of results), but is used
for only one of them. By Hall's theorem (1935), every class can get k items if and only if, for every set of
n classes, at least k·n items belong to one of these classes. There are few classes, so all sets are checked.
An item is used for a class only if the condition still holds afterwards. A greedy choice without this check
can give fewer items per class.
"""

from collections import Counter, deque
from collections.abc import Iterable, Iterator
from itertools import combinations

__all__ = ["balance_classes"]

_Classes = frozenset[int]


def balance_classes(items: Iterable[tuple[str, _Classes]]) -> list[tuple[str, int]]:
    """Assign items to classes.

    Args:
        items: Items with the classes that they belong to. Items without a class are left out, and so are
            classes without an item.

    Returns:
        Pairs (item, class), one of each class in turn, the rarest class first. If several items can be used
        for a class, the first is taken. Time is linear in the items and doubles with each class.
    """
    queues_by_classes: dict[_Classes, deque[tuple[int, str]]] = {}
    for position, (item, classes) in enumerate(items):
        if classes:
            queues_by_classes.setdefault(classes, deque()).append((position, item))
    return list(_assign_in_rounds(queues_by_classes))


def _assign_in_rounds(queues_by_classes: dict[_Classes, deque[tuple[int, str]]]) -> Iterator[tuple[str, int]]:
    item_counts: Counter[int] = Counter()
    for classes, items in queues_by_classes.items():
        item_counts.update(dict.fromkeys(classes, len(items)))
    order = sorted(item_counts, key=lambda label: (item_counts[label], label))
    slack = _ClassSlack(queues_by_classes, order)
    for _ in range(slack.rounds):
        for label in order:
            usable = (
                classes
                for classes, items in queues_by_classes.items()
                if items and slack.can_use(classes, label)
            )
            # Of the usable items the first in the input order; the items of one queue are in this order
            # already.
            chosen = min(usable, key=lambda classes: queues_by_classes[classes][0])
            slack.count_use(chosen, label)
            yield queues_by_classes[chosen].popleft()[1], label


class _ClassSlack:
    """Number of spare items of every set of classes: its unused items minus the items that it still needs."""

    def __init__(self, queues_by_classes: dict[_Classes, deque[tuple[int, str]]], order: list[int]) -> None:
        sets = [
            frozenset(labels) for size in range(1, len(order) + 1) for labels in combinations(order, size)
        ]
        reach = {
            labels: sum(len(items) for classes, items in queues_by_classes.items() if classes & labels)
            for labels in sets
        }
        self.rounds = min((reach[labels] // len(labels) for labels in sets), default=0)
        """Number of items that each class gets."""
        self._slack = {labels: reach[labels] - self.rounds * len(labels) for labels in sets}
        self._tight = {labels for labels, slack in self._slack.items() if not slack}

    def can_use(self, classes: _Classes, label: int) -> bool:
        """Return True if every set keeps enough items when an item of these classes is used for `label`."""
        # A set without spare items must not lose one: an item of the set may only be used for a class in the
        # set.
        return label in classes and all(label in labels or not classes & labels for labels in self._tight)

    def count_use(self, classes: _Classes, label: int) -> None:
        """Count an item of these classes as used for `label`."""
        for labels in self._slack:
            if classes & labels and label not in labels:
                self._slack[labels] -= 1
                if not self._slack[labels]:
                    self._tight.add(labels)
