"""The mixture: sample k is a pure function of seed, mixture and k, and an epoch reads every token."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meditron.core.errors import RecipeError
from meditron.train.mixture import Mixture, SourceStream, schedule_sources
from meditron.train.samples import IGNORE
from train.world import Lists


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
