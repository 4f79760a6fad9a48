"""Packing: every example once per epoch, with the same loss and gradient as alone."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from hf_parity import make_hf, our_llama
from meditron.model.llama import document_mask
from meditron.parallel.model import ModelStage
from meditron.text.finetune_templates import Span, TokenizedConversation
from meditron.train.batches import collate
from meditron.train.loop import batch_nll
from meditron.train.packing import PackedExamples, pack_best_fit
from meditron.train.samples import IGNORE

SIZES = st.lists(st.integers(1, 12), min_size=1, max_size=30)


def examples(count, *, seed=0, longest=24):
    """Conversations of random tokens: a question, an answer, sometimes another of each."""
    random = np.random.default_rng(seed)
    found = []
    for number in range(count):
        spans = []
        for _ in range(random.integers(1, 3)):
            spans += [Span("user", int(random.integers(1, longest // 3)), False)]
            spans += [Span("assistant", int(random.integers(1, longest // 6)), True)]
        ids = random.integers(1, 320, size=sum(span.tokens for span in spans))
        found.append((f"row {number}", TokenizedConversation(tuple(ids.tolist()), tuple(spans))))
    return found


def packed(rows, **changes):
    settings = {"name": "t", "length": 48, "epochs": 2, "batch_size": 4, "seed": 1}
    return PackedExamples(rows, **settings | changes)


@given(SIZES, st.integers(12, 40))
def test_each_example_is_packed_once_and_bins_do_not_overflow(sizes, length):
    rows = pack_best_fit(enumerate(sizes), length)
    assert sorted(index for row in rows for index in row) == list(range(len(sizes)))
    assert all(sum(sizes[index] for index in row) <= length for row in rows)
    assert all(row == sorted(row) for row in rows)
    # Any two rows together are fuller than one: else the first of the later one had gone into the earlier.
    fills = [sum(sizes[index] for index in row) for row in rows]
    assert all(a + b > length for n, a in enumerate(fills) for b in fills[:n])


def test_best_fit_takes_the_fullest_bin_with_room():
    assert pack_best_fit(enumerate([6, 5, 4, 5, 3, 2]), 10) == [[0, 2], [1, 3], [4, 5]]


def read(row):
    """What a row holds: {example: [(its token, whether the next is its target)]}."""
    found = {}
    for index, name in enumerate(row.documents):
        at = np.flatnonzero(row.document_ids_S == index)
        found[name] = [(row.ids_S[i], row.positions_S[i], row.targets_S[i]) for i in at]
    return found


@pytest.mark.parametrize("pack", [True, False])
def test_tokens_and_positions_are_kept_and_only_answers_are_targets(pack):
    rows = examples(40)
    samples = packed(rows, pack=pack)
    known = dict(rows)
    seen = []
    for k in range(len(samples)):
        row = samples[k]
        if (row.targets_S == IGNORE).all():
            continue  # what fills up the last batch
        for name, tokens in read(row).items():
            tokenized = known[name]
            size = len(tokenized.ids)
            seen.append(name)
            assert [token for token, _, _ in tokens[:size]] == list(tokenized.ids)
            assert [position for _, position, _ in tokens[:size]] == list(range(size))
            for i in range(size):
                wanted = tokenized.ids[i + 1] if i + 1 < size and tokenized.in_loss[i + 1] else IGNORE
                assert tokens[i][2] == wanted
            assert all(target == IGNORE for _, _, target in tokens[size:])  # padding
    assert sorted(seen) == sorted(2 * list(known))
    first = set(seen[: len(known)])
    assert first == set(known) or pack, "without packing an epoch is over before the next begins"


def test_a_sample_does_not_depend_on_earlier_reads():
    rows = examples(30)
    straight, other = packed(rows), packed(rows)
    for k in reversed(range(len(straight))):
        one, two = straight[k], other[len(straight) - 1 - k]
        assert one.documents == straight[k].documents
        assert two.documents == other[len(straight) - 1 - k].documents
    assert [straight[k].documents for k in range(len(straight))] == [
        other[k].documents for k in range(len(other))
    ]


def test_epochs_and_seeds_shuffle_and_pack_differently():
    rows = examples(60)
    orders = [tuple(packed(rows, epochs=1, seed=seed)[k].documents for k in range(4)) for seed in (1, 2)]
    twice = packed(rows, epochs=2)
    half = len(packed(rows, epochs=1)._bins)
    orders += [tuple(twice[k].documents for k in range(half, half + 4))]
    assert len(set(orders)) == 3
    assert tuple(twice[k].documents for k in range(4)) == orders[0]


def test_batches_are_whole_and_tokens_are_counted_once():
    rows = examples(30)
    tokens = sum(len(tokenized.ids) for _, tokenized in rows)
    samples = packed(rows, epochs=3, batch_size=7)
    assert len(samples) % 7 == 0
    assert samples.count_tokens(len(samples)) == 3 * tokens
    assert samples.epochs_by_source(len(samples)) == {"t": 3.0}
    assert 0 < samples.count_tokens(3) < samples.count_tokens(4) < tokens
    assert {len(samples[k].ids_S) for k in range(len(samples))} == {48}
    assert 0.7 < samples.fill_fraction <= 1
    assert packed(rows, pack=False).fill_fraction == 1.0


CPU = torch.device("cpu")
MODEL = our_llama(make_hf(0, tie_word_embeddings=True))


def losses(samples):
    """{(example, token): nats} of all rows, with plain logits and torch's own cross-entropy."""
    found = {}
    for k in range(len(samples)):
        row = samples[k]
        if (row.targets_S == IGNORE).all():
            continue
        ids_BS, targets_S = torch.tensor(row.ids_S)[None], torch.tensor(row.targets_S)
        mask = document_mask(torch.tensor(row.document_ids_S)[None])
        hidden_BSD = MODEL(ids_BS, positions_BS=torch.tensor(row.positions_S)[None], mask=mask)
        nll_S = F.cross_entropy(hidden_BSD[0] @ MODEL.head_weight.T, targets_S, reduction="none")
        for at in np.flatnonzero(row.targets_S != IGNORE):
            name = row.documents[row.document_ids_S[at]]
            found[name, int(row.positions_S[at])] = float(nll_S[at])
    return found


@torch.no_grad()
def test_packing_does_not_change_the_loss_of_a_token():
    rows = examples(40)
    alone, together = (losses(packed(rows, epochs=1, pack=value)) for value in (False, True))
    assert alone.keys() == together.keys()
    assert len(alone) == sum(sum(tokenized.in_loss) for _, tokenized in rows)
    np.testing.assert_allclose([together[key] for key in alone], list(alone.values()), rtol=0, atol=1e-5)


def gradients(samples, size):
    """The summed loss of all samples, `size` at a time, and its gradient."""
    MODEL.zero_grad()
    total = 0.0
    for start in range(0, len(samples), size):
        rows = [samples[k] for k in range(start, min(start + size, len(samples)))]
        nll = batch_nll(ModelStage(MODEL), collate(rows, by_document=True, device=CPU))
        nll.backward()
        total += nll.item()
    return total, {name: weight.grad.clone() for name, weight in MODEL.named_parameters()}


def test_packing_does_not_change_the_gradient():
    rows = examples(40)
    alone, wanted = gradients(packed(rows, epochs=1, pack=False), 4)
    together, found = gradients(packed(rows, epochs=1), 3)
    MODEL.zero_grad()
    assert together == pytest.approx(alone, rel=1e-6)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-4, atol=1e-4, msg=name)


def test_only_positions_with_a_target_reach_the_head(monkeypatch):
    seen = []
    real = torch.mm

    def counted(a, b, **settings):
        seen.extend([len(a)] if b.shape[-1] == len(MODEL.head_weight) else [])
        return real(a, b, **settings)

    samples = packed(examples(40), epochs=1)
    rows = [samples[k] for k in range(4)]
    monkeypatch.setattr(torch, "mm", counted)
    with torch.no_grad():
        batch_nll(ModelStage(MODEL), collate(rows, by_document=True, device=CPU))
    assert sum(seen) == sum(int((row.targets_S != IGNORE).sum()) for row in rows) < 4 * 48 / 2
