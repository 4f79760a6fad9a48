"""The work of a training as the speed and memory models see it: a shape, a batch, a layout."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple, Self

from meditron.model.config import LlamaConfig
from meditron.parallel.shapes import attention_ranks, divide_batch

__all__ = ["ATTENTION_ONLY", "FULL", "NONE", "SELECTIVE", "Matrix", "ModelShape", "Recomputation", "Workload"]

DataParallel = Literal["none", "fsdp", "hsdp", "zero1"]
AttentionKernel = Literal["flash", "unfused"]


class Matrix(NamedTuple):
    """A weight matrix of a block, (rows, columns), before tensor parallelism splits one of the two."""

    rows: int
    columns: int
    split: int
    """Dimension that tensor parallelism splits: 0 or 1."""
    attention: bool
    """True for a matrix of attention, which is split only if the heads can be divided."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """Sizes of a decoder-only transformer; also those of published models that are no Llamas."""

    width: int
    blocks: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp_width: int
    mlp_matrices: int = 3
    """3 with SwiGLU (gate, up, down), 2 with GELU (up, down)."""
    vocabulary: int
    tied: bool = False

    @classmethod
    def from_config(cls, config: LlamaConfig) -> Self:
        """Return the sizes of a model's config."""
        return cls(
            width=config.hidden_size,
            blocks=config.num_hidden_layers,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            head_dim=config.head_dim,
            mlp_width=config.intermediate_size,
            vocabulary=config.vocab_size,
            tied=config.tie_word_embeddings,
        )

    @property
    def query_width(self) -> int:
        """Width of all query heads together."""
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Width of all key (or value) heads together."""
        return self.kv_heads * self.head_dim

    def matrices(self) -> Iterator[Matrix]:
        """Yield the matrices of a block. Queries, keys and values are one product, like gate and up."""
        yield Matrix(self.query_width + 2 * self.kv_width, self.width, 0, attention=True)
        yield Matrix(self.width, self.query_width, 1, attention=True)
        yield Matrix((self.mlp_matrices - 1) * self.mlp_width, self.width, 0, attention=False)
        yield Matrix(self.width, self.mlp_width, 1, attention=False)

    @property
    def block_parameters(self) -> int:
        """Parameters of the matrices of one block."""
        return sum(matrix.rows * matrix.columns for matrix in self.matrices())

    @property
    def parameters(self) -> int:
        """Parameters of all matrices; norms and biases are left out: their products cost nothing."""
        return self.blocks * self.block_parameters + self.vocabulary * self.width * (1 if self.tied else 2)


class Recomputation(NamedTuple):
    """Shares of the forward pass that the backward pass computes again."""

    matrices: float
    attention: float
    elementwise: float
    collectives: float
    """Of tensor parallelism."""


NONE = Recomputation(0, 0, 0, 0)
FULL = Recomputation(1, 1, 1, 1)
SELECTIVE = Recomputation(0, 0, 1, 1)
"""All but the results of matrix products and attention."""
ATTENTION_ONLY = Recomputation(0, 1, 0, 0)
"""The selective recomputation of Korthikanti et al. 2022: scores, softmax and their product with V."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """One optimizer step: the model, its batch and its layout over GPUs."""

    model: ModelShape
    sequence_length: int
    batch_size: int
    """Samples of a step, over all ranks."""
    micro_batch_size: int
    """Samples of a forward and backward pass of one rank."""
    dp_replicate: int = 1
    dp_shard: int = 1
    tp: int = 1
    pp: int = 1
    chunks: int = 1
    """Pipeline stages of a rank: above 1 with an interleaved schedule."""
    bubble_share: float = 1.0
    """Part of the interleaved bubble that a schedule leaves: below 1 for zero-bubble schedules."""
    data_parallel: DataParallel = "fsdp"
    recomputation: Recomputation = NONE
    attention: AttentionKernel = "flash"
    sequence_parallel: bool = True
    """Norms and residuals are split over the tensor-parallel ranks."""
    frozen: bool = False
    """The matrices get no gradients: only adapters are trained."""
    quantized: bool = False
    """The matrices are stored in 4 bits and widened for each product."""

    @property
    def gpus(self) -> int:
        """Number of GPUs."""
        return self.dp_replicate * self.dp_shard * self.tp * self.pp

    @property
    def attention_tp(self) -> int:
        """Tensor-parallel ranks that share the attention; 1 if its heads cannot be divided."""
        return attention_ranks(self.model.heads, self.model.kv_heads, self.tp)

    @property
    def tokens(self) -> int:
        """Tokens of an optimizer step."""
        return self.batch_size * self.sequence_length

    @property
    def micro_batches(self) -> int:
        """Forward and backward passes of one rank in an optimizer step."""
        return divide_batch(
            self.batch_size, self.micro_batch_size, self.dp_replicate * self.dp_shard
        ).micro_batches
