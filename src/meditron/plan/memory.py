"""Memory of one GPU, by part, under a layout.

The rules are those of `meditron.parallel`: float32 shards of weights, gradients and AdamW's two moments;
weights gathered in the dtype of computation; activations of the micro-batches between their forward and
backward pass. Weights, gradients and optimizer state are exact; activations are counted from the tensors that
autograd keeps.
"""

from dataclasses import dataclass
from functools import cache
from typing import Literal, NamedTuple

from meditron.model.config import LlamaConfig
from meditron.model.lora_config import LORA_MODULES, LoraModule
from meditron.parallel.config import ActivationCheckpointing
from meditron.parallel.shapes import (
    LayoutShape,
    attention_ranks,
    rank_parameters,
    rank_stages,
    stage_blocks,
)

__all__ = [
    "FINETUNE_METHODS",
    "NF4_BITS",
    "FinetuneMethod",
    "Memory",
    "MemorySettings",
    "MethodName",
    "memory_per_gpu",
]

NF4_BITS = 4 + 8 / 64 + 32 / (64 * 256)
"""Bits of a 4-bit weight with double quantization: NF4, an 8-bit scale per 64 weights, a float32 scale per
256 of those (Dettmers et al. 2023, section 3)."""
_LOSS_ROWS = 1024  # rows whose logits exist at a time; see model.nll


MethodName = Literal["full", "lora", "qlora"]
FINETUNE_METHODS: tuple[MethodName, ...] = ("full", "lora", "qlora")


@dataclass(frozen=True, slots=True, kw_only=True)
class FinetuneMethod:
    """The parameters that a training changes: all, or adapters on a frozen (for QLoRA 4-bit) model."""

    name: MethodName = "full"
    rank: int = 16
    """Rank of the adapters."""
    modules: tuple[LoraModule, ...] = LORA_MODULES
    """Matrices with an adapter."""
    embeddings: bool = False
    """Adapters only: the embedding and the head are trained too."""


class Memory(NamedTuple):
    """Bytes of one GPU by part."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    logits: int
    """Buffers of the head and the loss."""
    communication: int
    """Gathered weights, and gradients before they are reduced and sharded."""

    @property
    def total(self) -> int:
        """Bytes of all parts."""
        return sum(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class MemorySettings:
    """Settings of a training that change its memory."""

    sequence_length: int
    micro_batch_size: int
    micro_batches: int
    """Micro-batches of a step on each data-parallel rank."""
    activation_checkpointing: ActivationCheckpointing
    narrow: bool
    """Computation in bfloat16, not float32."""
    compiled: bool
    """torch.compile fuses a block's element-wise operations, so that fewer results are kept."""
    method: FinetuneMethod = FinetuneMethod()


def memory_per_gpu(config: LlamaConfig, layout: LayoutShape, settings: MemorySettings) -> Memory:
    """Return the memory of the GPU that needs most."""
    ranks = (_rank_memory(config, layout, settings, pp_rank) for pp_rank in range(layout.pp))
    return max(ranks, key=lambda memory: memory.total)


def _rank_memory(config: LlamaConfig, layout: LayoutShape, settings: MemorySettings, pp_rank: int) -> Memory:
    # The first chunk is never shorter than the others, so this rank has the most of its pipeline stage.
    held = _held_parameters(config, layout, pp_rank)
    adapters = _adapter_parameters(config, layout, pp_rank, settings.method)
    trained = held if settings.method.name == "full" else adapters
    stages = rank_stages(layout.pp, pp_rank, layout.schedule)
    has_head = layout.stages - 1 in stages
    return Memory(
        weights=round(_weight_bytes(config, layout, settings, held, pp_rank)) + 4 * adapters,
        gradients=4 * trained,
        optimizer=8 * trained,
        activations=round(_activations(config, layout, settings, pp_rank)),
        logits=round(_logits(config, layout, settings)) if has_head else 0,
        communication=round(_communication(config, layout, settings, pp_rank)),
    )


@cache
def _held_parameters(config: LlamaConfig, layout: LayoutShape, pp_rank: int) -> int:
    return rank_parameters(config, layout, _first_rank(layout, pp_rank))


def _first_rank(layout: LayoutShape, pp_rank: int) -> int:
    return pp_rank * layout.dp_replicate * layout.dp_shard * layout.tp


@cache
def _unsharded_parameters(config: LlamaConfig, layout: LayoutShape, pp_rank: int) -> int:
    """Return the parameters of a rank's stages with FSDP undone, as the rank gathers them."""
    whole = LayoutShape(1, 1, layout.tp, layout.pp, layout.schedule)
    return rank_parameters(config, whole, _first_rank(whole, pp_rank))


def _weight_bytes(
    config: LlamaConfig, layout: LayoutShape, settings: MemorySettings, held: int, pp_rank: int
) -> float:
    if settings.method.name == "full":
        # A single process keeps a narrow copy beside the float32 weights; several gather it.
        copy = 2 if settings.narrow and layout.ranks == 1 else 0
        return (4 + copy) * held
    width = 2 if settings.narrow else 4
    if settings.method.name == "lora":
        return width * held
    blocks = len(_blocks(config, layout, pp_rank))
    quantized = blocks * _block_matrices(config, layout.tp)
    # Data-parallel ranks share the other weights only: each has all 4-bit ones.
    others = max(0, held - quantized / layout.dp_shard)
    return quantized * NF4_BITS / 8 + width * others


def _blocks(config: LlamaConfig, layout: LayoutShape, pp_rank: int) -> list[int]:
    stages = stage_blocks(config.num_hidden_layers, layout.stages)
    return [block for stage in rank_stages(layout.pp, pp_rank, layout.schedule) for block in stages[stage]]


def _block_matrices(config: LlamaConfig, tp: int) -> float:
    """Return the parameters of a block's matrices on one of `tp` ranks; some heads cannot be divided."""
    queries = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    shared = attention_ranks(config.num_attention_heads, config.num_key_value_heads, tp)
    return config.hidden_size * ((2 * queries + 2 * keys) / shared + 3 * config.intermediate_size / tp)


def _adapter_parameters(
    config: LlamaConfig, layout: LayoutShape, pp_rank: int, method: FinetuneMethod
) -> int:
    """Return a rank's trained parameters beside frozen ones.

    These are adapters on the matrices of its blocks, rank · (rows + columns) each, and the embedding and the
    head if they are trained.
    """
    if method.name == "full":
        return 0
    width, mlp = config.hidden_size, config.intermediate_size
    queries = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    sides_by_module = {
        **dict.fromkeys(("q_proj", "o_proj"), width + queries),
        **dict.fromkeys(("k_proj", "v_proj"), width + keys),
        **dict.fromkeys(("gate_proj", "up_proj", "down_proj"), width + mlp),
    }
    sides = sum(sides_by_module[module] for module in method.modules)
    whole = method.rank * sides * len(_blocks(config, layout, pp_rank))
    if method.embeddings:
        stages = rank_stages(layout.pp, pp_rank, layout.schedule)
        ends = (0 in stages) + (layout.stages - 1 in stages)
        tables = 1 if config.tie_word_embeddings and ends else ends
        whole += tables * config.vocab_size * width
    return -(-whole // (layout.tp * layout.dp_shard))


def _activations(config: LlamaConfig, layout: LayoutShape, settings: MemorySettings, pp_rank: int) -> float:
    """Return the bytes that autograd keeps for the backward passes, and those of one recomputed block."""
    tokens = settings.micro_batch_size * settings.sequence_length
    mode = settings.activation_checkpointing
    kept = _block_activations(config, layout.tp, settings, mode)
    blocks = len(_blocks(config, layout, pp_rank))
    chunks = layout.stages_per_rank
    in_flight = _chunks_in_flight(layout, settings.micro_batches, pp_rank) / chunks
    again = 0.0 if mode == "none" else _block_activations(config, layout.tp, settings, "none")
    return tokens * (kept * blocks * in_flight + again)


def _chunks_in_flight(layout: LayoutShape, micro_batches: int, pp_rank: int) -> int:
    """Return the forward passes of stages that a rank has done at most before their backward passes.

    One forward, one backward: a rank waits for those after it (Narayanan et al. 2021, section 2.2).
    """
    if layout.stages_per_rank > 1:
        most = 2 * (layout.pp - pp_rank - 1) + (layout.stages_per_rank - 1) * layout.pp + 1
    else:
        most = layout.pp - pp_rank
    return min(most, micro_batches * layout.stages_per_rank)


def _block_activations(
    config: LlamaConfig, tp: int, settings: MemorySettings, mode: ActivationCheckpointing
) -> float:
    """Return the bytes that autograd keeps for a token of a block.

    With tensor parallelism the inputs of the blocks are split by sequence. What a column-wise product reads
    is gathered, and what a row-wise product returns is a whole partial sum.
    """
    size = 2 if settings.narrow else 4
    width, mlp = config.hidden_size, config.intermediate_size
    queries = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    block_input = size * width / tp
    if mode == "full":
        return block_input
    # Queries, keys, values, the attention's result and its float32 log-sum of each head.
    shared = attention_ranks(config.num_attention_heads, config.num_key_value_heads, tp)
    attention = (size * (2 * queries + 2 * keys) + 4 * config.num_attention_heads) / shared
    if mode == "selective":
        products = 2 * size * width + 2 * size * mlp / tp  # output and down; gate and up
        return block_input + attention + products
    # A fused norm keeps its input; an eager one the input in float32, and the input divided by its scale. The
    # result is kept as the next product's input.
    norm = block_input if settings.compiled else 4 * width / tp + block_input
    gathered = size * width
    # Gate, up, the activation of gate (recomputed if fused) and the product, the down projection's input.
    swiglu = (3 if settings.compiled else 4) * size * mlp / tp
    return 2 * (norm + gathered) + attention + swiglu


def _logits(config: LlamaConfig, layout: LayoutShape, settings: MemorySettings) -> float:
    """Return the bytes of the loss: logits of some rows, hidden states, and gradients of both."""
    tokens = settings.micro_batch_size * settings.sequence_length
    rows = -(-config.vocab_size // layout.tp)
    size = 2 if settings.narrow else 4
    buffers = min(_LOSS_ROWS, tokens) * rows * (2 * size + 4)
    return buffers + 2 * size * tokens * config.hidden_size + 4 * rows * config.hidden_size


def _communication(config: LlamaConfig, layout: LayoutShape, settings: MemorySettings, pp_rank: int) -> float:
    """Return the bytes of gathered weights and of gradients that are not sharded yet.

    Without a pipeline, FSDP has two blocks at a time, and the embedding and the head throughout. In a
    pipeline a rank gathers its stages once per step and accumulates their gradients in float32.
    """
    if layout.ranks == 1:
        return 0.0
    size = 2 if settings.narrow else 4
    unsharded = _unsharded_parameters(config, layout, pp_rank)
    if settings.method.name != "full":
        # Frozen weights have no gradients.
        blocks = len(_blocks(config, layout, pp_rank))
        return size * (unsharded if layout.pp > 1 else 2 * unsharded / max(1, blocks))
    if layout.pp > 1:
        return (size + 4) * unsharded
    block = _block_matrices(config, layout.tp)
    rest = max(0.0, unsharded - config.num_hidden_layers * block)
    return size * (2 * block + rest) + (size + 4) * max(block, rest)
