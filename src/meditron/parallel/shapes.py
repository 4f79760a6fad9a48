"""Sizes of the part of a model that one rank of a parallel layout has. Does not import torch.

DTensor and FSDP2 split a dimension as `torch.chunk` does. Tensor parallelism splits first, then FSDP splits
the rest; a pipeline stage has whole blocks.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

from meditron.model.config import LlamaConfig

__all__ = [
    "BatchDivision",
    "Coordinates",
    "LayoutShape",
    "ParameterShape",
    "attention_ranks",
    "chunk_length",
    "divide_batch",
    "rank_parameters",
    "rank_stages",
    "stage_blocks",
    "stage_parameters",
]


class BatchDivision(NamedTuple):
    """Micro-batches of one data-parallel rank in an optimizer step."""

    micro_batch_size: int
    """Samples of a forward and backward pass."""
    micro_batches: int
    """Number of micro-batches; the last one may have fewer samples, or masked ones that fill it up."""


def divide_batch(batch_size: int, micro_batch_size: int | None, data_ranks: int) -> BatchDivision:
    """Divide the samples of an optimizer step over the data-parallel ranks, rounded up, into micro-batches.

    Without `micro_batch_size` a rank computes its samples in one pass.
    """
    per_rank = -(-batch_size // data_ranks)
    size = min(micro_batch_size or per_rank, per_rank)
    return BatchDivision(size, -(-per_rank // size))


class Coordinates(NamedTuple):
    """Place of a rank in the mesh, outermost dimension first; ranks next to each other differ in `tp`."""

    pp: int
    dp_replicate: int
    dp_shard: int
    tp: int


@dataclass(frozen=True, slots=True)
class LayoutShape:
    """Sizes of a layout's mesh, all known."""

    dp_replicate: int = 1
    dp_shard: int = 1
    tp: int = 1
    pp: int = 1
    schedule: str = "1f1b"
    """Pipeline schedule: `1f1b`, `interleaved` or `zero-bubble`."""

    @property
    def ranks(self) -> int:
        """Number of ranks."""
        return self.dp_replicate * self.dp_shard * self.tp * self.pp

    @property
    def sizes(self) -> str:
        """The four sizes as text: `dp_replicate 1 · dp_shard 2 · tp 2 · pp 1`."""
        names = ("dp_replicate", "dp_shard", "tp", "pp")
        return " · ".join(f"{name} {getattr(self, name)}" for name in names)

    @property
    def data_ranks(self) -> int:
        """Number of data-parallel ranks, which share each batch."""
        return self.dp_replicate * self.dp_shard

    @property
    def stages_per_rank(self) -> int:
        """Groups of blocks of one rank: two with the schedules that keep less of the pipeline idle."""
        return 1 if self.pp == 1 or self.schedule == "1f1b" else 2

    @property
    def stages(self) -> int:
        """Number of pipeline stages."""
        return self.pp * self.stages_per_rank

    def divide_batch(self, batch_size: int, micro_batch_size: int | None) -> BatchDivision:
        """Divide a batch over the data-parallel ranks and into micro-batches."""
        # A pipeline's have one sample by default: the more micro-batches, the less it is idle.
        default = 1 if self.pp > 1 else None
        return divide_batch(batch_size, micro_batch_size or default, self.data_ranks)

    def coordinates(self, rank: int) -> Coordinates:
        """Return the place of a rank in the mesh (pp, dp_replicate, dp_shard, tp); tp varies fastest."""
        # Neighbours share a node: tensor parallelism communicates in every block, the pipeline least.
        rank, tp = divmod(rank, self.tp)
        rank, shard = divmod(rank, self.dp_shard)
        pp, replicate = divmod(rank, self.dp_replicate)
        return Coordinates(pp, replicate, shard, tp)


class ParameterShape(NamedTuple):
    """A parameter of the whole model and the dimension that tensor parallelism splits."""

    shape: tuple[int, ...]
    tp_dimension: int | None
    """0: rows, 1: columns, None: every tensor-parallel rank has all of it."""


def chunk_length(size: int, chunks: int, index: int) -> int:
    """Return the length of chunk `index` of `size` elements, by the rule of `torch.chunk`.

    Chunks have ceil(size / chunks) elements; the last ones may be shorter or empty.
    """
    step = -(-size // chunks)
    return max(0, min(step, size - index * step))


def attention_ranks(heads: int, kv_heads: int, tp: int) -> int:
    """Return the number of ranks that tensor parallelism divides attention over.

    A rank computes whole heads, so attention is divided only if `tp` divides both numbers of heads. Otherwise
    every tensor-parallel rank computes all of them (1), and only the MLP, the vocabulary and the norms are
    divided.
    """
    return tp if heads % tp == 0 and kv_heads % tp == 0 else 1


def stage_blocks(blocks: int, stages: int) -> list[range]:
    """Return the blocks of each pipeline stage.

    Every stage has blocks // stages. Blocks that are left over go to the stages in the middle, from the
    second on, because the first stage also has the embedding and the last one the head and the loss; only if
    there are more of them than such stages does the first stage get one.

    Raises:
        ValueError: there are fewer blocks than stages.
    """
    if not 1 <= stages <= blocks:
        raise ValueError(f"{blocks} blocks cannot be divided over {stages} pipeline stages")
    each, left = divmod(blocks, stages)
    # The last stage is never first choice: there are always fewer blocks left over than stages.
    by_preference = [*range(1, stages - 1), 0]
    larger = set(by_preference[:left])
    ranges, first = [], 0
    for stage in range(stages):
        end = first + each + (stage in larger)
        ranges.append(range(first, end))
        first = end
    return ranges


def rank_stages(pp: int, pp_rank: int, schedule: str) -> tuple[int, ...]:
    """Return the pipeline stages of a rank; with two of them, the stages are dealt out in two rounds."""
    return (pp_rank,) if pp == 1 or schedule == "1f1b" else (pp_rank, pp_rank + pp)


def block_shapes(config: LlamaConfig, tp: int) -> Iterator[ParameterShape]:
    """Yield the parameters of one block: its norms, the attention, the MLP."""
    divided = attention_ranks(config.num_attention_heads, config.num_key_value_heads, tp) == tp
    width = config.hidden_size
    queries = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    # Norms work on the whole width, so tensor-parallel ranks have copies of them.
    yield from (ParameterShape((width,), None) for _norm in range(2))
    if config.family.qk_norm:
        yield from (ParameterShape((config.head_dim,), None) for _norm in range(2))
    for rows in (queries, keys, keys):
        yield ParameterShape((rows, width), 0 if divided else None)
        if config.family.qkv_bias:
            yield ParameterShape((rows,), 0 if divided else None)
    # The output projection reads what a rank's heads computed: its columns are split, and its results summed.
    yield ParameterShape((width, queries), 1 if divided else None)
    yield from (ParameterShape((config.intermediate_size, width), 0) for _gate_and_up in range(2))
    yield ParameterShape((width, config.intermediate_size), 1)


def stage_shapes(config: LlamaConfig, layout: LayoutShape, stage: int) -> Iterator[ParameterShape]:
    """Yield the parameters of a pipeline stage, before data and tensor parallelism divide them."""
    vocabulary = (config.vocab_size, config.hidden_size)
    first, last = stage == 0, stage == layout.stages - 1
    if first:
        yield ParameterShape(vocabulary, 0)
    for _block in stage_blocks(config.num_hidden_layers, layout.stages)[stage]:
        yield from block_shapes(config, layout.tp)
    if last:
        yield ParameterShape((config.hidden_size,), None)
        # A tied head is the embedding itself, except on a stage that has no embedding: there it is a copy.
        if not (config.tie_word_embeddings and first):
            yield ParameterShape(vocabulary, 0)


def stage_parameters(config: LlamaConfig, layout: LayoutShape, stage: int) -> int:
    """Return the parameters of a pipeline stage, over all of its data- and tensor-parallel ranks' shards."""
    return sum(prod(parameter.shape) for parameter in stage_shapes(config, layout, stage))


def rank_parameters(config: LlamaConfig, layout: LayoutShape, rank: int) -> int:
    """Return the number of parameters, of all stages, in the shards that a rank stores.

    With float32 master weights a rank stores four bytes for each.
    """
    place = layout.coordinates(rank)
    return sum(
        _shard_size(parameter, layout, place)
        for stage in rank_stages(layout.pp, place.pp, layout.schedule)
        for parameter in stage_shapes(config, layout, stage)
    )


def _shard_size(parameter: ParameterShape, layout: LayoutShape, place: Coordinates) -> int:
    # Integers throughout: a part's size must be exact, because tests compare it with torch's to the byte.
    shape, dimension = list(parameter.shape), parameter.tp_dimension
    if dimension is not None:
        shape[dimension] = chunk_length(shape[dimension], layout.tp, place.tp)
    # FSDP splits the columns of a matrix whose rows tensor parallelism has split, else the rows.
    axis = 1 if layout.tp > 1 and dimension == 0 and len(shape) == 2 else 0
    shape[axis] = chunk_length(shape[axis], layout.dp_shard, place.dp_shard)
    return prod(shape)
