"""Samples: sequences of tokens with their targets. S is the length of a sequence in tokens."""

import hashlib
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

__all__ = ["IGNORE", "Sample", "TrainingDataset", "seeded_bits", "seeded_permutation"]

IGNORE = -100
"""Target of a masked position: it adds no loss (PyTorch's `ignore_index`)."""


@dataclass(frozen=True)
class Sample:
    """One sequence: S token ids and the target of each position."""

    ids_S: NDArray[np.int64]
    targets_S: NDArray[np.int64]
    """The next token of each position, or `IGNORE`."""
    document_ids_S: NDArray[np.int64]
    """Index of each token's document within the sequence: 0 for the first, 1 for the next …"""
    positions_S: NDArray[np.int64]
    """Position of each token in its document, counted from 0 (also at the start of the sequence)."""
    source: str
    documents: tuple[int | str, ...]
    """The source's documents in this sequence, in order."""
    reference_2: NDArray[np.float64] | None = None
    """Of a pair of answers: their log-probabilities before the first step."""

    @property
    def loss_terms(self) -> int:
        """Number of terms that the loss is the mean of: the targets, or one for a pair with targets."""
        targets = int((self.targets_S != IGNORE).sum())
        return targets if self.reference_2 is None else min(targets, 1)

    def pad_to(self, length: int) -> "Sample":
        """Pad to `length` tokens with masked targets."""
        short = length - len(self.ids_S)
        if short <= 0:
            return self
        return replace(
            self,
            # No real token attends to the padding after it, so any valid id works; the last id is repeated.
            ids_S=np.pad(self.ids_S, (0, short), mode="edge"),
            targets_S=np.pad(self.targets_S, (0, short), constant_values=IGNORE),
            # The padding belongs to the last document, so that a sequence of one document remains one
            # document and plain causal attention (without a mask tensor) still applies.
            document_ids_S=np.pad(self.document_ids_S, (0, short), mode="edge"),
            positions_S=np.pad(self.positions_S, (0, short), mode="edge"),
        )

    def mask_all_targets(self) -> "Sample":
        """Mask all targets, so that the sample adds no loss."""
        return replace(self, targets_S=np.full_like(self.targets_S, IGNORE))


class TrainingDataset(Protocol):
    """All samples of a run, in training order. Sample k is a pure function of the dataset's inputs and k.

    A dataset has no state that affects its samples: resuming needs only the number of samples consumed.
    """

    @property
    def document_mask(self) -> bool:
        """True if a token attends to its own document only."""
        ...

    def __len__(self) -> int:
        """Return the number of samples, a multiple of the batch size."""
        ...

    def __getitem__(self, k: int) -> Sample:
        """Return sample k."""
        ...

    def count_tokens(self, consumed: int) -> int:
        """Count the tokens of the first `consumed` samples, padding excluded."""
        ...

    def epochs_by_source(self, consumed: int) -> dict[str, float]:
        """Return, by source, the epochs read after `consumed` samples."""
        ...


def seeded_permutation(count: int, key: str) -> NDArray[np.int64]:
    """Return a permutation of the numbers below `count` that depends on `key` only."""
    return np.argsort(seeded_bits(count, key), kind="stable")


def seeded_bits(count: int, key: str) -> NDArray[np.uint64]:
    """Return `count` random words of 64 bits that depend on `key` only."""
    digest = hashlib.sha256(key.encode()).digest()[:16]
    # Philox's raw bits are the same in every numpy release; numpy does not promise that of its shuffles.
    return np.random.Philox(key=int.from_bytes(digest, "little")).random_raw(count)
