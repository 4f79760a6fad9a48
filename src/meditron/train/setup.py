"""A training before its first step: the process's layout, the model on its device or ranks, the optimizer."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from meditron.core.console import warn
from meditron.model.config import LlamaConfig
from meditron.model.llama import Llama
from meditron.model.lora import WeightsWithAdapters
from meditron.model.new_tokens import NewTokens, extended_config
from meditron.model.nf4 import load_with_adapters
from meditron.model.weight_rows import load_config
from meditron.model.weights import load_model, open_weights
from meditron.parallel.constraints import require_possible_layout
from meditron.parallel.layout import Layout, build_layout
from meditron.parallel.model import ModelStage, ShardedModel, apply_activation_checkpointing
from meditron.parallel.pipeline import Pipeline
from meditron.parallel.shapes import BatchDivision, attention_ranks
from meditron.parallel.world import connect, current_world
from meditron.store.models import ModelFiles
from meditron.train.compilation import compile_blocks, use_device_attention, use_float8
from meditron.train.config import TrainingConfig
from meditron.train.guard import Guard
from meditron.train.loop import TrainState
from meditron.train.optimizer import MasterAdamW
from meditron.train.runtime import deterministic
from meditron.train.samples import TrainingDataset

__all__ = ["build_state", "training_layout"]


@contextmanager
def training_layout(config: TrainingConfig) -> Iterator[Layout]:
    """Connect this process to the other ranks, select deterministic arithmetic and return the layout.

    Raises:
        RecipeError: The stage's layout does not have as many ranks as the job.
    """
    world = current_world()
    device = connect(config.parallel.timeout)
    with deterministic(config.seed or 0, config.threads, device):
        yield build_layout(config.parallel, world, device)


def build_state(
    config: TrainingConfig,
    base: ModelFiles,
    dataset: TrainingDataset,
    layout: Layout,
    dtype: torch.dtype,
    *,
    master_dtype: torch.dtype = torch.float32,
    new_tokens: NewTokens | None = None,
) -> TrainState:
    """Load the model in the given layout and create its optimizer.

    Args:
        config: The stage's table of the recipe.
        base: The model to train.
        dataset: The training samples.
        layout: The rank's layout; in one process its device has the whole model.
        dtype: The dtype of computation.
        master_dtype: The dtype of the updated weights; float64 only to compare layouts exactly.
        new_tokens: Tokens that are added to the vocabulary of the model.

    Raises:
        RecipeError: The layout cannot divide the model or the batch, or the samples are longer than the
            model's context.
        InputError: A file of the model is damaged.
    """
    shape, sharded, pipeline, length = layout.shape, None, None, None
    _require_possible_layout(config, base, layout, new_tokens)
    division = shape.divide_batch(config.batch_size, config.micro_batch_size)
    config = config.model_copy(update={"micro_batch_size": division.micro_batch_size})
    if layout.is_distributed:
        sharded = _shard_model(config, base, layout, dtype, master_dtype, new_tokens)
        model = next(iter(sharded.stages.values()))
        if shape.pp > 1 or shape.tp > 1:
            # A pipeline has static shapes; tensor-parallel ranks have equal parts of each sequence.
            length = -(-config.sequence_length // shape.tp) * shape.tp
        if shape.pp > 1:
            pipeline = _build_pipeline(sharded, division, length or config.sequence_length, dtype)
    else:
        model = ModelStage(_load_whole_model(config, base, layout, dtype, master_dtype, new_tokens))
    return TrainState(
        model=model,
        optimizer=_build_optimizer(config, model, sharded, dtype),
        dataset=dataset,
        config=config,
        layout=layout,
        sharded=sharded,
        pipeline=pipeline,
        sequence_length=length,
        guard=Guard(config.guard),
    )


def _require_possible_layout(
    config: TrainingConfig, base: ModelFiles, layout: Layout, new_tokens: NewTokens | None
) -> None:
    """Raise RecipeError if the layout cannot divide the model, with its new tokens, or the batch."""
    model_config = load_config(base)
    if new_tokens is not None:
        model_config = extended_config(model_config, new_tokens)
    require_possible_layout(
        model_config,
        layout.shape,
        sequence_length=config.sequence_length,
        batch_size=config.batch_size,
        micro_batch_size=config.micro_batch_size,
        adapter=config.adapter,
        quantized=config.quantized,
    )


def _load_whole_model(
    config: TrainingConfig,
    base: ModelFiles,
    layout: Layout,
    dtype: torch.dtype,
    master_dtype: torch.dtype,
    new_tokens: NewTokens | None,
) -> Llama:
    """Load the model on this process's device, with its adapters."""
    # Trained weights are loaded in float32 for every dtype of computation, so that the masters keep the
    # file's precision. Frozen ones have no masters.
    seed, device = config.seed or 0, layout.device
    if config.adapter is not None:
        llama = load_with_adapters(
            base,
            config.adapter,
            dtype=dtype,
            adapter_dtype=master_dtype,
            seed=seed,
            device=device,
            quantized=config.quantized,
            new_tokens=new_tokens,
        )
    else:
        llama = load_model(base, dtype=master_dtype, seed=seed, device=device, new_tokens=new_tokens)
    apply_activation_checkpointing(llama, config.parallel.activation_checkpointing, random=_is_random(config))
    _prepare_blocks(config, llama, layout)
    return llama


def _is_random(config: TrainingConfig) -> bool:
    """Return whether a forward pass of the blocks draws random numbers."""
    return config.adapter is not None and config.adapter.dropout > 0


def _build_optimizer(
    config: TrainingConfig, model: ModelStage, sharded: ShardedModel | None, dtype: torch.dtype
) -> MasterAdamW:
    # A rank with several pipeline stages has the parameters of all of them, not of the first alone.
    parameters = sharded.trained_parameters() if sharded is not None else model.llama
    return MasterAdamW(
        parameters,
        dtype=dtype,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
        state_dtype=getattr(torch, config.optimizer_state_dtype),
    )


def _shard_model(
    config: TrainingConfig,
    base: ModelFiles,
    layout: Layout,
    dtype: torch.dtype,
    master_dtype: torch.dtype,
    new_tokens: NewTokens | None,
) -> ShardedModel:
    with open_weights(base, seed=config.seed or 0, new_tokens=new_tokens) as (model, weights):
        sharded = _build_sharded_model(config, model, layout, dtype, master_dtype)
        if config.adapter is not None:
            weights = WeightsWithAdapters(weights, model, config.adapter, config.seed or 0)
        sharded.load(weights)
    return sharded


def _build_sharded_model(
    config: TrainingConfig, model: LlamaConfig, layout: Layout, dtype: torch.dtype, master_dtype: torch.dtype
) -> ShardedModel:
    heads, kv_heads, tp = model.num_attention_heads, model.num_key_value_heads, layout.shape.tp
    if layout.is_main and attention_ranks(heads, kv_heads, tp) < tp:
        warn(
            f"tp {tp} does not divide {heads} heads and {kv_heads} key/value heads: every rank computes the "
            "whole attention"
        )
    # The whole model is never in memory: shards are filled from the file, one tensor at a time.
    return ShardedModel(
        model,
        layout,
        dtype=dtype,
        master_dtype=master_dtype,
        adapter=config.adapter,
        quantized=config.quantized,
        prepare_blocks=lambda llama: _prepare_blocks(config, llama, layout),
    )


def _build_pipeline(
    sharded: ShardedModel, division: BatchDivision, length: int, dtype: torch.dtype
) -> Pipeline:
    return Pipeline(
        sharded,
        micro_batches=division.micro_batches,
        micro_batch_size=division.micro_batch_size,
        sequence_length=length,
        dtype=dtype,
    )


def _prepare_blocks(config: TrainingConfig, llama: Llama, layout: Layout) -> None:
    """Give the blocks float8 products, the device's attention and compilation, as far as they apply."""
    if config.float8:
        use_float8(llama, layout.device)
    if config.compile and layout.shape.tp > 1:
        if layout.is_main:
            warn("compile = true has no effect with tp > 1: torch cannot compile the divided blocks yet")
    elif config.compile:
        compile_blocks(llama, layout.device)
        return
    use_device_attention(llama, layout.device, compiled=False)
