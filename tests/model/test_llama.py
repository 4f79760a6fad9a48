"""The model against transformers: tied and untied heads, grouped heads, packed rows, bf16."""

import pytest
import torch

from hf_parity import logits, make_hf, our_llama
from meditron.model.generate import generate, generate_batch
from meditron.model.llama import KVCache, Llama, document_mask
from meditron.model.nll import document_nll
from meditron.model.presets import PRESETS
from meditron.model.sampling import SamplingConfig

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
def test_logits_equal_transformers(changes):
    hf = make_hf(**changes)
    torch.testing.assert_close(logits(our_llama(hf), IDS_BS), hf(IDS_BS).logits, atol=1e-5, rtol=1e-5)


def test_gradients_equal_transformers():
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


def test_parameter_names_equal_transformers():
    for tied in (True, False):
        hf = make_hf(tie_word_embeddings=tied)
        assert [name for name, _ in our_llama(hf).named_parameters()] == [
            name for name, _ in hf.named_parameters()
        ]


@torch.no_grad()
def test_a_forward_in_pieces_with_a_cache_equals_one_forward():
    model = our_llama(make_hf())
    whole = model(IDS_BS)
    cache = KVCache(model.config.num_hidden_layers, 48)
    pieces = [model(piece, cache=cache) for piece in IDS_BS.split((20, 1, 1, 26), dim=1)]
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_truncated_cache_holds_the_beginning():
    model = our_llama(make_hf())
    whole = model(IDS_BS)
    cache = KVCache(model.config.num_hidden_layers, 48)
    model(IDS_BS[:, :20], cache=cache)
    model(IDS_BS.flip(1)[:, :15], cache=cache)
    cache.truncate(20)
    torch.testing.assert_close(model(IDS_BS[:, 20:], cache=cache), whole[:, 20:], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_masks_positions_and_caches_are_on_the_models_device():
    """A tensor made on the default device, here one without storage, could not meet the model's."""
    model, alone = our_llama(make_hf()), [[5, 6, 7], [8, 9]]
    wanted = [list(generate(model, ids, SamplingConfig(max_tokens=5))) for ids in alone]
    mask = document_mask(torch.arange(48)[None] // 20)
    hidden_BSD = model(IDS_BS, mask=mask)
    elsewhere = our_llama(make_hf()).to("meta")
    with torch.device("meta"):
        torch.testing.assert_close(model(IDS_BS, mask=mask), hidden_BSD, atol=0, rtol=0)
        assert [list(generate(model, ids, SamplingConfig(max_tokens=5))) for ids in alone] == wanted
        steps = list(generate_batch(model, alone, [SamplingConfig(max_tokens=5)] * 2))
        assert [[step[row] for step in steps] for row in range(2)] == wanted
        document_nll(model, alone)
        model.init_weights(1)
    assert all(weight.device.type == "cpu" for weight in model.parameters())
    cache = KVCache(model.config.num_hidden_layers, 50)
    for ids_BS in (IDS_BS, IDS_BS[:, :1], IDS_BS[:, :1]):
        assert elsewhere(ids_BS.to("meta"), cache=cache).device.type == "meta"


@torch.no_grad()
def test_a_model_wrapped_block_by_block_is_the_same_model():
    """Parallelism is applied from outside: blocks may be replaced by modules with their signature."""

    class Wrapped(torch.nn.Module):
        def __init__(self, block):
            super().__init__()
            self.block = block

        def forward(self, *inputs):
            return self.block(*inputs)

    model = our_llama(make_hf())
    wanted = model(IDS_BS)
    for index, block in enumerate(list(model.blocks())):
        model.model.layers[index] = Wrapped(block)
    assert torch.equal(model(IDS_BS), wanted)
    assert len(list(generate(model, [1, 2], SamplingConfig(max_tokens=3)))) == 3


def test_a_seed_repeats_the_initial_weights():
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
