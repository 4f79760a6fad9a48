"""Samples for pretraining, mixed from several sources: sample k is a pure function of (seed, mixture, k).

S is the length of a sequence in tokens.
"""

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from meditron.core.errors import RecipeError
from meditron.train.document_weights import UNIT, EpochCopies
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

    Samples are consecutive windows of the stream, so an epoch reads every token exactly once. With weights it
    reads each document as often as `document_weights.EpochCopies` says, at random places of the epoch.
    """

    def __init__(
        self,
        name: str,
        documents: TokenizedDocuments,
        *,
        seed: int,
        weights: NDArray[np.integer] | None = None,
    ) -> None:
        self.name = name
        self.documents = documents
        self.seed = seed
        self.weights = weights
        """Weight of each document in units of 1/UNIT; None: all documents have the weight 1."""
        sizes = documents.sizes
        self.tokens = int(sizes.sum(dtype=np.int64))
        """Tokens of all documents, each counted once."""
        self.weighted_tokens = (
            self.tokens * UNIT if weights is None else int(sizes.astype(np.int64) @ weights.astype(np.int64))
        )
        """Mean number of tokens of an epoch, in units of 1/UNIT."""
        self._copies = None if weights is None else EpochCopies(weights, f"{seed}/{name}/copies")
        self._epoch_starts = [0]  # with weights, epochs differ in length
        self._epochs: dict[int, tuple[NDArray[np.integer], NDArray[np.int64]]] = {}
        if not self.weighted_tokens:
            excluded = " that the weights of [pretrain.upsample] do not exclude" if self.tokens else ""
            raise RecipeError(f"the source '{name}' has no tokens to train on{excluded}")

    def document_order(self, epoch: int) -> NDArray[np.int64]:
        """Return the document indices of an epoch in reading order."""
        key = f"{self.seed}/{self.name}/{epoch}"
        if self._copies is None:
            return seeded_permutation(len(self.documents.sizes), key)
        copies = self._copies.in_epoch(epoch)
        documents = np.repeat(np.arange(len(copies)), copies)
        return documents[seeded_permutation(len(documents), key)]

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
        if self._copies is None and tokens >= self.tokens:
            return np.arange(len(self.documents.sizes))
        is_read = np.zeros(len(self.documents.sizes), dtype=bool)
        epoch, rest = 0, tokens
        # After UNIT epochs every document of positive weight was read.
        while rest > 0 and epoch < UNIT:
            order, ends = self._epoch_order_and_ends(epoch)
            is_read[order[: int(np.searchsorted(ends, rest, side="left")) + 1]] = True
            epoch, rest = epoch + 1, rest - int(ends[-1] if len(ends) else 0)
        return np.flatnonzero(is_read)

    def _document_slices(self, start: int, length: int) -> list[tuple[int, int, int]]:
        """Return (document, first token, end token) for the stream's `length` tokens from `start`."""
        pieces = []
        while length:
            epoch, offset = self._locate(start)
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

    def _locate(self, start: int) -> tuple[int, int]:
        """Return the epoch of a token of the stream, and its offset in the epoch."""
        if self._copies is None:
            return divmod(start, self.tokens)
        starts = self._epoch_starts
        while starts[-1] <= start:
            copies = self._copies.in_epoch(len(starts) - 1)
            starts.append(starts[-1] + int(self.documents.sizes.astype(np.int64) @ copies))
        # Of several epochs with the same start, all but the last are empty.
        epoch = bisect_right(starts, start) - 1
        return epoch, start - starts[epoch]

    def _epoch_order_and_ends(self, epoch: int) -> tuple[NDArray[np.integer], NDArray[np.int64]]:
        """Return an epoch's document order, and the token offset at which each document ends."""
        if epoch not in self._epochs:
            # Two epochs are kept, because a window may span the border of two.
            self._epochs = {key: value for key, value in self._epochs.items() if key == epoch - 1}
            order = self.document_order(epoch)
            ends = np.cumsum(self.documents.sizes[order], dtype=np.int64)
            # Of tens of millions of documents the order is stored in half the memory.
            self._epochs[epoch] = (order.astype(np.uint32) if len(order) < 1 << 32 else order, ends)
        return self._epochs[epoch]


def schedule_sources(weights: Sequence[int], samples: int) -> NDArray[np.uint16]:
    """Assign each of the first `samples` samples to a source, in proportion to whole-number weights.

    After every sample, each source's count differs by less than one from its exact share of the samples so
    far: R. Tijdeman, The chairman assignment problem, Discrete Mathematics 32 (1980) 323-330. Among the
    sources (m in all) whose count lags behind their share by at least 1 / (2m - 2), the next is the one whose
    lag would first exceed the bound.
    """
    scheduler = _Scheduler(weights)
    if len(weights) == 1:
        return np.zeros(samples, dtype=np.uint16)
    if samples < _LANES * _WARM_UP or not scheduler.fits_float64:
        return scheduler.run_sequentially([0] * len(weights), samples)
    return scheduler.run_in_lanes(samples)


_LANES = 4096
_WARM_UP = 64
"""Least number of samples that a lane of `_Scheduler.run_in_lanes` is simulated before its own."""
_MAX_PASSES = 8


class _Scheduler:
    """Tijdeman's rule for fixed weights.

    The state after k samples is each source's exact share of k minus its count, in units of
    1 / (total · (2m - 2)): whole numbers, because float rounding could decide ties differently on another
    machine.
    """

    def __init__(self, weights: Sequence[int]) -> None:
        self.weights = list(weights)
        self.total = sum(weights)
        self.unit = 2 * len(weights) - 2

    @property
    def fits_float64(self) -> bool:
        """True if float64 has all numbers of the rule exactly, so that numpy divides as Python does."""
        return 2 * self.unit * self.total < 1 << 53

    def run_sequentially(self, lags: list[int], samples: int) -> NDArray[np.uint16]:
        """Return the sources of the next `samples` samples from a state."""
        total, unit, weights = self.total, self.unit, self.weights
        m = len(weights)
        sources = np.zeros(samples, dtype=np.uint16)
        for k in range(samples):
            lags = [lag + unit * weight for lag, weight in zip(lags, weights, strict=True)]
            eligible = (s for s in range(m) if lags[s] >= total)
            source = min(eligible, key=lambda s: ((unit - 1) * total - lags[s]) / weights[s])
            lags[source] -= unit * total
            sources[k] = source
        return sources

    def run_in_lanes(self, samples: int) -> NDArray[np.uint16]:
        """Return the result of `run_sequentially` from the start, computed for many stretches at once.

        Each lane has one stretch of samples. Its first state is not known, but schedules from different
        states soon agree, so a lane begins some samples earlier with a likely state. The result is exact: a
        lane counts only if it begins in the state in which the lane before it ended, and other lanes are
        repeated from there.
        """
        length = -(-samples // _LANES)
        # Schedules agree after about one sample of the rarest source; the bound keeps the extra work small.
        warm_up = min(length, max(_WARM_UP, 2 * self.total // min(self.weights)))
        firsts = [lane * length for lane in range(_LANES)]
        starts = np.array([self._likely_state(max(0, first - warm_up)) for first in firsts], dtype=np.int64).T
        # The lanes whose warm-up would begin before sample 0 begin at it, so they warm up for fewer samples.
        active = np.array([min(first, warm_up) for first in firsts])
        starts, _ = self._advance(starts, warm_up, idle=warm_up - active)
        sources = np.empty((length, _LANES), dtype=np.uint16)
        ends = np.empty_like(starts)
        wrong = np.arange(_LANES)
        for _ in range(_MAX_PASSES):
            ends[:, wrong], sources[:, wrong] = self._advance(starts[:, wrong], length)
            wrong = 1 + np.flatnonzero((starts[:, 1:] != ends[:, :-1]).any(axis=0))
            if not wrong.size:
                return sources.T.reshape(-1)[:samples]
            starts[:, wrong] = ends[:, wrong - 1]
        done = int(wrong[0]) * length
        rest = self.run_sequentially([int(lag) for lag in ends[:, wrong[0] - 1]], max(0, samples - done))
        return np.concatenate([sources.T.reshape(-1)[:done], rest])[:samples]

    def _likely_state(self, k: int) -> list[int]:
        """Return the state after k samples if the sources with the largest fractions have one sample more."""
        fractions = [k * weight % self.total for weight in self.weights]
        rounded_up = sum(fractions) // self.total
        order = sorted(range(len(fractions)), key=lambda s: -fractions[s])
        state = [self.unit * fraction for fraction in fractions]
        for s in order[:rounded_up]:
            state[s] -= self.unit * self.total
        return state

    def _advance(
        self, lags: NDArray[np.int64], samples: int, idle: NDArray[np.int64] | None = None
    ) -> tuple[NDArray[np.int64], NDArray[np.uint16]]:
        """Return the states of all lanes (source × lane) after `samples` samples, and those samples' sources.

        A lane with `idle` keeps its state during that many samples first.
        """
        lags, weights = lags.copy(), np.array(self.weights, dtype=np.int64)[:, None]
        lanes = np.arange(lags.shape[1])
        sources = np.empty((samples, len(lanes)), dtype=np.uint16)
        for k in range(samples):
            grown = lags + self.unit * weights
            urgency = ((self.unit - 1) * self.total - grown) / weights
            urgency[grown < self.total] = np.inf
            source = urgency.argmin(axis=0)  # of equals the first, like min()
            grown[source, lanes] -= self.unit * self.total
            lags = grown if idle is None else np.where(idle <= k, grown, lags)
            sources[k] = source
        return lags, sources


_BLOCK = 4096
"""Samples between two stored counts of the sources' samples."""


class Mixture:
    """Dataset of samples from several sources in fixed shares.

    Args:
        sources: The sources' documents by name.
        shares: The sources' shares of the samples, in any unit; None: in proportion to the sources' tokens,
            each counted as often as its document's weight says.
        sequence_length: Tokens of a sample.
        samples: Number of samples.
        seed: Seed of the order of the documents.
        document_mask: True if the last token of a document has no target.
        epochs: Without `shares`: factors of the sources' tokens, 1 for the sources that it does not name.
        weights: Source → weights of its documents (`document_weights`); by default all are 1.

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
        epochs: Mapping[str, float] | None = None,
        weights: Mapping[str, NDArray[np.integer]] | None = None,
    ) -> None:
        # The names are sorted, so that the order of a recipe's keys does not affect the samples.
        names = sorted(sources if shares is None else shares)
        for key, named in (("mixture", names), ("epochs", epochs or ())):
            for name in named:
                if name not in sources:
                    raise RecipeError(
                        f"{key} names '{name}', which is not a source", hint=f"sources: {', '.join(sources)}"
                    )
        self.sequence_length = sequence_length
        self.document_mask = document_mask
        weights = weights or {}
        self.streams = [
            SourceStream(name, sources[name], seed=seed, weights=weights.get(name)) for name in names
        ]
        if shares is None:
            factors = [Fraction(str((epochs or {}).get(name, 1))) for name in names]
            tokens = [stream.weighted_tokens for stream in self.streams]
            exact = [factor * count for factor, count in zip(factors, tokens, strict=True)]
        else:
            # The decimal text counts: 0.1 means one tenth, not the nearest binary fraction.
            exact = [Fraction(str(shares[name])) for name in names]
        self._source_of = schedule_sources(_whole_numbers(exact), samples)
        # Samples of each source before each block of samples. A sample's index in its source is counted from
        # there, which takes microseconds; to store all indices would take eight bytes per sample.
        blocks = range(0, samples, _BLOCK)
        counts = np.array(
            [np.bincount(self._source_of[at : at + _BLOCK], minlength=len(names)) for at in blocks], np.int64
        ).reshape(-1, len(names))
        self._counts_before_block = np.cumsum(counts, axis=0) - counts

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self._source_of)

    def __getitem__(self, k: int) -> Sample:
        """Return sample k."""
        if not -len(self) <= k < len(self):
            raise IndexError(f"sample {k} of {len(self)}")
        block, within = divmod(k % len(self), _BLOCK)
        source = int(self._source_of[k])
        before = self._source_of[block * _BLOCK : block * _BLOCK + within]
        # The index among the samples of the source is the window's number in the source's stream.
        index = int(self._counts_before_block[block, source]) + int(np.count_nonzero(before == source))
        return self.streams[source].sample(index, self.sequence_length, document_mask=self.document_mask)

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

    def tokens_by_source(self, consumed: int) -> dict[str, int]:
        """Return, by source, the tokens of the first `consumed` samples."""
        counts = np.bincount(self._source_of[:consumed], minlength=len(self.streams))
        return {
            stream.name: int(count) * self.sequence_length
            for stream, count in zip(self.streams, counts, strict=True)
        }

    def epochs_by_source(self, consumed: int) -> dict[str, float]:
        """Return, by source, the epochs read after `consumed` samples: tokens read ÷ its tokens."""
        tokens = self.tokens_by_source(consumed)
        return {stream.name: tokens[stream.name] / stream.tokens for stream in self.streams}


def _whole_numbers(exact: Sequence[Fraction]) -> list[int]:
    """Return the smallest whole numbers in the same proportions."""
    common = math.lcm(*(value.denominator for value in exact))
    numbers = [int(value * common) for value in exact]
    divisor = math.gcd(*numbers)
    return [number // divisor for number in numbers]
