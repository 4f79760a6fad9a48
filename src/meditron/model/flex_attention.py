"""Attention on a GPU for packed documents: FlexAttention (Dong et al. 2024) with a mask of blocks.

An explicit mask of S × S elements takes memory quadratic in the sequence and computes every score. A block
mask lists the blocks of 128 × 128 scores that are visible at all; the kernel skips the others, and its sums
have a fixed order, so results repeat to the last bit.

Shapes: B batch, H heads, K key/value heads, S sequence, E head width, G blocks of a sequence.
"""

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

from meditron.model.llama import document_mask, sdpa

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

__all__ = ["attend_to_blocks", "document_block_mask", "visible_documents"]

# The size that FlexAttention's kernels are tuned for.
_BLOCK = 128


def visible_documents(documents_BS: Tensor) -> Any:  # noqa: ANN401
    """Return the attention mask of packed rows: causal, and within a document only.

    Args:
        documents_BS: The document of each token; the numbers do not decrease along a row.

    Returns:
        On a GPU `document_block_mask`, elsewhere `model.llama.document_mask`.
    """
    if documents_BS.device.type == "cuda":
        return document_block_mask(documents_BS)
    return document_mask(documents_BS)


def attend_to_blocks(
    q_BHSE: Tensor,
    k_BKSE: Tensor,
    v_BKSE: Tensor,
    mask: Any,  # noqa: ANN401
    causal: bool,
) -> Tensor:
    """Compute `sdpa`, or FlexAttention if the mask is a BlockMask; for `Attention.attend`.

    Without compilation FlexAttention computes all scores, so on a GPU it is always compiled; that needs
    Triton, which torch's packages for GPUs contain.
    """
    if mask is None or isinstance(mask, Tensor):
        return sdpa(q_BHSE, k_BKSE, v_BKSE, mask, causal)
    group = q_BHSE.shape[1] != k_BKSE.shape[1]
    out_BHSE: Tensor = _flex(q_BHSE.is_cuda)(q_BHSE, k_BKSE, v_BKSE, block_mask=mask, enable_gqa=group)
    return out_BHSE


def _flex(on_gpu: bool) -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    # Inside a compiled block it is compiled together with the block.
    if on_gpu and not torch.compiler.is_compiling():
        return _compiled_flex()
    return flex_attention


@cache
def _compiled_flex() -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention)


def document_block_mask(documents_BS: Tensor) -> "BlockMask":
    """Return `model.llama.document_mask` as FlexAttention's block mask, on the device of `documents_BS`.

    torch's `create_block_mask` computes all S² elements first. Documents are contiguous, so the first and the
    last document of each block are enough. Nothing here waits for the GPU.
    """
    # Imported here, because it imports torch's compiler, which takes seconds and is not needed on a CPU.
    from torch.nn.attention.flex_attention import BlockMask

    length = documents_BS.shape[1]
    blocks = -(-length // _BLOCK)
    eye_GG = torch.eye(blocks, dtype=torch.bool, device=documents_BS.device)
    before_GG = torch.ones_like(eye_GG).tril(-1)
    # The last block is filled up with its last document.
    padded_BS = F.pad(documents_BS[:, None], (0, blocks * _BLOCK - length), mode="replicate")[:, 0]
    ends_BG2 = padded_BS.view(-1, blocks, _BLOCK)[..., [0, -1]]
    first_BG, last_BG = ends_BG2.unbind(-1)
    # A block of keys is visible if its last document is the first one of the queries …
    visible_BGG = before_GG & (last_BG[:, None, :] == first_BG[:, :, None])
    # … and all of it is visible to all of them if both consist of this document only.
    full_BGG = visible_BGG & (first_BG[:, None, :] == last_BG[:, :, None])
    if length % _BLOCK:
        # The kernels check the end of the sequence in partial blocks only.
        full_BGG[:, -1] = False
    # Queries see a part of their own block: its causal half.
    partial_BGG = (visible_BGG & ~full_BGG) | eye_GG

    def is_visible(batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return (query >= key) & (documents_BS[batch, query] == documents_BS[batch, key])

    return BlockMask.from_kv_blocks(
        *_counts_and_indices(partial_BGG),
        *_counts_and_indices(full_BGG),
        BLOCK_SIZE=_BLOCK,
        mask_mod=is_visible,
        seq_lengths=(length, length),
    )


def _counts_and_indices(chosen_BGG: Tensor) -> tuple[Tensor, Tensor]:
    """Return the number of chosen blocks of each row and the blocks' indices, the chosen ones first.

    The dimension of heads is 1: all heads have the same mask.
    """
    chosen_B1GG = chosen_BGG[:, None].int()
    indices_B1GG = chosen_B1GG.argsort(stable=True, dim=-1, descending=True)
    return chosen_B1GG.sum(-1, dtype=torch.int32), indices_B1GG.int()
