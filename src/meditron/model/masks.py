"""Attention masks for packed rows: a token sees itself and what came before it in its own document."""

import torch
from torch import Tensor

__all__ = ["document_mask", "document_positions"]

# Legend: B batch, S sequence of queries, T sequence of keys.


def document_mask(document_ids_BS: Tensor) -> Tensor | None:
    """The mask of packed rows for SDPA, bool of shape (B, 1, S, S), true where a query may look.

    `document_ids_BS` gives each token's document; documents stand one after another in a row.
    None when every row is a single document: plain causal attention is faster and the same.
    """
    if bool((document_ids_BS == document_ids_BS[:, :1]).all()):
        return None
    same_BST = document_ids_BS[:, :, None] == document_ids_BS[:, None, :]
    return same_BST.tril()[:, None]


def document_positions(document_ids_BS: Tensor) -> Tensor:
    """Each token's position within its document, of shape (B, S): 0 wherever a new document begins."""
    length = document_ids_BS.shape[1]
    index_S = torch.arange(length, device=document_ids_BS.device)
    starts_BS = torch.ones_like(document_ids_BS, dtype=torch.bool)
    starts_BS[:, 1:] = document_ids_BS[:, 1:] != document_ids_BS[:, :-1]
    return index_S - torch.where(starts_BS, index_S, 0).cummax(dim=1).values
