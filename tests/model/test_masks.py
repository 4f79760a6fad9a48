"""A document in a packed row gives the same hidden states as alone."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_parity import make_hf, our_llama
from meditron.model.llama import document_mask

MODEL = our_llama(make_hf())
LENGTHS = st.lists(st.integers(1, 12), min_size=1, max_size=6)


def packed(lengths):
    return torch.repeat_interleave(torch.arange(len(lengths)), torch.tensor(lengths))[None]


def restarting(lengths):
    return torch.cat([torch.arange(length) for length in lengths])[None]


@given(LENGTHS)
@settings(max_examples=30, deadline=None)
@torch.no_grad()
def test_documents_do_not_see_each_other(lengths):
    documents_BS = packed(lengths)
    ids_BS = torch.randint(0, 512, documents_BS.shape, generator=torch.Generator().manual_seed(sum(lengths)))
    hidden_BSD = MODEL(ids_BS, positions_BS=restarting(lengths), mask=document_mask(documents_BS))
    alone = torch.cat([MODEL(piece) for piece in ids_BS.split(lengths, dim=1)], dim=1)
    torch.testing.assert_close(hidden_BSD, alone, atol=2e-5, rtol=1e-5)


@torch.no_grad()
def test_without_a_mask_they_would():
    documents_BS = packed([20, 20])
    ids_BS = torch.arange(40)[None]
    positions_BS = restarting([20, 20])
    masked = MODEL(ids_BS, positions_BS=positions_BS, mask=document_mask(documents_BS))
    assert (masked - MODEL(ids_BS, positions_BS=positions_BS))[:, 20:].abs().max() > 0.01


def test_one_document_needs_no_mask():
    assert document_mask(torch.tensor([[3, 3, 3], [7, 7, 7]])) is None
    assert document_mask(torch.tensor([[3, 3, 3], [7, 7, 8]])) is not None
