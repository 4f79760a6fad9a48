"""Scoring requests packed into rows and batches so that no token is computed twice.

Three levels of sharing:
- A row holds a prefix once, followed by its continuations. A continuation sees the prefix and itself only, at
  the positions it would have directly after the prefix. The last token of a continuation is predicted and
  never read, so options of one token need no space.
- Rows whose prefixes begin alike (instructions, solved examples) share a KV cache of the common part.
- Common parts form a tree: rows that share a longer beginning with each other than with the rest extend the
  cache of the part that all share. A prompt that differs early therefore costs only its own tokens.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from meditron.engine.base import ScoringRequest

__all__ = ["Branch", "PackedRow", "batch_tensors", "pack_requests", "plan_branches", "row_batches"]

# Shapes: B rows of a batch, S sequence of queries, T sequence of keys.

_PREFIX, _PADDING = 0, -1  # segment ids of tokens that belong to no continuation

# Sharing a prefix saves tokens but needs one more forward pass, which reads every weight. A pass over a few
# tokens takes about as long as a pass over this many, so saving fewer tokens than this does not pay.
_PASS_TOKENS = 64


@dataclass(slots=True)
class ScoringTarget:
    """The predictions in a packed row that one scoring request needs."""

    request_index: int
    """Index of the request."""
    row_indices: list[int]
    """Indices in the row whose next-token distributions are needed."""
    ids: Sequence[int]
    """The token to score at each place."""


@dataclass(slots=True)
class PackedRow:
    """One row of a batch: a prefix followed by some of its continuations."""

    ids: list[int]
    positions: list[int]
    segment_ids: list[int]
    """0 for the prefix, then 1, 2, … for the continuations."""
    targets: list[ScoringTarget] = field(default_factory=list)

    @classmethod
    def from_prefix(cls, prefix: Sequence[int]) -> "PackedRow":
        """Create a row with a prefix and no continuation."""
        return cls(list(prefix), list(range(len(prefix))), [_PREFIX] * len(prefix))

    @property
    def prefix(self) -> list[int]:
        """The prefix tokens that the row contains, without those that `without_prefix_tokens` removed."""
        return self.ids[: self.segment_ids.count(_PREFIX)]

    def add_continuation(self, request: int, prefix_length: int, continuation: Sequence[int]) -> None:
        """Append a continuation."""
        inputs = list(continuation[:-1])
        start = len(self.ids)
        # The prefix's last token predicts the continuation's first token; each continuation token predicts
        # the next one.
        places = [prefix_length - 1, *range(start, start + len(inputs))][: len(continuation)]
        self.targets.append(ScoringTarget(request, places, continuation))
        self.ids += inputs
        self.positions += range(prefix_length, prefix_length + len(inputs))
        self.segment_ids += [len(self.targets)] * len(inputs)

    def without_prefix_tokens(self, count: int) -> "PackedRow":
        """Return the row without the first `count` tokens of its prefix; positions do not change."""
        if not count:
            return self
        targets = [
            ScoringTarget(t.request_index, [place - count for place in t.row_indices], t.ids)
            for t in self.targets
        ]
        return PackedRow(self.ids[count:], self.positions[count:], self.segment_ids[count:], targets)


@dataclass(slots=True)
class Branch:
    """One step of a plan: truncate the cache to `cached_length`, extend it by `ids`, then score `rows`."""

    cached_length: int
    ids: list[int]
    rows: list[PackedRow]

    @property
    def length(self) -> int:
        """Tokens in the cache when the rows are scored."""
        return self.cached_length + len(self.ids)


def pack_requests(requests: Sequence[ScoringRequest], max_tokens: int) -> list[PackedRow]:
    """Pack requests into rows of at most about `max_tokens`, in the order in which prefixes first occur."""
    requests_by_prefix: dict[tuple[int, ...], list[int]] = {}
    for index, (prefix, _) in enumerate(requests):
        requests_by_prefix.setdefault(tuple(prefix), []).append(index)
    rows: list[PackedRow] = []
    for prefix, indices in requests_by_prefix.items():
        row = PackedRow.from_prefix(prefix)
        for index in indices:
            continuation = requests[index][1]
            if row.targets and len(row.ids) + len(continuation) > max_tokens:
                rows.append(row)
                row = PackedRow.from_prefix(prefix)
            row.add_continuation(index, len(prefix), continuation)
        rows.append(row)
    return rows


def plan_branches(rows: Sequence[PackedRow]) -> list[Branch]:
    """Plan how rows share the beginnings of their prefixes: the radix tree of the prefixes, depth first.

    A row keeps at least the last token of its prefix, whose prediction is needed. A branch is shared by two
    or more rows or branches and reads at least `_PASS_TOKENS` tokens; the root may read fewer if enough rows
    share it. The plan needs one cache of `max(branch.length)` tokens, because a branch only ever extends the
    path to its parent.
    """
    prefixes = [row.prefix for row in rows]
    # In lexicographic order rows with a common beginning are neighbours, and a range of rows shares as many
    # tokens as its least similar neighbours. Sorting therefore gives the radix tree.
    order = sorted(range(len(rows)), key=prefixes.__getitem__)
    shared = [_common_prefix_length(prefixes[a], prefixes[b]) for a, b in pairwise(order)]
    common = min(shared, default=0)
    top = _split_by_shared_length(0, len(rows), shared, _PASS_TOKENS)
    # A short beginning that all rows share (a template's first words) is worth its own pass if enough rows
    # share it.
    start = common if common * (len(top) - 1) >= _PASS_TOKENS else 0
    branches: list[Branch] = []
    stack = [(0, start, 0, len(rows))]
    while stack:
        parent, depth, low, high = stack.pop()
        unshared_rows: list[int] = []
        for first, last in _split_by_shared_length(low, high, shared, depth + _PASS_TOKENS):
            if last - first == 1:
                unshared_rows.append(order[first])
            else:
                stack.append((depth, min(shared[first : last - 1]), first, last))
        ids = prefixes[order[low]][parent:depth] if depth else []
        # The rows keep their original order, so that batches, and with them the last bits of scores, do not
        # depend on the sorting.
        branches.append(
            Branch(parent, ids, [rows[index].without_prefix_tokens(depth) for index in sorted(unshared_rows)])
        )
    return [branch for branch in branches if branch.ids or branch.rows]


def _common_prefix_length(a: Sequence[int], b: Sequence[int]) -> int:
    """Return the length of the common prefix of two sequences, excluding the last token of each."""
    limit = min(len(a), len(b)) - 1
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y or i == limit), 0)


def _split_by_shared_length(low: int, high: int, shared: Sequence[int], depth: int) -> list[tuple[int, int]]:
    """Split a range of sorted rows into maximal ranges whose neighbours share at least `depth` tokens."""
    cuts = [low, *(i + 1 for i in range(low, high - 1) if shared[i] < depth), high]
    return [(first, last) for first, last in pairwise(cuts) if first < last]


def row_batches(rows: Sequence[PackedRow], max_tokens: int, cached: int = 0) -> Iterator[list[PackedRow]]:
    """Yield batches of rows of similar length, longest first, of about `max_tokens` tokens including padding.

    The `cached` tokens before the rows are not computed again, but each row of a batch has a copy of their
    keys and values, one block at a time: a batch has such copies of at most eight times `max_tokens` tokens,
    or those of a single row.
    """
    remaining = sorted(rows, key=lambda row: -len(row.ids))
    while remaining:
        width = len(remaining[0].ids)
        count = max(1, min(max_tokens // width, 8 * max_tokens // (cached + width)))
        yield remaining[:count]
        remaining = remaining[count:]


def batch_tensors(
    rows: Sequence[PackedRow], device: torch.device, cached: int = 0
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return ids and positions (B, S) of a batch, longest row first, and its mask (B, 1, S, T).

    The mask is true where a query may attend; all rows attend to the first T - S keys, which are the `cached`
    tokens. Shorter rows are padded on the right with tokens that no other token attends to. The mask is None
    if no row has a continuation: plain causal attention is faster and gives the same result.
    """
    width = len(rows[0].ids)

    def pad_rows(columns: Sequence[list[int]], value: int) -> Tensor:
        return torch.tensor([[*c, *[value] * (width - len(c))] for c in columns], device=device)

    ids_BS = pad_rows([row.ids for row in rows], 0)
    positions_BS = pad_rows([row.positions for row in rows], 0)
    if all(row.segment_ids[-1] == _PREFIX for row in rows):
        return ids_BS, positions_BS, None
    segments_BS = pad_rows([row.segment_ids for row in rows], _PADDING)
    keys_B1T = F.pad(segments_BS, (cached, 0), value=_PREFIX)[:, None]
    # A token sees the prefix and its own segment; `tril` removes what comes later.
    visible_BST = (keys_B1T == _PREFIX) | (keys_B1T == segments_BS[:, :, None])
    return ids_BS, positions_BS, visible_BST.tril(cached)[:, None]
