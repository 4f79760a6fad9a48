"""Pairs to be scored, packed: a prefix stands in a row once, and each of its continuations after it.

A continuation sees the prefix and itself alone, at the positions it would have right behind the prefix. A
continuation's last token is predicted and never read, so options of one token take no room at all.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from meditron.engine.base import Pair

__all__ = ["Row", "batches", "pack", "tensors"]

# Legend: B rows of a batch, S sequence of queries, T sequence of keys.

_PREFIX, _FILL = 0, -1  # segments that are no continuation


@dataclass(slots=True)
class Row:
    """One prefix with some of its continuations."""

    ids: list[int]
    positions: list[int]
    segments: list[int]
    """0 for the prefix, then 1, 2, … for the continuations."""
    asked: list[tuple[int, list[int], Sequence[int]]] = field(default_factory=list)
    """(index of the pair, places in the row whose predictions are asked for, the ids asked about there)."""

    @classmethod
    def begin(cls, prefix: Sequence[int]) -> "Row":
        """A row of the prefix alone."""
        return cls(list(prefix), list(range(len(prefix))), [_PREFIX] * len(prefix))

    def add(self, index: int, prefix: int, continuation: Sequence[int]) -> None:
        """Put a continuation behind; `prefix` is the prefix's length."""
        read = list(continuation[:-1])
        first = len(self.ids)
        places = [prefix - 1, *range(first, first + len(read))][: len(continuation)]
        self.asked.append((index, places, continuation))
        segment = len(self.asked)
        self.ids += read
        self.positions += range(prefix, prefix + len(read))
        self.segments += [segment] * len(read)


def pack(pairs: Sequence[Pair], room: int) -> list[Row]:
    """The pairs in rows of at most about `room` tokens, in the order in which their prefixes first come."""
    by_prefix: dict[tuple[int, ...], list[int]] = {}
    for index, (prefix, _) in enumerate(pairs):
        by_prefix.setdefault(tuple(prefix), []).append(index)
    rows: list[Row] = []
    for given, indices in by_prefix.items():
        row = Row.begin(given)
        for index in indices:
            continuation = pairs[index][1]
            if row.asked and len(row.ids) + len(continuation) > room:
                rows.append(row)
                row = Row.begin(given)
            row.add(index, len(given), continuation)
        rows.append(row)
    return rows


def batches(rows: Sequence[Row], room: int) -> Iterator[list[Row]]:
    """Rows of like length together, longest first, about `room` tokens at a time, filling counted."""
    waiting = sorted(rows, key=lambda row: -len(row.ids))
    while waiting:
        count = max(1, room // len(waiting[0].ids))
        yield waiting[:count]
        waiting = waiting[count:]


def tensors(rows: Sequence[Row], device: torch.device) -> tuple[Tensor, Tensor, Tensor | None]:
    """Ids and positions (B, S) of a batch, longest row first, and its mask (B, 1, S, S), true where seen.

    Shorter rows are filled on the right, where nothing looks. The mask is None where no continuation stands
    in a row: plain causal attention is faster and the same.
    """
    width = len(rows[0].ids)

    def filled(columns: Sequence[list[int]], filler: int) -> Tensor:
        return torch.tensor([[*c, *[filler] * (width - len(c))] for c in columns], device=device)

    ids_BS = filled([row.ids for row in rows], 0)
    positions_BS = filled([row.positions for row in rows], 0)
    if all(row.segments[-1] == _PREFIX for row in rows):
        return ids_BS, positions_BS, None
    segments_BS = filled([row.segments for row in rows], _FILL)
    keys_B1T = segments_BS[:, None, :]
    seen_BST = (keys_B1T == _PREFIX) | (keys_B1T == segments_BS[:, :, None])
    return ids_BS, positions_BS, seen_BST.tril()[:, None]
