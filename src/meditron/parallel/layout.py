"""The layout of a training: the mesh of its ranks, and what they reduce over it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from meditron.parallel.config import ParallelConfig
from meditron.parallel.shapes import LayoutShape
from meditron.parallel.world import World

__all__ = ["Layout", "build_layout", "tensor_norms"]


@dataclass(frozen=True)
class Layout:
    """The ranks of a training: one process, or a mesh of the dimensions pp, dp_replicate, dp_shard and tp."""

    config: ParallelConfig
    shape: LayoutShape
    device: torch.device
    """Device of this rank's weights and batches."""
    rank: int = 0
    mesh: DeviceMesh | None = None
    """None for a single process."""
    cpu_group: ProcessGroup | None = field(default=None, repr=False)
    """The ranks' group for small values and objects, which stay in host memory."""

    @property
    def is_distributed(self) -> bool:
        """True if there is more than one rank."""
        return self.mesh is not None

    @property
    def is_main(self) -> bool:
        """True on the rank that writes files and prints."""
        return self.rank == 0

    @property
    def data_size(self) -> int:
        """Number of data-parallel ranks, which share each batch."""
        return self.shape.data_ranks

    @property
    def data_rank(self) -> int:
        """Number of this rank among the data-parallel ranks."""
        place = self.shape.coordinates(self.rank)
        return place.dp_replicate * self.shape.dp_shard + place.dp_shard

    @property
    def pipeline_rank(self) -> int:
        """Number of this rank in the pipeline."""
        return self.shape.coordinates(self.rank).pp

    @property
    def tensor_rank(self) -> int:
        """Number of this rank among the tensor-parallel ranks."""
        return self.shape.coordinates(self.rank).tp

    @cached_property
    def fsdp_mesh(self) -> DeviceMesh:
        """The data-parallel mesh that FSDP shards over: 2-D if whole copies of the model are replicated."""
        assert self.mesh is not None  # noqa: S101
        return self.mesh["dp_replicate", "dp_shard"] if self.shape.dp_replicate > 1 else self.mesh["dp_shard"]

    @cached_property
    def tp_mesh(self) -> DeviceMesh:
        """The mesh of this rank's tensor-parallel ranks."""
        assert self.mesh is not None  # noqa: S101
        return self.mesh["tp"]

    def sum_targets(self, targets: int) -> int:
        """Return the targets of a batch, given those of this rank's samples."""
        if not self.is_distributed:
            return targets
        # Tensor-parallel and pipeline ranks have the same samples: one of them counts.
        counts = self.tensor_rank == 0 and self.pipeline_rank == 0
        summed = torch.tensor(targets if counts else 0)
        dist.all_reduce(summed, group=self.cpu_group)
        return int(summed)

    def reduce_step(self, loss: Tensor, stop: bool) -> tuple[float, bool]:
        """Return the loss of the batch, and True if any rank was asked to stop.

        Args:
            loss: This rank's part of the loss; zero on ranks without the pipeline's last stage.
            stop: True if this rank was asked to stop.
        """
        if not self.is_distributed:
            return float(loss), stop
        # Tensor-parallel ranks have equal losses: one of them counts.
        values = [float(loss) if self.tensor_rank == 0 else 0.0, float(stop)]
        summed = torch.tensor(values, dtype=torch.float64)
        dist.all_reduce(summed, group=self.cpu_group)
        return float(summed[0]), bool(summed[1] > 0)

    def gradient_norm(self, gradients: Mapping[str, tuple[Tensor, int]]) -> Tensor:
        """Return the 2-norm of the whole gradient, equal on every rank.

        Args:
            gradients: Name → this rank's shard of the gradient, and the number of ranks with an equal shard.
        """
        shards = [shard for shard, _ in gradients.values()]
        norms = tensor_norms(shards) if shards else torch.zeros(0, dtype=torch.float64, device=self.device)
        # Each shard counts once, however many ranks have it.
        copies = torch.tensor([count for _, count in gradients.values()], device=norms.device)
        total = (norms.square() / copies).sum()
        dist.all_reduce(total)
        return total.sqrt()

    def any(self, value: bool) -> bool:
        """Return True if the value of any rank is true."""
        if not self.is_distributed:
            return value
        values = torch.tensor(int(value))
        dist.all_reduce(values, dist.ReduceOp.MAX, group=self.cpu_group)
        return bool(values)

    def sum(self, value: float) -> float:
        """Return the sum of the values of all ranks."""
        if not self.is_distributed:
            return value
        values = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(values, group=self.cpu_group)
        return float(values)

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self.is_distributed:
            dist.barrier(group=self.cpu_group)

    def describe(self) -> dict[str, Any]:
        """Return the layout as plain JSON, for the manifest."""
        names = ("dp_replicate", "dp_shard", "tp", "pp")
        sizes = {name: getattr(self.shape, name) for name in names}
        return {**sizes, "schedule": self.shape.schedule} if self.shape.pp > 1 else sizes


def tensor_norms(tensors: Iterable[Tensor]) -> Tensor:
    """Return the 2-norm of each tensor, in float64.

    On a CPU torch sums the squares of a float32 tensor one after another in float32: the norm of 10^8
    elements comes out one percent too small (pytorch/pytorch#169237), so clipping would depend on the layout.
    A row is short enough for float32.
    """
    rows = (torch.linalg.vector_norm(tensor, dim=-1).double() for tensor in tensors)
    return torch.stack([torch.linalg.vector_norm(norms) for norms in rows])


def build_layout(config: ParallelConfig, world: World, device: torch.device) -> Layout:
    """Build the layout of this process's rank; the process group of more than one rank must exist.

    Raises:
        RecipeError: the sizes' product is not the number of ranks.
    """
    shape = config.resolve(world.size)
    if world.size == 1:
        return Layout(config, shape, device)
    sizes = (shape.pp, shape.dp_replicate, shape.dp_shard, shape.tp)
    mesh = init_device_mesh(device.type, sizes, mesh_dim_names=("pp", "dp_replicate", "dp_shard", "tp"))
    group = dist.new_group(backend="gloo")
    return Layout(config, shape, device, world.rank, mesh, group)
