"""The mixture: sample k is a pure function of seed, mixture and k, and an epoch reads every token."""

import struct
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meditron.core.errors import RecipeError
from meditron.store.indexed import IndexedDataset
from meditron.train import mixture as mixture_module
from meditron.train.mixture import Mixture, SourceStream, schedule_sources
from meditron.train.samples import IGNORE
from train.world import Lists, make_config


def numbered(sizes):
    """Documents in which every token is another number, so that each can be recognised."""
    ends = np.cumsum(sizes)
    return Lists(np.arange(end - size, end) for size, end in zip(sizes, ends, strict=True))


sizes = st.lists(st.integers(0, 12), min_size=1, max_size=12).filter(any)


@given(sizes, st.integers(1, 9), st.integers(0, 1000))
def test_each_token_of_an_epoch_appears_once(sizes, length, seed):
    documents = numbered(sizes)
    stream = SourceStream("s", documents, seed=seed)
    total = stream.tokens
    rows = [stream.sample(k, length, document_mask=True) for k in range(-(-3 * total // length))]
    read = np.concatenate([row.ids_S for row in rows])
    for epoch in range(3):
        assert sorted(read[epoch * total : (epoch + 1) * total]) == list(range(total))


@given(sizes, st.integers(1, 9), st.integers(0, 1000), st.booleans())
def test_targets_are_the_next_token_of_the_same_document(sizes, length, seed, masked):
    documents = numbered(sizes)
    of_token = np.concatenate([np.full(size, d) for d, size in enumerate(sizes)])
    stream = SourceStream("s", documents, seed=seed)
    for k in range(6):
        row, following = (stream.sample(i, length, document_mask=masked) for i in (k, k + 1))
        successors = np.append(row.ids_S[1:], following.ids_S[0])
        last = np.array([np.isin(t, [d[-1] for d in documents if len(d)]) for t in row.ids_S])
        expected = np.where(last, IGNORE, successors) if masked else successors
        assert row.targets_S.tolist() == expected.tolist()
        assert [row.documents[d] for d in row.document_ids_S] == of_token[row.ids_S].tolist()
        starts = np.flatnonzero(np.diff(row.document_ids_S, prepend=-1))
        ends = np.append(starts[1:], length)
        restarting = [p for a, b in zip(starts, ends, strict=True) for p in range(b - a)]
        assert row.positions_S.tolist() == restarting


@given(st.lists(sizes, min_size=1, max_size=3), st.integers(1, 9), st.integers(1, 20), st.booleans())
def test_the_documents_read_are_those_of_all_samples(sources, length, samples, masked):
    documents = {str(number): numbered([1 + size for size in each]) for number, each in enumerate(sources)}
    mixture = Mixture(documents, None, sequence_length=length, samples=samples, seed=1, document_mask=masked)
    read = {name: set() for name in documents}
    for row in (mixture[k] for k in range(samples)):
        read[row.source].update(row.documents)
    assert {name: set(numbers) for name, numbers in mixture.documents_read().items()} == {
        name: {int(number) for number in numbers} for name, numbers in read.items()
    }


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=6))
def test_shares_are_exact_to_less_than_one_sample(weights):
    chosen = schedule_sources(weights, 400)
    counts = np.cumsum(chosen[:, None] == np.arange(len(weights)), axis=0)
    for s, weight in enumerate(weights):
        share = Fraction(weight, sum(weights))
        assert all(abs(int(counts[k, s]) - share * (k + 1)) < 1 for k in range(400))


@given(st.lists(st.integers(1, 1000), min_size=1, max_size=6), st.integers(0, 60), st.integers(0, 60))
def test_a_longer_schedule_begins_with_the_shorter(weights, a, b):
    assert schedule_sources(weights, a + b)[:a].tolist() == schedule_sources(weights, a).tolist()


def mixture(shares, *, seed=1, samples=60, **changes):
    sources = {"a": numbered([3, 9, 4, 7]), "b": numbered([5, 6])}
    return Mixture(sources, shares, sequence_length=4, samples=samples, seed=seed, **changes)


def same(one, other):
    return all(
        np.array_equal(getattr(one, name), getattr(other, name))
        for name in ("ids_S", "targets_S", "positions_S")
    )


@settings(max_examples=20)
@given(st.permutations(range(60)))
def test_a_sample_does_not_depend_on_earlier_reads(order):
    fresh = mixture({"a": 0.7, "b": 0.3})
    straight = [fresh[k] for k in range(60)]
    shuffled = mixture({"a": 0.7, "b": 0.3})
    for k in order:
        assert same(shuffled[k], straight[k])


def test_seeds_and_epochs_shuffle_differently():
    stream, other = (SourceStream("s", numbered([1] * 50), seed=seed) for seed in (1, 2))
    orders = [
        stream.document_order(0),
        stream.document_order(1),
        other.document_order(0),
        SourceStream("t", stream.documents, seed=1).document_order(0),
    ]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4


def test_the_order_is_stable_across_releases():
    assert SourceStream("pubmed", numbered([1] * 8), seed=1).document_order(0).tolist() == [
        4,
        7,
        2,
        5,
        3,
        6,
        0,
        1,
    ]


def test_shares_follow_the_tokens_when_none_are_given():
    chosen = mixture(None, samples=340)
    assert [row.source for row in (chosen[k] for k in range(340))].count("a") == 230  # 23 tokens to 11
    assert chosen.epochs_by_source(340) == {"a": 230 * 4 / 23, "b": 110 * 4 / 11}
    assert len(chosen) == 340


def test_a_share_of_an_unknown_source_is_refused():
    with pytest.raises(RecipeError, match="'wiki'") as error:
        mixture({"a": 0.5, "wiki": 0.5})
    assert error.value.hint == "sources: a, b"


def test_an_empty_source_is_refused():
    with pytest.raises(RecipeError, match="'e' has no tokens"):
        SourceStream("e", numbered([0, 0]), seed=1)


def one_by_one(weights, samples):
    """The rule of `schedule_sources` in fractions: among those that lag enough, the most urgent source."""
    total, bound = sum(weights), Fraction(1, 2 * len(weights) - 2)
    counts, chosen = [0] * len(weights), []
    for k in range(1, samples + 1):
        lags = [Fraction(weight * k, total) - count for weight, count in zip(weights, counts, strict=True)]
        eligible = [s for s, lag in enumerate(lags) if lag >= bound]
        chosen.append(min(eligible, key=lambda s: (1 - bound - lags[s]) / weights[s]))
        counts[chosen[-1]] += 1
    return chosen


@pytest.mark.parametrize(
    "weights",
    [
        [2, 117, 871, 9],
        [1, 1, 1],
        [1, 999],
        [3, 2],
        [999, 1, 1, 1, 1],
        [850, 637, 511, 270, 308, 42, 76, 18, 176, 814, 641, 914],
        [107_000_001, 5_480_000_003, 40_700_000_011, 420_000_007],
    ],
)
def test_a_long_schedule_is_that_of_one_sample_after_another(weights):
    samples = 270_000  # enough to be computed in lanes
    lanes = schedule_sources(weights, samples)
    assert lanes[:2000].tolist() == one_by_one(weights, 2000)
    sequential = mixture_module._Scheduler(weights).run_sequentially([0] * len(weights), samples)
    assert np.array_equal(lanes, sequential)


def test_a_schedule_whose_lanes_do_not_agree_is_finished_one_by_one(monkeypatch):
    monkeypatch.setattr(mixture_module, "_MAX_PASSES", 1)
    weights, samples = [850, 637, 511, 270, 308, 42, 76, 18, 176, 814, 641, 914], 270_000
    sequential = mixture_module._Scheduler(weights).run_sequentially([0] * len(weights), samples)
    assert np.array_equal(schedule_sources(weights, samples), sequential)


def test_weights_beyond_float64_are_scheduled_one_by_one():
    weights = [(1 << 53) + 1, (1 << 52) - 1]
    assert schedule_sources(weights, 300_000)[:500].tolist() == one_by_one(weights, 500)


def test_samples_of_later_blocks_continue_their_sources_streams():
    documents = {"a": numbered([700] * 9), "b": numbered([500] * 7)}
    samples = 10_000
    mixed = Mixture(documents, {"a": 0.7, "b": 0.3}, sequence_length=3, samples=samples, seed=1)
    seen = {"a": 0, "b": 0}
    for k in range(samples):
        row = mixed[k]
        stream = mixed.streams["ab".index(row.source)]
        assert same(row, stream.sample(seen[row.source], 3, document_mask=True))
        seen[row.source] += 1
    with pytest.raises(IndexError):
        mixed[samples]


def test_a_corpus_of_more_than_two_to_the_31_tokens_is_read_beyond_them(tmp_path):
    """Meditron-70B's corpus has 48 billion tokens of 32,000; this one has ids that need 32 bits."""
    size, documents = 2_000_003, 1_100
    last = documents - 1
    prefix = tmp_path / "large"
    # The tokens are a hole in a sparse file, but for the last document's.
    with (tmp_path / "large.bin").open("wb") as file:
        file.truncate(4 * size * documents)
        file.seek(4 * size * last)
        file.write(np.arange(100_000, 100_000 + size, dtype="<i4").tobytes())
    header = struct.pack("<9sQBQQ", b"MMIDIDX\x00\x00", 1, 4, documents, documents + 1)
    lengths = np.full(documents, size, "<i4")
    starts = np.arange(documents, dtype="<i8") * 4 * size
    boundaries = np.arange(documents + 1, dtype="<i8")
    (tmp_path / "large.idx").write_bytes(header + lengths.tobytes() + starts.tobytes() + boundaries.tobytes())
    dataset = IndexedDataset(prefix)
    assert dataset.tokens.dtype == np.int32
    assert len(dataset.tokens) == size * documents > 1 << 31
    assert dataset[last][[0, -1]].tolist() == [100_000, 100_000 + size - 1]
    mixed = Mixture({"large": dataset}, None, sequence_length=4096, samples=540_000, seed=1)
    stream = mixed.streams[0]
    assert stream.tokens == size * documents
    # The window in the middle of the last document, which the epoch's order puts anywhere.
    place = int(np.flatnonzero(stream.document_order(0) == last)[0])
    k = (place * size + size // 2) // 4096
    row = mixed[k]
    assert row.documents == (last,)
    first = 100_000 + k * 4096 - place * size
    assert row.ids_S.tolist() == list(range(first, first + 4096))
    # The end of the epoch, beyond 2^31 tokens: the window goes on with the first document of the next order.
    end = mixed[size * documents // 4096]
    assert end.documents == (stream.document_order(0)[-1], stream.document_order(1)[0])


weighted = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 3500)), min_size=1, max_size=10).filter(
    lambda pairs: any(size * weight for size, weight in pairs)
)


@given(weighted, st.integers(1, 9), st.integers(0, 1000))
def test_a_document_is_read_as_often_as_its_weight_says(pairs, length, seed):
    documents = numbered([size for size, _ in pairs])
    weights = np.array([weight for _, weight in pairs])
    stream = SourceStream("s", documents, seed=seed, weights=weights)
    epochs = 3
    counts = sum(np.bincount(stream.document_order(epoch), minlength=len(pairs)) for epoch in range(epochs))
    assert all(abs(counts - epochs * weights / 1000) < 1)
    # The windows of the stream are the documents of the epochs, one after another.
    expected = [
        token for epoch in range(epochs) for d in stream.document_order(epoch) for token in documents[d]
    ]
    windows = len(expected) // length
    rows = [stream.sample(k, length, document_mask=True) for k in range(windows)]
    read = [token for row in rows for token in row.ids_S.tolist()]
    assert read == expected[: windows * length]
    fresh = SourceStream("s", documents, seed=seed, weights=weights)
    for k in reversed(range(windows)):
        assert same(fresh.sample(k, length, document_mask=True), rows[k])


@given(weighted, st.integers(1, 9), st.integers(1, 20))
def test_the_documents_read_with_weights_are_those_of_all_samples(pairs, length, samples):
    documents = {"s": numbered([1 + size for size, _ in pairs])}
    weights = {"s": np.array([weight for _, weight in pairs])}
    mixed = Mixture(documents, None, sequence_length=length, samples=samples, seed=1, weights=weights)
    read = {int(document) for k in range(samples) for document in mixed[k].documents}
    assert set(mixed.documents_read()["s"].tolist()) == read


def test_the_weight_1_is_the_stream_without_weights():
    plain, ones = (
        SourceStream("s", numbered([3, 9, 4, 7]), seed=1, weights=weights)
        for weights in (None, np.full(4, 1000))
    )
    assert all(plain.document_order(e).tolist() == ones.document_order(e).tolist() for e in range(5))
    assert plain.weighted_tokens == ones.weighted_tokens == 23_000


def test_natural_proportions_count_weights_and_epochs():
    weights = {"a": np.array([2000, 1000, 0, 1500])}  # of 3, 9, 4 and 7 tokens: 25.5
    chosen = mixture(None, samples=365, weights=weights)
    assert [row.source for row in (chosen[k] for k in range(365))].count("a") == 255  # 25.5 to 11
    assert chosen.epochs_by_source(365) == {"a": 255 * 4 / 23, "b": 110 * 4 / 11}
    chosen = mixture(None, samples=365, epochs={"b": 2.5})
    assert chosen.tokens_by_source(365) == {"a": 4 * 166, "b": 4 * 199}  # 23 to 27.5
    assert round(365 * 23 / 50.5) == 166


def test_published_proportions_are_those_of_gap_replay():
    shares = make_config(mixture="as-published").shares
    total = sum(shares.values())
    published = {"guidelines": 0.0023, "abstracts": 0.117, "papers": 0.871, "replay": 0.0090}
    assert {name: round(count / total, 4) for name, count in shares.items()} == pytest.approx(
        published, abs=5e-4
    )
    sources = {name: numbered([500]) for name in shares}
    mixed = Mixture(sources, shares, sequence_length=2, samples=46_707, seed=1)
    assert mixed.tokens_by_source(46_707) == {name: 2 * count for name, count in sorted(shares.items())}


def test_a_source_whose_documents_are_all_excluded_is_refused():
    with pytest.raises(RecipeError, match=r"'s' has no tokens to train on that the weights"):
        SourceStream("s", numbered([3]), seed=1, weights=np.array([0]))
    with pytest.raises(RecipeError, match="epochs names 'wiki'"):
        mixture(None, epochs={"wiki": 2})
