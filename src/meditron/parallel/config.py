"""Config of a parallel layout: a recipe's `[pretrain.parallel]`. Does not import torch."""

from typing import Annotated, Literal

from pydantic import Field

from meditron.core.config import Config
from meditron.core.errors import RecipeError
from meditron.parallel.shapes import LayoutShape

__all__ = ["ActivationCheckpointing", "ParallelConfig", "Schedule"]

Schedule = Literal["1f1b", "interleaved", "zero-bubble"]
ActivationCheckpointing = Literal["none", "selective", "full"]
_Size = Annotated[int, Field(ge=1, le=1 << 20)]


class ParallelConfig(Config):
    """Distribution of a training over ranks: data, tensor and pipeline parallelism.

    The number of ranks is dp_replicate · dp_shard · tp · pp. A layout changes the rounding of sums and
    nothing else, so it is recorded beside a model and is not part of its fingerprint.
    """

    dp_replicate: _Size = 1
    """Data parallelism with whole copies of the model: number of copies."""

    dp_shard: _Size | None = None
    """Data parallelism that shards weights, gradients and optimizer state (FSDP): number of shards; by
    default the ranks that the other sizes leave."""

    tp: _Size = 1
    """Tensor parallelism, with sequence parallelism: ranks that share each matrix; best within a node. Must
    divide `intermediate_size`. If it does not divide the numbers of heads and of key/value heads, every rank
    computes the whole attention."""

    pp: _Size = 1
    """Pipeline parallelism: ranks that the blocks are divided over."""

    schedule: Schedule = "1f1b"
    """Order of the forward and backward passes of a pipeline. `interleaved` and `zero-bubble` give each rank
    two groups of blocks: less idle time, more communication."""

    activation_checkpointing: ActivationCheckpointing = "none"
    """Activations that are computed again in the backward pass instead of being kept: `selective` all but the
    results of matrix products and attention, `full` all but the inputs of the blocks."""

    timeout: Annotated[float, Field(gt=0, le=86_400)] = 1_800
    """Seconds without progress after which a rank counts as hung: each rank prints its stack, and the job
    ends."""

    def shape_on(self, ranks: int) -> LayoutShape:
        """Return the sizes on at most so many ranks; the smallest ones if the layout needs more."""
        others = self.dp_replicate * self.tp * self.pp
        dp_shard = self.dp_shard or max(1, ranks // others)
        return LayoutShape(self.dp_replicate, dp_shard, self.tp, self.pp, self.schedule)

    def resolve(self, ranks: int) -> LayoutShape:
        """Return the sizes for exactly a number of ranks.

        Raises:
            RecipeError: the product of the sizes is not the number of ranks.
        """
        shape = self.shape_on(ranks)
        if shape.ranks != ranks:
            raise RecipeError(
                f"the layout has {shape.ranks} ranks ({shape.sizes}), but the job has {ranks}",
                hint=f"start {shape.ranks} ranks (--nproc {shape.ranks}), or change the table [parallel]",
            )
        return shape
