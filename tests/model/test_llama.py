"""The model against transformers: tied and untied heads, grouped heads, packed rows, bf16."""

import pytest
import torch

from hf_parity import logits, make_hf, our_llama
from meditron.model.config import PRESETS
from meditron.model.llama import KVCache, Llama

GENERATOR = torch.Generator().manual_seed(3)
IDS_BS = torch.randint(0, 512, (2, 48), generator=GENERATOR)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tie_word_embeddings": True},
        {"num_key_value_heads": 4},
        {"num_key_value_heads": 1},
        {"head_dim": 24},
    ],
    ids=["grouped", "tied", "every-head", "one-kv-head", "wide-heads"],
)
@torch.no_grad()
def test_logits_are_those_of_transformers(changes):
    hf = make_hf(**changes)
    torch.testing.assert_close(logits(our_llama(hf), IDS_BS), hf(IDS_BS).logits, atol=1e-5, rtol=1e-5)


def test_gradients_are_those_of_transformers():
    hf = make_hf(tie_word_embeddings=True)
    model = our_llama(hf)
    hf(IDS_BS).logits.square().mean().backward()
    logits(model, IDS_BS).square().mean().backward()
    theirs = dict(hf.named_parameters())
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight.grad, theirs[name].grad, atol=1e-6, rtol=1e-4)


@torch.no_grad()
def test_bfloat16_is_as_near_the_truth_as_transformers_is():
    hf = make_hf()
    model, truth = our_llama(hf), hf(IDS_BS).logits
    ours = (logits(model.bfloat16(), IDS_BS) - truth).square().mean()
    theirs = (hf.bfloat16()(IDS_BS).logits - truth).square().mean()
    assert ours <= 1.2 * theirs


def test_names_are_those_of_transformers():
    for tied in (True, False):
        hf = make_hf(tie_word_embeddings=tied)
        assert [name for name, _ in our_llama(hf).named_parameters()] == [
            name for name, _ in hf.named_parameters()
        ]


@torch.no_grad()
def test_a_cache_in_pieces_changes_nothing():
    model = our_llama(make_hf())
    whole = model(IDS_BS)
    cache = KVCache(model.config, 2, 48, torch.float32, torch.device("cpu"))
    pieces = [model(piece, cache=cache) for piece in IDS_BS.split((20, 1, 1, 26), dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, atol=1e-5, rtol=1e-5)


def test_a_seed_is_a_model():
    first, again, other = (Llama(PRESETS["tiny"].config) for _ in range(3))
    first.init_weights(1)
    again.init_weights(1)
    other.init_weights(2)
    for (name, a), b, c in zip(first.named_parameters(), again.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        if a.dim() == 2:
            assert not torch.equal(a, c)
            assert a.std().item() == pytest.approx(0.02, rel=0.1), name
        else:
            assert bool((a == 1).all())


# dynamo looks at .grad of what comes in and warns about it itself
@pytest.mark.filterwarnings("ignore:The .grad attribute")
@pytest.mark.parametrize("masked", [False, True])
def test_a_block_is_one_graph(masked):
    model = our_llama(make_hf())
    mask = torch.ones(48, 48, dtype=torch.bool).tril()[None, None] if masked else None
    wanted = model(IDS_BS, mask=mask)
    for block in model.blocks():
        block.compile(backend="eager", fullgraph=True)
    torch.testing.assert_close(model(IDS_BS, mask=mask), wanted)
