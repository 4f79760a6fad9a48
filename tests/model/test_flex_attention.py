"""Block masks of documents against torch's own, and FlexAttention against explicit masks (on a CPU: eagerly).

torch has no gradient of FlexAttention on a CPU, so these are forward passes.
"""

import pytest
import torch
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from hf_parity import make_hf, our_llama
from meditron.model.flex_attention import attend_to_blocks, document_block_mask, visible_documents
from meditron.model.llama import document_mask, sdpa

# torch's own, about speed without compilation.
pytestmark = pytest.mark.filterwarnings("ignore:.*flex_attention called without torch.compile")

FIELDS = ("kv_num_blocks", "kv_indices", "full_kv_num_blocks", "full_kv_indices")


def packed(length, *, rows=3, share=0.02):
    """Rows of random documents; the first row is a single one."""
    generator = torch.Generator().manual_seed(length)
    starts = torch.rand(rows, length, generator=generator) < share
    starts[:, 0] = starts[0] = False
    return starts.long().cumsum(1)


@pytest.mark.parametrize("share", [0.002, 0.02, 0.5])
@pytest.mark.parametrize("length", [1, 64, 128, 129, 300, 512, 700])
def test_the_block_mask_is_the_one_that_torch_computes_from_all_elements(length, share):
    documents_BS = packed(length, share=share)

    def visible(batch, head, query, key):
        return (query >= key) & (documents_BS[batch, query] == documents_BS[batch, key])

    ours = document_block_mask(documents_BS)
    theirs = create_block_mask(visible, len(documents_BS), None, length, length, device="cpu")
    assert ours.shape == theirs.shape
    for field in FIELDS:
        assert torch.equal(getattr(ours, field), getattr(theirs, field)), field
    assert torch.equal(ours.to_dense(), theirs.to_dense())


@torch.no_grad()
@pytest.mark.parametrize("shared", [4, 2])
@pytest.mark.parametrize("length", [37, 256, 300])
def test_attention_to_blocks_equals_attention_with_the_explicit_mask(length, shared):
    documents_BS = packed(length)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(3, heads, length, 16, generator=generator) for heads in (4, shared, shared))
    ours = attend_to_blocks(q, k, v, document_block_mask(documents_BS), False)
    torch.testing.assert_close(ours, sdpa(q, k, v, document_mask(documents_BS), False), rtol=0, atol=2e-6)


@torch.no_grad()
def test_other_masks_are_left_to_sdpa():
    q, k, v = torch.randn(3, 1, 2, 20, 16)
    mask = document_mask(torch.arange(20)[None] // 7)
    assert torch.equal(attend_to_blocks(q, k, v, mask, False), sdpa(q, k, v, mask, False))
    assert torch.equal(attend_to_blocks(q, k, v, None, True), sdpa(q, k, v, None, True))


def test_on_a_cpu_masks_are_tensors():
    documents_BS = packed(300)
    assert torch.equal(visible_documents(documents_BS), document_mask(documents_BS))
    assert not isinstance(visible_documents(documents_BS), BlockMask)


@torch.no_grad()
def test_blocks_are_compiled_once_for_all_masks():
    """Each batch has a mask of its own; a compilation per mask would take longer than the training."""
    hf = make_hf()
    plain, model = our_llama(hf).double(), our_llama(hf).double()
    graphs = []

    def count_graphs(graph, _inputs):
        graphs.append(graph)
        return graph

    torch.compiler.reset()
    for block in model.blocks():
        block.self_attn.attend = attend_to_blocks
        block.compile(backend=count_graphs, fullgraph=True)
    for share in (0.01, 0.02, 0.1):
        documents_BS = packed(256, rows=2, share=share)
        ids_BS = torch.arange(512).view(2, 256) % 300
        ours = model(ids_BS, mask=document_block_mask(documents_BS))
        theirs = plain(ids_BS, mask=document_mask(documents_BS))
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    assert len(graphs) == 1
