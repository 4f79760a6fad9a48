"""Attention masks for packed rows: a token sees itself and what came before it in its own document."""

from torch import Tensor

__all__ = ["document_mask"]

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
