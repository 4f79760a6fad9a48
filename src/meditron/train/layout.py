"""Parallel layouts: the interface through which a training runs on several devices or processes (ranks)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from meditron.model.llama import Llama

__all__ = ["SINGLE_PROCESS", "ParallelLayout", "SingleProcess", "TrainableModel"]


# The type is a protocol and not `Llama`, because a layout may return a wrapper that is not a subclass of
# `Llama`.
class TrainableModel(Protocol):
    """The interface of a model that the training loop uses; `Llama` and any wrapper around it have it."""

    @property
    def head_weight(self) -> Tensor:
        """The output projection, (V, D)."""
        ...

    def __call__(
        self, ids_BS: Tensor, *, positions_BS: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """Return the last hidden states, (B, S, D)."""
        ...


class ParallelLayout(Protocol):
    """Distribution of one training over ranks.

    The training loop and the model contain no other code for parallelism.
    """

    @property
    def rank(self) -> int:
        """Data-parallel rank of this process: it trains on samples rank, rank + world_size, … of a batch."""
        ...

    @property
    def world_size(self) -> int:
        """Number of data-parallel ranks that share each batch."""
        ...

    @property
    def device(self) -> torch.device:
        """Device of this rank's weights and batches."""
        ...

    def wrap_model(self, model: Llama) -> TrainableModel:
        """Return the model to train; called once, before the optimizer takes the model's parameters."""
        ...

    def sum_over_ranks(self, value: Tensor) -> Tensor:
        """Return the sum of a value over the ranks."""
        ...

    def sum_gradients(self, gradients: Sequence[Tensor]) -> None:
        """Sum gradients over the ranks, in place.

        The loss of a rank is already divided by the targets of the whole batch, so a sum gives the gradient
        of the mean; averaging would divide twice.
        """
        ...


@dataclass(frozen=True)
class SingleProcess:
    """The layout of one process on one device."""

    device: torch.device
    rank: int = 0
    world_size: int = 1

    def wrap_model(self, model: Llama) -> TrainableModel:
        """Return the model itself."""
        return model

    def sum_over_ranks(self, value: Tensor) -> Tensor:
        """Return the value itself."""
        return value

    def sum_gradients(self, gradients: Sequence[Tensor]) -> None:
        """Do nothing: there is one rank."""


# Default layout of every training function: one process on a CPU.
SINGLE_PROCESS = SingleProcess(torch.device("cpu"))
