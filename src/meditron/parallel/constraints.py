"""Constraints of a training: whether a layout can divide a model and a batch. Does not import torch.

A training checks them before it loads a weight, `meditron run` before it builds anything, and `meditron plan`
before it predicts.
"""

from collections.abc import Iterator
from typing import NamedTuple

from meditron.core.errors import RecipeError
from meditron.model.config import LlamaConfig
from meditron.model.lora_config import LoraConfig
from meditron.parallel.shapes import LayoutShape, chunk_length

__all__ = ["LayoutProblem", "layout_problems", "require_possible_layout"]


class LayoutProblem(NamedTuple):
    """A reason why a layout is impossible, and the possible alternatives."""

    message: str
    hint: str


def layout_problems(
    model: LlamaConfig,
    layout: LayoutShape,
    *,
    sequence_length: int,
    batch_size: int,
    micro_batch_size: int | None,
    adapter: LoraConfig | None = None,
    quantized: bool = False,
) -> list[LayoutProblem]:
    """Return the reasons why a model cannot be trained in a layout, memory aside; none if it can.

    Args:
        model: The model's config.
        layout: The sizes of the layout; one process is a layout too.
        sequence_length: Tokens of a sample.
        batch_size: Samples of an optimizer step.
        micro_batch_size: Samples of a forward and backward pass; None for the default.
        adapter: Adapters that are trained on frozen weights.
        quantized: The frozen weights are kept in 4 bits.
    """
    problems = []
    if sequence_length > model.max_position_embeddings:
        problems.append(
            LayoutProblem(
                f"sequence_length {sequence_length} is longer than the model's context of "
                f"{model.max_position_embeddings} tokens",
                f"sequence_length must be at most {model.max_position_embeddings}",
            )
        )
    micro_batches = layout.divide_batch(batch_size, micro_batch_size).micro_batches
    problems += [*_tensor_problems(model, layout), *_pipeline_problems(model, layout, micro_batches)]
    if adapter is not None:
        problems += _adapter_problems(adapter, layout)
    if quantized and layout.tp > 1:
        problems.append(
            LayoutProblem("4-bit weights are not supported with tp > 1", "divide by dp_shard or pp")
        )
    return problems


def require_possible_layout(
    model: LlamaConfig,
    layout: LayoutShape,
    *,
    sequence_length: int,
    batch_size: int,
    micro_batch_size: int | None,
    adapter: LoraConfig | None = None,
    quantized: bool = False,
) -> None:
    """Raise RecipeError, with all problems, if `layout_problems` has any."""
    problems = layout_problems(
        model,
        layout,
        sequence_length=sequence_length,
        batch_size=batch_size,
        micro_batch_size=micro_batch_size,
        adapter=adapter,
        quantized=quantized,
    )
    if problems:
        raise RecipeError.combine([RecipeError(message, hint=hint) for message, hint in problems])


def _tensor_problems(model: LlamaConfig, layout: LayoutShape) -> Iterator[LayoutProblem]:
    tp, mlp, width, vocabulary = layout.tp, model.intermediate_size, model.hidden_size, model.vocab_size
    if mlp % tp:
        allowed = ", ".join(str(size) for size in range(1, 65) if mlp % size == 0)
        yield LayoutProblem(
            f"tp {tp} does not divide the model's intermediate_size, {mlp:,}", f"tp may be {allowed}"
        )
    if not chunk_length(vocabulary, tp, tp - 1):
        yield LayoutProblem(
            f"tp {tp} leaves a rank without a part of the vocabulary of {vocabulary:,} tokens",
            "use a smaller tp",
        )
    # Matrices whose rows are divided by tensor parallelism are divided by columns in FSDP, evenly.
    if tp > 1 and width % layout.dp_shard:
        yield LayoutProblem(
            f"dp_shard {layout.dp_shard} does not divide the model's hidden_size, {width:,}",
            "with tp above 1, dp_shard must divide it: use dp_replicate for the rest",
        )


def _pipeline_problems(
    model: LlamaConfig, layout: LayoutShape, micro_batches: int
) -> Iterator[LayoutProblem]:
    pp, blocks = layout.pp, model.num_hidden_layers
    if layout.stages > blocks:
        yield LayoutProblem(
            f"{blocks} blocks cannot be divided over {layout.stages} pipeline stages",
            f"pp must be at most {blocks // layout.stages_per_rank}",
        )
    if micro_batches < pp:
        yield LayoutProblem(
            f"{micro_batches} micro-batches of a data-parallel rank are too few for pp {pp}",
            "lower micro_batch_size or pp, or raise batch_size",
        )
    # The other schedules run the micro-batches in equal rounds of pp or somewhat more.
    elif layout.stages_per_rank > 1 and micro_batches % (micro_batches // pp):
        yield LayoutProblem(
            f"schedule {layout.schedule}: {micro_batches} micro-batches of a data-parallel rank cannot be "
            f"divided into {micro_batches // pp} rounds (pp {pp})",
            'change batch_size or micro_batch_size, or use schedule = "1f1b"',
        )


def _adapter_problems(adapter: LoraConfig, layout: LayoutShape) -> Iterator[LayoutProblem]:
    if layout.pp > 1 and layout.schedule == "zero-bubble":
        # It computes the gradients of weights in passes of their own, which fail if weights have none.
        yield LayoutProblem("schedule zero-bubble is not supported with adapters", "use 1f1b")
    if layout.tp > 1 and adapter.dropout:
        # The ranks would have to draw equal masks of the inputs that they share.
        yield LayoutProblem("lora.dropout is not supported with tp > 1", "divide by dp_shard or pp")
    # The columns of B are the rank of the adapters.
    if layout.tp > 1 and adapter.rank % layout.dp_shard:
        yield LayoutProblem(
            f"dp_shard {layout.dp_shard} does not divide the adapters' rank, {adapter.rank}",
            "with tp above 1, dp_shard must divide it: use dp_replicate for the rest",
        )
