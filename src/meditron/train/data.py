"""Running text to pretrain on: sample k is a pure function of (seed, mixture, k).

S is the length of a row in tokens.
"""

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from meditron.core.errors import RecipeError
from meditron.train.samples import IGNORE, Row, shuffled

__all__ = ["Documents", "Mixture", "Stream", "schedule"]


class Documents(Protocol):
    """Tokenized documents, each with its end-of-text token; `store.indexed.IndexedDataset` is one."""

    @property
    def sizes(self) -> NDArray[np.integer]:
        """Tokens of each document."""

    def __getitem__(self, index: int) -> NDArray[np.integer]:
        """The token ids of a document."""


class Stream:
    """The endless text of one source: its documents, shuffled anew in each epoch, one after another.

    Rows are windows of this stream, so each token of an epoch is seen exactly once.
    """

    def __init__(self, name: str, documents: Documents, *, seed: int) -> None:
        self.name = name
        self.documents = documents
        self.seed = seed
        self.tokens = int(documents.sizes.sum(dtype=np.int64))
        """Tokens of an epoch."""
        self._epochs: dict[int, tuple[NDArray[np.int64], NDArray[np.int64]]] = {}
        if not self.tokens:
            raise RecipeError(f"the source '{name}' has no tokens to train on")

    def order(self, epoch: int) -> NDArray[np.int64]:
        """The documents of an epoch, in the order they are read."""
        return shuffled(len(self.documents.sizes), f"{self.seed}/{self.name}/{epoch}")

    def row(self, index: int, length: int, *, document_mask: bool) -> Row:
        """The window of `length` tokens from token `index * length` of the stream.

        With `document_mask` a document's last token predicts nothing: the next one has nothing to do with it.
        """
        pieces = self._pieces(index * length, length + 1)
        tokens = np.concatenate([self.documents[document][a:b] for document, a, b in pieces]).astype(np.int64)
        sizes = [b - a for _, a, b in pieces]
        targets_S = tokens[1:].copy()
        if document_mask:
            targets_S[np.cumsum(sizes)[:-1] - 1] = IGNORE
        return Row(
            ids_S=tokens[:-1],
            targets_S=targets_S,
            document_ids_S=np.repeat(np.arange(len(sizes)), sizes)[:-1],
            positions_S=np.concatenate([np.arange(size) for size in sizes])[:-1],
            source=self.name,
            documents=tuple(document for document, _, _ in pieces),
        )

    def read(self, tokens: int) -> NDArray[np.int64]:
        """Return the documents that the first `tokens` tokens of the stream are from, in ascending order."""
        if tokens >= self.tokens:
            return np.arange(len(self.documents.sizes))
        order, ends = self._epoch(0)
        return np.sort(order[: int(np.searchsorted(ends, tokens, side="left")) + 1])

    def _pieces(self, start: int, length: int) -> list[tuple[int, int, int]]:
        """(document, first token, token after the last) of the stretch of `length` tokens from `start`."""
        pieces = []
        while length:
            epoch, offset = divmod(start, self.tokens)
            order, ends = self._epoch(epoch)
            place = int(np.searchsorted(ends, offset, side="right"))
            document = int(order[place])
            size = int(self.documents.sizes[document])
            first = size - (int(ends[place]) - offset)
            taken = min(length, size - first)
            pieces.append((document, first, first + taken))
            start, length = start + taken, length - taken
        return pieces

    def _epoch(self, epoch: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """The order of an epoch and where each document ends in it; the last two epochs are kept."""
        if epoch not in self._epochs:
            self._epochs = {key: value for key, value in self._epochs.items() if key == epoch - 1}
            order = self.order(epoch)
            self._epochs[epoch] = (order, np.cumsum(self.documents.sizes[order], dtype=np.int64))
        return self._epochs[epoch]


def schedule(weights: Sequence[int], samples: int) -> NDArray[np.uint16]:
    """Which of the sources, weighted by whole numbers, each of the first `samples` samples comes from.

    After every sample, each source's count is less than one away from its exact share of the samples so far:
    R. Tijdeman, The chairman assignment problem, Discrete Mathematics 32 (1980) 323-330. Of the sources that
    lag by at least 1 / (2m - 2), the next is the one whose lag would first grow past the bound.
    """
    m, total = len(weights), sum(weights)
    chosen = np.zeros(samples, dtype=np.uint16)
    if m == 1:
        return chosen
    unit = 2 * m - 2
    lags = [0] * m  # each source's share so far less its count, in units of 1 / (total * unit)
    for k in range(samples):
        lags = [lag + unit * weight for lag, weight in zip(lags, weights, strict=True)]
        eligible = (s for s in range(m) if lags[s] >= total)
        source = min(eligible, key=lambda s: ((unit - 1) * total - lags[s]) / weights[s])
        lags[source] -= unit * total
        chosen[k] = source
    return chosen


class Mixture:
    """Rows from several sources in fixed shares: `mixture[k]` is sample k.

    `shares` are the sources' shares of the rows; None takes them as their tokens stand to each other.
    Raises RecipeError where a share names no source or a source is empty.
    """

    def __init__(
        self,
        sources: Mapping[str, Documents],
        shares: Mapping[str, float] | None,
        *,
        sequence_length: int,
        samples: int,
        seed: int,
        document_mask: bool = True,
    ) -> None:
        names = sorted(sources if shares is None else shares)
        for name in names:
            if name not in sources:
                raise RecipeError(
                    f"mixture names '{name}', which is no source", hint=f"there are: {', '.join(sources)}"
                )
        self.sequence_length = sequence_length
        self.document_mask = document_mask
        self.streams = [Stream(name, sources[name], seed=seed) for name in names]
        weights = (
            [stream.tokens for stream in self.streams]
            if shares is None
            else _whole([shares[n] for n in names])
        )
        self._chosen = schedule(weights, samples)
        self._rank = np.zeros(samples, dtype=np.int64)
        for s in range(len(names)):
            mine = self._chosen == s
            self._rank[mine] = np.arange(mine.sum())

    def __len__(self) -> int:
        """Samples that are planned."""
        return len(self._chosen)

    def __getitem__(self, k: int) -> Row:
        """Sample k."""
        stream = self.streams[int(self._chosen[k])]
        return stream.row(int(self._rank[k]), self.sequence_length, document_mask=self.document_mask)

    def documents_read(self) -> dict[str, NDArray[np.int64]]:
        """Return, by source, the documents that all planned samples are from, targets included."""
        rows = np.bincount(self._chosen, minlength=len(self.streams))
        return {
            stream.name: stream.read(int(count) * self.sequence_length + 1) if count else np.arange(0)
            for stream, count in zip(self.streams, rows, strict=True)
        }

    def tokens(self, consumed: int) -> int:
        """Tokens in the first `consumed` samples."""
        return consumed * self.sequence_length

    def epochs(self, consumed: int) -> dict[str, float]:
        """How often each source has been read after `consumed` samples."""
        counts = np.bincount(self._chosen[:consumed], minlength=len(self.streams))
        return {
            stream.name: int(count) * self.sequence_length / stream.tokens
            for stream, count in zip(self.streams, counts, strict=True)
        }


def _whole(shares: Sequence[float]) -> list[int]:
    """The smallest whole numbers that stand to each other as these decimals are written."""
    exact = [Fraction(str(share)) for share in shares]
    common = int(np.lcm.reduce([share.denominator for share in exact]))
    return [int(share * common) for share in exact]
