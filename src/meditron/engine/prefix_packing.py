"""Pairs to be scored, packed: a prefix stands in a row once, and each of its continuations after it.

A continuation sees the prefix and itself alone, at the positions it would have right behind the prefix. A
continuation's last token is predicted and never read, so options of one token take no room at all. What all
prefixes begin with (instructions, solved examples) is lifted out of the rows, to be read once before them.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from meditron.engine.base import ScoringRequest

__all__ = ["Row", "batches", "pack", "split_common_prefix", "tensors"]

# Legend: B rows of a batch, S sequence of queries, T sequence of keys.

_PREFIX, _FILL = 0, -1  # segments that are no continuation
_WORTHWHILE = 64  # tokens: a pass over a few costs as much, for it reads every weight


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

    def without(self, count: int) -> "Row":
        """The row less the first `count` tokens of its prefix; positions stay what they are."""
        asked = [(index, [place - count for place in places], ids) for index, places, ids in self.asked]
        return Row(self.ids[count:], self.positions[count:], self.segments[count:], asked)


def pack(pairs: Sequence[ScoringRequest], room: int) -> list[Row]:
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


def split_common_prefix(rows: Sequence[Row]) -> tuple[list[int], list[Row]]:
    """What the prefixes of all rows begin with, and the rows without it; nothing where that spares little.

    Every row keeps its prefix's last token, whose prediction is asked for.
    """
    prefixes = [row.ids[: row.segments.count(_PREFIX)] for row in rows]
    first, last = min(prefixes, default=[]), max(prefixes, default=[])  # what these share, all do
    most = min(map(len, prefixes), default=0) - 1
    count = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b or i == most), 0)
    if count * (len(rows) - 1) < _WORTHWHILE:
        return [], list(rows)
    return first[:count], [row.without(count) for row in rows]


def batches(rows: Sequence[Row], room: int, before: int = 0) -> Iterator[list[Row]]:
    """Rows of like length together, longest first, about `room` tokens at a time, filling counted.

    The `before` tokens lifted out take no room, but each row of a batch has a copy of their keys and values,
    a block at a time: of those there are at most eight times as many, or one row's.
    """
    waiting = sorted(rows, key=lambda row: -len(row.ids))
    while waiting:
        width = len(waiting[0].ids)
        count = max(1, min(room // width, 8 * room // (before + width)))
        yield waiting[:count]
        waiting = waiting[count:]


def tensors(
    rows: Sequence[Row], device: torch.device, before: int = 0
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Ids and positions (B, S) of a batch, longest row first, and its mask (B, 1, S, T), true where seen.

    All see the `before` tokens (T less S) lifted out. Shorter rows are filled on the right, where nothing
    looks. The mask is None where no continuation stands in a row: plain causal attention is faster and the
    same.
    """
    width = len(rows[0].ids)

    def filled(columns: Sequence[list[int]], filler: int) -> Tensor:
        return torch.tensor([[*c, *[filler] * (width - len(c))] for c in columns], device=device)

    ids_BS = filled([row.ids for row in rows], 0)
    positions_BS = filled([row.positions for row in rows], 0)
    if all(row.segments[-1] == _PREFIX for row in rows):
        return ids_BS, positions_BS, None
    segments_BS = filled([row.segments for row in rows], _FILL)
    keys_B1T = F.pad(segments_BS, (before, 0), value=_PREFIX)[:, None]
    seen_BST = (keys_B1T == _PREFIX) | (keys_B1T == segments_BS[:, :, None])
    return ids_BS, positions_BS, seen_BST.tril(before)[:, None]
