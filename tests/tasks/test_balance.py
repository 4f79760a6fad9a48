"""Balance: equal classes, as many as a maximum flow finds, whatever the items."""

from collections import Counter

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import maximum_flow

from meditron.tasks.balance import balance_classes

Items = list[tuple[str, frozenset[int]]]
KINDS = st.lists(st.frozensets(st.integers(0, 4), max_size=5), max_size=40)
ITEMS = KINDS.map(lambda kinds: [(f"item {n}", labels) for n, labels in enumerate(kinds)])


def most(items: Items) -> int:
    """How many of each class can be had at once, by flows from items through classes to a sink."""
    classes = sorted(frozenset().union(*(labels for _, labels in items)))
    if not classes:
        return 0
    for wanted in range(len(items) // len(classes), 0, -1):
        size = len(items) + len(classes) + 2
        room = np.zeros((size, size), dtype=np.int32)
        for n, (_, labels) in enumerate(items):
            room[-2, n] = 1
            for model in labels:
                room[n, len(items) + classes.index(model)] = 1
        room[len(items) : -2, -1] = wanted
        if maximum_flow(csr_matrix(room), size - 2, size - 1).flow_value == wanted * len(classes):
            return wanted
    return 0


@settings(max_examples=50)
@given(ITEMS)
def test_every_class_equally_often_and_as_often_as_can_be(items: Items) -> None:
    chosen = balance_classes(items)
    kinds = dict(items)
    classes = frozenset().union(*kinds.values())
    assert len({item for item, _ in chosen}) == len(chosen)
    assert all(model in kinds[item] for item, model in chosen)
    assert Counter(model for _, model in chosen) == {model: most(items) for model in classes if most(items)}


@settings(max_examples=50)
@given(ITEMS)
def test_every_beginning_is_balanced(items: Items) -> None:
    chosen = balance_classes(items)
    for end in range(len(chosen)):
        counts = Counter({model: 0 for _, model in chosen} | Counter(model for _, model in chosen[:end]))
        assert max(counts.values()) - min(counts.values()) <= 1


def test_a_common_class_leaves_items_for_a_rare_class() -> None:
    items = [("a", frozenset({0, 1})), ("b", frozenset({0}))]
    assert sorted(balance_classes(items)) == [("a", 1), ("b", 0)]
    assert sorted(balance_classes(items[::-1])) == [("a", 1), ("b", 0)]


def test_without_need_the_first_come_first() -> None:
    every = frozenset(range(5))
    chosen = balance_classes((str(n), every) for n in range(20))
    assert [item for item, _ in chosen] == [str(n) for n in range(20)]
    assert balance_classes([]) == balance_classes([("a", frozenset())]) == []
