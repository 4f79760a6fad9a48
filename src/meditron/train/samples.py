"""What the loop reads: rows of tokens with their targets. S is the length of a row in tokens."""

import hashlib
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["IGNORE", "Row", "Samples", "shuffled"]

IGNORE = -100
"""The target that counts for nothing."""


@dataclass(frozen=True)
class Row:
    """S tokens, and what each of them should predict."""

    ids_S: NDArray[np.int64]
    targets_S: NDArray[np.int64]
    document_ids_S: NDArray[np.int64]
    """0 for the first document of the row, 1 for the next …"""
    positions_S: NDArray[np.int64]
    """From 0 again with each document, and at the start of the row."""
    source: str
    documents: tuple[int | str, ...]
    """Which of the source's documents these are, in order."""

    def padded(self, length: int) -> "Row":
        """The row with its last token repeated up to `length`: nothing looks there, nothing counts there."""
        short = length - len(self.ids_S)
        if short <= 0:
            return self
        return replace(
            self,
            ids_S=np.pad(self.ids_S, (0, short), mode="edge"),
            targets_S=np.pad(self.targets_S, (0, short), constant_values=IGNORE),
            # Of the last document: where there is only one, plain causal attention still does.
            document_ids_S=np.pad(self.document_ids_S, (0, short), mode="edge"),
            positions_S=np.pad(self.positions_S, (0, short), mode="edge"),
        )

    def muted(self) -> "Row":
        """The row without its targets: it teaches nothing."""
        return replace(self, targets_S=np.full_like(self.targets_S, IGNORE))


class Samples(Protocol):
    """All rows of a run: sample k is a pure function of what they were made from and k.

    Nothing here has a state that matters: to resume, a run needs to know only how many it has consumed.
    """

    @property
    def document_mask(self) -> bool:
        """Whether a token sees its own document only."""
        ...

    def __len__(self) -> int:
        """Samples that are planned: whole batches."""
        ...

    def __getitem__(self, k: int) -> Row:
        """Sample k."""
        ...

    def tokens(self, consumed: int) -> int:
        """Tokens in the first `consumed` samples, without what only fills them up."""
        ...

    def epochs(self, consumed: int) -> dict[str, float]:
        """How often each source has been read after `consumed` samples."""
        ...


def shuffled(count: int, key: str) -> NDArray[np.int64]:
    """The numbers below `count` in an order that only `key` decides.

    Sorted by Philox's raw bits: these stay the same from one numpy to the next, its shuffles may not.
    """
    digest = hashlib.sha256(key.encode()).digest()[:16]
    bits = np.random.Philox(key=int.from_bytes(digest, "little")).random_raw(count)
    return np.argsort(bits, kind="stable")
