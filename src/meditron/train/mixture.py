"""Samples for pretraining, mixed from several sources: sample k is a pure function of (seed, mixture, k).

S is the length of a sequence in tokens.
"""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from meditron.core.errors import RecipeError
from meditron.train.samples import IGNORE, Sample, seeded_permutation

__all__ = ["Mixture", "SourceStream", "TokenizedDocuments", "schedule_sources"]


class TokenizedDocuments(Protocol):
    """Token ids of documents, each ending with the end-of-text token (`store.indexed.IndexedDataset`)."""

    @property
    def sizes(self) -> NDArray[np.integer]:
        """Tokens of each document."""

    def __getitem__(self, index: int) -> NDArray[np.integer]:
        """Return the token ids of a document."""


class SourceStream:
    """The endless token stream of one source: its documents, concatenated, reshuffled in each epoch.

    Samples are consecutive windows of the stream, so an epoch reads every token exactly once.
    """

    def __init__(self, name: str, documents: TokenizedDocuments, *, seed: int) -> None:
        self.name = name
        self.documents = documents
        self.seed = seed
        self.tokens = int(documents.sizes.sum(dtype=np.int64))
        """Tokens of an epoch."""
        self._epochs: dict[int, tuple[NDArray[np.int64], NDArray[np.int64]]] = {}
        if not self.tokens:
            raise RecipeError(f"the source '{name}' has no tokens to train on")

    def document_order(self, epoch: int) -> NDArray[np.int64]:
        """Return the document indices of an epoch in reading order."""
        return seeded_permutation(len(self.documents.sizes), f"{self.seed}/{self.name}/{epoch}")

    def sample(self, index: int, length: int, *, document_mask: bool) -> Sample:
        """Return the window of `length` tokens that begins at token `index * length` of the stream.

        With `document_mask` the last token of a document has no target: the next document is independent.
        """
        # One token more than the window is read, as the target of the window's last token.
        pieces = self._document_slices(index * length, length + 1)
        tokens = np.concatenate([self.documents[document][a:b] for document, a, b in pieces]).astype(np.int64)
        sizes = [b - a for _, a, b in pieces]
        targets_S = tokens[1:].copy()
        if document_mask:
            targets_S[np.cumsum(sizes)[:-1] - 1] = IGNORE
        return Sample(
            ids_S=tokens[:-1],
            targets_S=targets_S,
            document_ids_S=np.repeat(np.arange(len(sizes)), sizes)[:-1],
            positions_S=np.concatenate([np.arange(size) for size in sizes])[:-1],
            source=self.name,
            documents=tuple(document for document, _, _ in pieces),
        )

    def documents_in_first_tokens(self, tokens: int) -> NDArray[np.int64]:
        """Return the sorted indices of the documents in the first `tokens` tokens of the stream."""
        if tokens >= self.tokens:
            return np.arange(len(self.documents.sizes))
        order, ends = self._epoch_order_and_ends(0)
        return np.sort(order[: int(np.searchsorted(ends, tokens, side="left")) + 1])

    def _document_slices(self, start: int, length: int) -> list[tuple[int, int, int]]:
        """Return (document, first token, end token) for the stream's `length` tokens from `start`."""
        pieces = []
        while length:
            epoch, offset = divmod(start, self.tokens)
            order, ends = self._epoch_order_and_ends(epoch)
            # side="right" steps over empty documents, whose end equals the end of the one before.
            place = int(np.searchsorted(ends, offset, side="right"))
            document = int(order[place])
            size = int(self.documents.sizes[document])
            first = size - (int(ends[place]) - offset)
            taken = min(length, size - first)
            pieces.append((document, first, first + taken))
            start, length = start + taken, length - taken
        return pieces

    def _epoch_order_and_ends(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Return an epoch's document order, and the token offset at which each document ends."""
        if epoch not in self._epochs:
            # Two epochs are kept, because a window may span the border of two.
            self._epochs = {key: value for key, value in self._epochs.items() if key == epoch - 1}
            order = self.document_order(epoch)
            self._epochs[epoch] = (order, np.cumsum(self.documents.sizes[order], dtype=np.int64))
        return self._epochs[epoch]


def schedule_sources(weights: Sequence[int], samples: int) -> NDArray[np.uint16]:
    """Assign each of the first `samples` samples to a source, in proportion to whole-number weights.

    After every sample, each source's count differs by less than one from its exact share of the samples so
    far: R. Tijdeman, The chairman assignment problem, Discrete Mathematics 32 (1980) 323-330. Among the
    sources (m in all) whose count lags behind their share by at least 1 / (2m - 2), the next is the one whose
    lag would first exceed the bound.
    """
    m, total = len(weights), sum(weights)
    sources = np.zeros(samples, dtype=np.uint16)
    if m == 1:
        return sources
    # All arithmetic is in whole numbers, because float rounding could decide ties differently on another
    # machine.
    unit = 2 * m - 2
    lags = [0] * m  # each source's exact share so far minus its count, in units of 1 / (total * unit)
    for k in range(samples):
        lags = [lag + unit * weight for lag, weight in zip(lags, weights, strict=True)]
        eligible = (s for s in range(m) if lags[s] >= total)
        source = min(eligible, key=lambda s: ((unit - 1) * total - lags[s]) / weights[s])
        lags[source] -= unit * total
        sources[k] = source
    return sources


class Mixture:
    """Dataset of samples from several sources in fixed shares.

    `shares` are the sources' shares of the samples; None takes shares in proportion to the sources' tokens.

    Raises:
        RecipeError: A share names an unknown source, or a source is empty.
    """

    def __init__(
        self,
        sources: Mapping[str, TokenizedDocuments],
        shares: Mapping[str, float] | None,
        *,
        sequence_length: int,
        samples: int,
        seed: int,
        document_mask: bool = True,
    ) -> None:
        # The names are sorted, so that the order of a recipe's keys does not affect the samples.
        names = sorted(sources if shares is None else shares)
        for name in names:
            if name not in sources:
                raise RecipeError(
                    f"mixture names '{name}', which is not a source", hint=f"sources: {', '.join(sources)}"
                )
        self.sequence_length = sequence_length
        self.document_mask = document_mask
        self.streams = [SourceStream(name, sources[name], seed=seed) for name in names]
        weights = (
            [stream.tokens for stream in self.streams]
            if shares is None
            else _integer_weights([shares[name] for name in names])
        )
        self._source_of = schedule_sources(weights, samples)
        # Index of each sample among the samples of its source, which is its window number in that source's
        # stream.
        self._index_in_source = np.zeros(samples, dtype=np.int64)
        for s in range(len(names)):
            of_source = self._source_of == s
            self._index_in_source[of_source] = np.arange(of_source.sum())

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self._source_of)

    def __getitem__(self, k: int) -> Sample:
        """Return sample k."""
        stream = self.streams[int(self._source_of[k])]
        index = int(self._index_in_source[k])
        return stream.sample(index, self.sequence_length, document_mask=self.document_mask)

    def documents_read(self) -> dict[str, NDArray[np.int64]]:
        """Return, by source, the indices of all documents with a token in the samples or their targets."""
        counts = np.bincount(self._source_of, minlength=len(self.streams))
        return {
            stream.name: stream.documents_in_first_tokens(int(count) * self.sequence_length + 1)
            if count
            else np.arange(0)
            for stream, count in zip(self.streams, counts, strict=True)
        }

    def count_tokens(self, consumed: int) -> int:
        """Count the tokens of the first `consumed` samples."""
        return consumed * self.sequence_length

    def epochs_by_source(self, consumed: int) -> dict[str, float]:
        """Return, by source, the epochs read after `consumed` samples."""
        counts = np.bincount(self._source_of[:consumed], minlength=len(self.streams))
        return {
            stream.name: int(count) * self.sequence_length / stream.tokens
            for stream, count in zip(self.streams, counts, strict=True)
        }


def _integer_weights(shares: Sequence[float]) -> list[int]:
    """Return whole numbers in the same proportions as these decimals."""
    # The shares are converted through their decimal text: 0.1 means one tenth, not the nearest binary
    # fraction.
    exact = [Fraction(str(share)) for share in shares]
    common = int(np.lcm.reduce([share.denominator for share in exact]))
    return [int(share * common) for share in exact]
