"""Pairs to be scored, packed: a prefix stands in a row once, and each of its continuations after it.

A continuation sees the prefix and itself alone, at the positions it would have right behind the prefix. A
continuation's last token is predicted and never read, so options of one token take no room at all. What all
prefixes begin with (instructions, solved examples) stands in no row: it is read once, before all rows.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from meditron.engine.base import Pair

__all__ = ["Row", "batches", "pack", "shared", "tensors"]

# Legend: B rows of a batch, S sequence of queries, T sequence of keys.

_PREFIX, _FILL = 0, -1  # segments that are no continuation
_WORTHWHILE = 64  # tokens: a pass over a few costs as much, for it reads every weight


@dataclass(slots=True)
class Row:
    """One prefix, less what is shared, with some of its continuations."""

    ids: list[int]
    positions: list[int]
    segments: list[int]
    """0 for the prefix, then 1, 2, … for the continuations."""
    asked: list[tuple[int, list[int], Sequence[int]]] = field(default_factory=list)
    """(index of the pair, places in the row whose predictions are asked for, the ids asked about there)."""

    @classmethod
    def begin(cls, prefix: Sequence[int], before: int) -> "Row":
        """A row of the prefix alone, of which `before` tokens are read before all rows."""
        kept = list(prefix[before:])
        return cls(kept, list(range(before, len(prefix))), [_PREFIX] * len(kept))

    def add(self, index: int, continuation: Sequence[int]) -> None:
        """Put a continuation behind; `index` is the pair's."""
        read = list(continuation[:-1])
        first, last = len(self.ids), self.segments.count(_PREFIX) - 1
        places = [last, *range(first, first + len(read))][: len(continuation)]
        self.asked.append((index, places, continuation))
        segment = len(self.asked)
        self.ids += read
        self.positions += range(self.positions[last] + 1, self.positions[last] + 1 + len(read))
        self.segments += [segment] * len(read)


def shared(pairs: Sequence[Pair]) -> Sequence[int]:
    """What all prefixes begin with and none consists of; nothing where to read it once spares little."""
    prefixes = {tuple(prefix) for prefix, _ in pairs}
    if not prefixes:
        return ()
    first, last = min(prefixes), max(prefixes)  # in lexical order: what these two share, all between them do
    most = min(map(len, prefixes)) - 1  # the last token's prediction is asked for
    count = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b or i == most), 0)
    return first[:count] if count * (len(prefixes) - 1) >= _WORTHWHILE else ()


def pack(pairs: Sequence[Pair], room: int, before: int = 0) -> list[Row]:
    """The pairs in rows of at most about `room` tokens, in the order in which their prefixes first come.

    The first `before` tokens of every prefix are left out.
    """
    by_prefix: dict[tuple[int, ...], list[int]] = {}
    for index, (prefix, _) in enumerate(pairs):
        by_prefix.setdefault(tuple(prefix), []).append(index)
    rows: list[Row] = []
    for given, indices in by_prefix.items():
        row = Row.begin(given, before)
        for index in indices:
            continuation = pairs[index][1]
            if row.asked and len(row.ids) + len(continuation) > room:
                rows.append(row)
                row = Row.begin(given, before)
            row.add(index, continuation)
        rows.append(row)
    return rows


def batches(rows: Sequence[Row], room: int, before: int = 0) -> Iterator[list[Row]]:
    """Rows of like length together, longest first, about `room` tokens at a time, filling counted.

    What is read before all rows takes no room, but each row of a batch holds a copy of its keys and values,
    a block at a time: of those there are at most eight times as many.
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

    `before` tokens (T less S) are read before all rows, and every token sees them. Shorter rows are filled on
    the right, where nothing looks. The mask is None where no continuation stands in a row: plain causal
    attention is faster and the same.
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
    return ids_BS, positions_BS, F.pad(seen_BST.tril(), (before, 0), value=True)[:, None]
