"""Rows of the embedding and of the head for tokens that a training adds to a vocabulary.

Each new row is the mean of the rows of all earlier tokens. A random row would have a logit of any size; with
the mean, the probability of a new token is at most about that of an average one, and the model's other
probabilities hardly change (Hewitt 2021, "Initializing New Word Embeddings for Pretrained Language Models").

Shapes: V rows of the embedding, D width.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from meditron.model.config import LlamaConfig

__all__ = ["EMBEDDING", "HEAD", "ExtendedWeights", "NewTokens", "extended_config"]

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


class NewTokens(NamedTuple):
    """The ids of tokens that are added to a model's vocabulary: from `first` to before `end`."""

    first: int
    """The number of tokens before. An embedding may have more rows, as padding."""
    end: int
    """The number of tokens afterwards."""


def extended_config(config: LlamaConfig, new: NewTokens) -> LlamaConfig:
    """Return the config of the model with the new tokens.

    Rows that pad the embedding are used first: the embedding grows only if they are too few.
    """
    return config.model_copy(update={"vocab_size": max(config.vocab_size, new.end)})


class ExtendedWeights(Mapping[str, Tensor]):
    """The weights of a model whose embedding and head have rows for new tokens; each access reads one.

    Args:
        weights: The weights of the model, by HF's names.
        new: The new tokens.
    """

    def __init__(self, weights: Mapping[str, Tensor], new: NewTokens) -> None:
        self._weights, self._new = weights, new

    def __getitem__(self, name: str) -> Tensor:
        """Return a weight in its stored dtype."""
        weight = self._weights[name]
        return _with_mean_rows(weight, self._new) if name in (EMBEDDING, HEAD) else weight

    def __iter__(self) -> Iterator[str]:
        """Iterate over the names."""
        return iter(self._weights)

    def __len__(self) -> int:
        """Return the number of weights."""
        return len(self._weights)


def _with_mean_rows(weight_VD: Tensor, new: NewTokens) -> Tensor:
    """Return a copy with the mean of the rows before `new.first` in each row of a new token."""
    # In float64 the sum does not depend on the number of threads, so the rows are the same in every layout.
    mean_D = weight_VD[: new.first].mean(0, dtype=torch.float64).to(weight_VD.dtype)
    rows = max(len(weight_VD), new.end)
    extended_VD = weight_VD.new_empty(rows, weight_VD.shape[1])
    extended_VD[: len(weight_VD)] = weight_VD
    extended_VD[new.first : new.end] = mean_D
    return extended_VD
