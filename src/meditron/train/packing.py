"""Examples packed into samples: sample k is a pure function of (examples, seed, k). S tokens a sample."""

from bisect import bisect_left, insort
from collections.abc import Iterable, Sequence
from itertools import accumulate

import numpy as np

from meditron.text.finetune_templates import TokenizedConversation
from meditron.train.examples import next_token_targets
from meditron.train.samples import Sample, seeded_permutation

__all__ = ["PackedExamples", "pack_best_fit"]


def pack_best_fit(sizes: Iterable[tuple[int, int]], length: int) -> list[list[int]]:
    """Pack (index, size) pairs into bins of `length`, each into the fullest bin with enough room.

    Best fit: D. S. Johnson, Fast algorithms for bin packing, J. Comput. Syst. Sci. 8 (1974) 272-314. The
    indices of a bin keep the order of the input. No size may exceed `length`.
    """
    bins: list[list[int]] = []
    free_space: list[
        tuple[int, int]
    ] = []  # (tokens left, bin), sorted: a bin is found and updated in log time
    for index, size in sizes:
        at = bisect_left(free_space, (size, 0))
        left, number = free_space.pop(at) if at < len(free_space) else (length, len(bins))
        if number == len(bins):
            bins.append([])
        bins[number].append(index)
        insort(free_space, (left - size, number))
    return bins


class PackedExamples:
    """Dataset of tokenized conversations: each epoch has every example once, in a new order and packing.

    With `pack=False` each example is a sample of its own. Packed samples are padded to `length`, so that all
    have one shape; the last batch is filled with samples whose targets are all masked.
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
        pack: bool = True,
    ) -> None:
        """`examples` are (id, conversation) pairs: at least one, none longer than `length`."""
        self._examples = examples
        self._name, self._length, self._seed, self._pack = name, length, seed, pack
        self._bins = [indices for epoch in range(epochs) for indices in self._pack_epoch(epoch)]
        sizes = (sum(len(examples[index][1].ids) for index in indices) for indices in self._bins)
        # Number of tokens before each sample without padding, because progress and speed count no padding.
        self._ends = [0, *accumulate(sizes)]
        self._samples = -(-len(self._bins) // batch_size) * batch_size

    def _pack_epoch(self, epoch: int) -> list[list[int]]:
        """Return the example indices of each sample of an epoch."""
        key = f"{self._seed}/{self._name}/{epoch}"
        order = seeded_permutation(len(self._examples), key).tolist()
        if not self._pack:
            return [[index] for index in order]
        bins = pack_best_fit(((index, len(self._examples[index][1].ids)) for index in order), self._length)
        # Best fit leaves the emptiest bins at the end: without shuffling, the last steps would see few
        # targets.
        return [bins[index] for index in seeded_permutation(len(bins), f"{key}/rows")]

    def __len__(self) -> int:
        """Return the number of samples, a multiple of the batch size."""
        return self._samples

    def __getitem__(self, k: int) -> Sample:
        """Return sample k."""
        # The last batch is filled with copies of the first sample whose targets are all masked: they have the
        # same shape and add no loss or gradient.
        if k >= len(self._bins):
            return self[0].mask_all_targets()
        examples = [self._examples[index] for index in self._bins[k]]
        sizes = [len(tokenized.ids) for _, tokenized in examples]
        sample = Sample(
            ids_S=np.concatenate([tokenized.ids for _, tokenized in examples]).astype(np.int64),
            targets_S=np.concatenate([next_token_targets(tokenized) for _, tokenized in examples]),
            # Each example is a document of its own: no token attends to another example.
            document_ids_S=np.repeat(np.arange(len(sizes)), sizes),
            positions_S=np.concatenate([np.arange(size) for size in sizes]),
            source=self._name,
            documents=tuple(name for name, _ in examples),
        )
        return sample.pad_to(self._length) if self._pack else sample

    def count_tokens(self, consumed: int) -> int:
        """Count the tokens of the first `consumed` samples, padding excluded."""
        return self._ends[min(consumed, len(self._bins))]

    def epochs_by_source(self, consumed: int) -> dict[str, float]:
        """Return the epochs read after `consumed` samples."""
        tokens_per_epoch = sum(len(tokenized.ids) for _, tokenized in self._examples)
        return {self._name: self.count_tokens(consumed) / tokens_per_epoch}

    @property
    def fill_fraction(self) -> float:
        """Fraction of the packed samples that is not padding; 1 without packing."""
        return self._ends[-1] / (len(self._bins) * self._length) if self._pack else 1.0
