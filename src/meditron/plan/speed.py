"""The time of an optimizer step: a sum over the parts of a transformer, bound by arithmetic or a bandwidth.

Every term is either counted (operations, bytes) or one of the few constants of `Constants`; a constant is
either measured by somebody (its source is in `constants.toml`) or fitted to published runs
(`benchmarks/plan.py`).
"""

from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

from meditron.parallel.shapes import stage_blocks
from meditron.plan.workload import Workload

__all__ = ["Constants", "Hardware", "StepTime", "step_time"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """Peak rates of one GPU and of its links, as the vendor states them."""

    peak_flops: float
    """Dense bfloat16 operations per second."""
    memory_bandwidth: float
    """Bytes per second of the GPU's memory."""
    intra_node_bandwidth: float
    """Bytes per second that a GPU sends to the others of its node, in one direction."""
    inter_node_bandwidth: float
    """Bytes per second of the node's network links, divided by its GPUs, in one direction."""
    gpus_per_node: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Constants:
    """Achieved fractions of the peak rates, and overheads."""

    matrix_fraction: float
    """Matrix products: fraction of peak FLOP/s of a large product. Fitted for each kind of GPU."""
    attention_fraction: float
    """Flash attention, forward and backward, causal: fraction of peak FLOP/s."""
    memory_fraction: float
    """Streams through memory: fraction of peak bandwidth."""
    link_fraction: float
    """Collectives within a node: fraction of the link's bandwidth."""
    network_fraction: float
    """Collectives between nodes: fraction of the network's bandwidth."""
    overlap: float
    """Part of the FSDP communication that runs beside computation, if there is enough of it. Fitted."""
    elementwise_passes: float
    """Bytes that norms, activations and residuals move, as a multiple of the least possible. Fitted."""
    collective_latency: float
    """Seconds of a tensor-parallel collective without its bytes."""
    block_overhead: float
    """Seconds of a block's forward and backward pass that the size of the work does not change. Fitted."""
    step_overhead: float
    """Seconds of an optimizer step for data loading, logging and synchronisation."""


class StepTime(NamedTuple):
    """Seconds of the parts of an optimizer step on the slowest rank; they add up to the step's time."""

    matrices: float
    attention: float
    elementwise: float
    head: float
    """Logits and loss."""
    recomputation: float
    tensor_parallel: float
    pipeline_transfer: float
    bubble: float
    data_parallel: float
    """Communication of gradients and weights that computation does not hide."""
    optimizer: float
    overhead: float

    @property
    def total(self) -> float:
        """Seconds of the whole step."""
        return sum(self)


class _Pass(NamedTuple):
    """Seconds of one micro-batch, forward and backward, in one block (or in the head)."""

    matrices: float = 0.0
    attention: float = 0.0
    elementwise: float = 0.0
    head: float = 0.0
    recomputation: float = 0.0
    tensor_parallel: float = 0.0
    overhead: float = 0.0

    def times(self, count: float) -> "_Pass":
        return _Pass(*(count * value for value in self))

    def plus(self, other: "_Pass") -> "_Pass":
        return _Pass(*(a + b for a, b in zip(self, other, strict=True)))


def step_time(work: Workload, hardware: Hardware, constants: Constants) -> StepTime:
    """Predict the time of an optimizer step.

    The pipeline's steady state is paced by the slowest rank; filling and draining it costs (pp - 1) / chunks
    passes more (Narayanan et al. 2021, section 2.2).
    """
    ranks = _rank_passes(work, hardware, constants)
    # Every rank waits for the slowest, usually the last one with the head.
    slowest = max(ranks, key=sum)
    whole = slowest.times(work.micro_batches)
    mean = sum(map(sum, ranks)) / len(ranks)
    bubble = work.bubble_share * (work.pp - 1) / work.chunks * mean
    return StepTime(
        matrices=whole.matrices,
        attention=whole.attention,
        elementwise=whole.elementwise,
        head=whole.head,
        recomputation=whole.recomputation,
        tensor_parallel=whole.tensor_parallel,
        pipeline_transfer=_pipeline_transfer(work, hardware, constants),
        bubble=bubble,
        data_parallel=_data_parallel(work, hardware, constants, sum(whole)),
        optimizer=_optimizer(work, hardware, constants),
        overhead=whole.overhead + constants.step_overhead,
    )


def _rank_passes(work: Workload, hardware: Hardware, constants: Constants) -> list[_Pass]:
    """Return the time of one micro-batch on each pipeline rank, with all of its stages."""
    block, head = _block(work, hardware, constants), _head(work, hardware, constants)
    counts = _blocks_per_rank(work.model.blocks, work.pp, work.chunks)
    passes = {count: block.times(count) for count in set(counts)}
    return [*(passes[count] for count in counts[:-1]), passes[counts[-1]].plus(head)]


@cache
def _blocks_per_rank(blocks: int, pp: int, chunks: int) -> tuple[int, ...]:
    stages = stage_blocks(blocks, pp * chunks)
    return tuple(sum(map(len, stages[rank::pp])) for rank in range(pp))


def _block(work: Workload, hardware: Hardware, constants: Constants) -> _Pass:
    """Return the time of one micro-batch in one block.

    A backward pass is two products for each one of the forward pass, or one if the matrices are frozen.
    """
    matrices = _matrices(work, hardware, constants)
    attention_forward, attention_backward = _attention(work, hardware, constants)
    elementwise = _elementwise(work, hardware, constants)
    transfer = _tensor_parallel(work, hardware, constants)
    again = work.recomputation
    return _Pass(
        matrices=(2 if work.frozen else 3) * matrices,
        attention=attention_forward + attention_backward,
        elementwise=3 * elementwise,
        recomputation=again.matrices * matrices
        + again.attention * attention_forward
        + again.elementwise * elementwise,
        tensor_parallel=(2 + again.collectives) * transfer,
        overhead=constants.block_overhead * (1 + again.matrices / 3),
    )


def _matrices(work: Workload, hardware: Hardware, constants: Constants) -> float:
    """Return the seconds of a block's products, forward: their operations, and the bytes that they move."""
    tokens = work.micro_batch_size * work.sequence_length
    flops = bytes_moved = 0.0
    stored = 0.5 + 2 + 2 if work.quantized else 2  # bytes of a weight: widening reads, writes, and is read
    for matrix in work.model.matrices():
        ranks = work.attention_tp if matrix.attention else work.tp
        rows = matrix.rows / (ranks if matrix.split == 0 else 1)
        columns = matrix.columns / (ranks if matrix.split == 1 else 1)
        flops += 2 * tokens * rows * columns
        bytes_moved += 2 * tokens * (rows + columns) + stored * rows * columns
    return flops / (hardware.peak_flops * constants.matrix_fraction) + bytes_moved / (
        hardware.memory_bandwidth * constants.memory_fraction
    )


def _attention(work: Workload, hardware: Hardware, constants: Constants) -> tuple[float, float]:
    """Return the seconds of attention's forward and backward pass.

    Flash attention computes half of the scores (causal) and in its backward pass five products for two (Dao
    2023). Unfused attention computes all of them and moves each score through memory: 13 bytes forward (two
    for the scores, masked softmax four, dropout five, product with V two), 26 backward.
    """
    tokens = work.micro_batch_size * work.sequence_length
    flops = 4 * tokens * work.sequence_length * work.model.query_width / work.attention_tp
    if work.attention == "flash":
        forward = flops / 2 / (hardware.peak_flops * constants.attention_fraction)
        return forward, 2.5 * forward
    scores = tokens * work.sequence_length * work.model.heads / work.attention_tp
    # Products of depth head_dim reach about half of a large product's rate.
    products = flops / (hardware.peak_flops * constants.matrix_fraction / 2)
    forward = products + 13 * scores / (hardware.memory_bandwidth * constants.memory_fraction)
    return forward, 2 * forward


def _elementwise(work: Workload, hardware: Hardware, constants: Constants) -> float:
    """Return the seconds of a block's norms, residuals, rotation and activation, forward.

    The least possible bytes of a token in bfloat16: two norms (read, write) and two residual sums (two reads,
    a write) of the width, the rotation of queries and keys, the activation's inputs and result.
    """
    model, tokens = work.model, work.micro_batch_size * work.sequence_length
    stream = 20 * model.width / (work.tp if work.sequence_parallel else 1)
    rotation = 4 * (model.query_width + model.kv_width) / work.attention_tp
    activation = 2 * model.mlp_matrices * model.mlp_width / work.tp
    least = tokens * (stream + rotation + activation)
    return least * constants.elementwise_passes / (hardware.memory_bandwidth * constants.memory_fraction)


def _head(work: Workload, hardware: Hardware, constants: Constants) -> _Pass:
    """Return the time of one micro-batch's logits and loss, forward and backward.

    A logit is written and read in bfloat16 and float32 (14 bytes forward), its gradient likewise.
    """
    tokens = work.micro_batch_size * work.sequence_length
    logits = tokens * work.model.vocabulary / work.tp
    products = (
        (4 if work.frozen else 6)
        * logits
        * work.model.width
        / (hardware.peak_flops * constants.matrix_fraction)
    )
    stream = 28 * logits / (hardware.memory_bandwidth * constants.memory_fraction)
    return _Pass(head=products + stream)


def _tensor_parallel(work: Workload, hardware: Hardware, constants: Constants) -> float:
    """Return the seconds of a block's tensor-parallel collectives in one direction.

    Two all-gathers and two reduce-scatters of the activations, or two all-reduces, which move as much.
    """
    if work.tp == 1:
        return 0.0
    sent = 2 * work.micro_batch_size * work.sequence_length * work.model.width * (work.tp - 1) / work.tp
    bandwidth = _group_bandwidth(hardware, constants, work.tp, 1)
    return 4 * (sent / bandwidth + constants.collective_latency)


def _group_bandwidth(hardware: Hardware, constants: Constants, size: int, stride: int) -> float:
    """Return the bytes per second of a collective over `size` ranks, every `stride`-th of the cluster.

    A ring through several nodes enters each node once for all of its members, which share the node's links
    with the groups beside them.
    """
    link = hardware.intra_node_bandwidth * constants.link_fraction
    if size * stride <= hardware.gpus_per_node:
        return link
    # With tp 8 on nodes of 8, each of 8 groups has one member per node and an eighth of the node's links.
    members = max(1, hardware.gpus_per_node // stride)
    return min(link, members * hardware.inter_node_bandwidth * constants.network_fraction)


def _pipeline_transfer(work: Workload, hardware: Hardware, constants: Constants) -> float:
    """Return the seconds that a rank sends activations and gradients to its neighbours."""
    if work.pp == 1:
        return 0.0
    tokens = work.micro_batch_size * work.sequence_length
    sent = 2 * tokens * work.model.width / work.tp
    inside = work.gpus <= hardware.gpus_per_node
    bandwidth = (
        hardware.intra_node_bandwidth * constants.link_fraction
        if inside
        else hardware.inter_node_bandwidth * constants.network_fraction
    )
    return 2 * work.micro_batches * work.chunks * (sent / bandwidth + constants.collective_latency)


def _data_parallel(work: Workload, hardware: Hardware, constants: Constants, compute: float) -> float:
    """Return the seconds of data-parallel communication that computation does not hide.

    FSDP gathers bfloat16 weights before the forward and the backward pass of each micro-batch and reduces
    float32 gradients after it. Copies of a sharded model reduce their shards in addition, once in a step.
    ZeRO-1 reduces and gathers once in a step, after the last backward pass.
    """
    shards, copies = work.dp_shard, work.dp_replicate
    if shards * copies == 1 or work.data_parallel == "none":
        return 0.0
    held = _stage_parameters(work)
    if work.data_parallel == "zero1":
        ranks = shards * copies
        bandwidth = _group_bandwidth(hardware, constants, ranks, work.tp)
        return (4 + 2) * held * (ranks - 1) / ranks / bandwidth
    # A pipeline's stages stay gathered through the step, and their gradients are reduced once at its end.
    passes = work.micro_batches if work.pp == 1 else 1
    gathered = (2 + 2 if work.pp == 1 else 2) + (0 if work.frozen else 4)
    shard_bandwidth = _group_bandwidth(hardware, constants, shards, work.tp)
    sharding = gathered * held * (shards - 1) / shards / shard_bandwidth
    copy_bandwidth = _group_bandwidth(hardware, constants, copies, work.tp * shards)
    copying = 0.0 if work.frozen else 2 * 4 * held / shards * (copies - 1) / copies / copy_bandwidth
    whole = passes * sharding + copying
    # What exceeds the computation beside it cannot be hidden; in a pipeline that is the last micro-batch's.
    hidden = min(constants.overlap * whole, compute * (1 if work.pp == 1 else 1 / work.micro_batches))
    return whole - hidden


def _stage_parameters(work: Workload) -> float:
    """Return the parameters of the largest pipeline rank on one of its tensor-parallel ranks."""
    blocks = max(_blocks_per_rank(work.model.blocks, work.pp, work.chunks))
    matrices = 1 if work.pp > 1 or work.model.tied else 2
    vocabulary = matrices * work.model.vocabulary * work.model.width
    block = sum(
        matrix.rows * matrix.columns / (work.attention_tp if matrix.attention else work.tp)
        for matrix in work.model.matrices()
    )
    return blocks * block + vocabulary / work.tp


def _optimizer(work: Workload, hardware: Hardware, constants: Constants) -> float:
    """Return the seconds of AdamW: weight, gradient and moments read, three written, the norm's read."""
    if work.frozen:
        return 0.0
    shards = work.dp_shard * (work.dp_replicate if work.data_parallel == "zero1" else 1)
    bytes_moved = 32 * _stage_parameters(work) / (1 if work.data_parallel == "none" else shards)
    return bytes_moved / (hardware.memory_bandwidth * constants.memory_fraction)
