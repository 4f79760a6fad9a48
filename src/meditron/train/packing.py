"""Examples packed into rows: sample k is a pure function of (examples, seed, k). S is the length of a row."""

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from itertools import accumulate

import numpy as np

from meditron.text.dialogue import TokenizedConversation
from meditron.train.samples import IGNORE, Row, shuffled

__all__ = ["Packed", "pack"]


def pack(sizes: Iterable[tuple[int, int]], length: int) -> list[list[int]]:
    """Put (name, size) one after another each into the fullest row of `length` that still has room for it.

    Best fit: D. S. Johnson, Fast algorithms for bin packing, J. Comput. Syst. Sci. 8 (1974) 272-314. A row's
    names stand in the order in which they came. No size may be above `length`.
    """
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (tokens left, row), in order
    for name, size in sizes:
        at = bisect_left(room, (size, 0))
        left, row = room.pop(at) if at < len(room) else (length, len(rows))
        if row == len(rows):
            rows.append([])
        rows[row].append(name)
        insort(room, (left - size, row))
    return rows


class Packed:
    """The rows of a run over examples: in each epoch every example once, in another order, packed anew.

    With `together=False` each example is a row of its own. Rows that are packed are filled up to `length`, so
    that all have one shape; the last batch is filled up with rows that teach nothing.
    """

    document_mask = True

    def __init__(
        self,
        examples: Sequence[tuple[str, TokenizedConversation]],
        *,
        name: str,
        length: int,
        epochs: int,
        batch_size: int,
        seed: int,
        together: bool = True,
    ) -> None:
        """`examples` are (id, tokens), none longer than `length` and at least one."""
        self._examples = examples
        self._name, self._length, self._seed, self._together = name, length, seed, together
        self._rows = [row for epoch in range(epochs) for row in self._epoch(epoch)]
        sizes = (sum(len(examples[index][1].ids) for index in row) for row in self._rows)
        self._ends = [0, *accumulate(sizes)]
        self._samples = -(-len(self._rows) // batch_size) * batch_size

    def _epoch(self, epoch: int) -> list[list[int]]:
        """The examples of each row of an epoch; the rows are shuffled too: the last are the emptiest."""
        key = f"{self._seed}/{self._name}/{epoch}"
        order = shuffled(len(self._examples), key).tolist()
        if not self._together:
            return [[index] for index in order]
        rows = pack(((index, len(self._examples[index][1].ids)) for index in order), self._length)
        return [rows[index] for index in shuffled(len(rows), f"{key}/rows")]

    def __len__(self) -> int:
        """Samples that are planned: whole batches."""
        return self._samples

    def __getitem__(self, k: int) -> Row:
        """Sample k."""
        if k >= len(self._rows):
            return self[0].muted()
        chosen = [self._examples[index] for index in self._rows[k]]
        sizes = [len(labelled.ids) for _, labelled in chosen]
        row = Row(
            ids_S=np.concatenate([labelled.ids for _, labelled in chosen]).astype(np.int64),
            targets_S=np.concatenate([_targets(labelled) for _, labelled in chosen]),
            document_ids_S=np.repeat(np.arange(len(sizes)), sizes),
            positions_S=np.concatenate([np.arange(size) for size in sizes]),
            source=self._name,
            documents=tuple(name for name, _ in chosen),
        )
        return row.padded(self._length) if self._together else row

    def tokens(self, consumed: int) -> int:
        """Tokens in the first `consumed` samples, without what only fills them up."""
        return self._ends[min(consumed, len(self._rows))]

    def epochs(self, consumed: int) -> dict[str, float]:
        """How often the examples have been read after `consumed` samples."""
        once = sum(len(labelled.ids) for _, labelled in self._examples)
        return {self._name: self.tokens(consumed) / once}

    @property
    def fill(self) -> float:
        """Share of the rows' places that hold a token of an example; 1 where each example is its own row."""
        return self._ends[-1] / (len(self._rows) * self._length) if self._together else 1.0


def _targets(labelled: TokenizedConversation) -> np.ndarray:
    """What each token of an example should predict: the next one where that is learned."""
    next_S = np.array([*labelled.ids[1:], IGNORE])
    return np.where([*labelled.learned[1:], False], next_S, IGNORE)
