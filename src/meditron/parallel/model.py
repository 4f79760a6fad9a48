"""A model under a layout: pipeline stages, tensor parallelism and FSDP, applied to plain modules.

Every parameter keeps HF's name and becomes a DTensor, whose float32 shards are on the data- and
tensor-parallel ranks.

Shapes: B sequences, S tokens (S / tp of them between the blocks under tensor parallelism), D width, V rows of
the vocabulary.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from math import prod
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from meditron.model.config import LlamaConfig
from meditron.model.flex_attention import visible_documents
from meditron.model.llama import Llama
from meditron.model.lora import add_adapters, freeze_weights
from meditron.model.lora_config import LoraConfig
from meditron.model.nf4 import quantize_blocks, quantized_layers
from meditron.model.nll import nll_sum, token_nll
from meditron.model.shapes import parameter_shapes
from meditron.parallel.config import ActivationCheckpointing
from meditron.parallel.layout import Layout
from meditron.parallel.loss import vocabulary_parallel_nll_sum
from meditron.parallel.shapes import rank_stages, stage_blocks
from meditron.parallel.tensor_parallel import divide_matrices

__all__ = ["GatheredWeights", "ModelStage", "ShardedModel", "apply_activation_checkpointing"]


class ModelStage(nn.Module):
    """A pipeline stage of a model; a whole model is the first and the last stage.

    A stage has consecutive blocks. The first one also has the embedding, the last one the final norm, the
    head and the loss.
    """

    def __init__(self, llama: Llama, *, is_first: bool = True, is_last: bool = True) -> None:
        super().__init__()
        self.llama = llama
        self.is_first, self.is_last = is_first, is_last
        self.tp_layout: Layout | None = None
        """The layout, if tensor parallelism divides the vocabulary."""

    def forward(
        self,
        ids_or_hidden: Tensor,
        *,
        targets_BS: Tensor,
        positions_BS: Tensor | None = None,
        documents_BS: Tensor | None = None,
        documents: int | None = None,
    ) -> Tensor:
        """Return the summed negative log-likelihood of the targets (1,), or hidden states if not the last.

        Args:
            ids_or_hidden: Token ids (B, S) for the first stage, else the hidden states of the stage before.
            targets_BS: The next token of each position, or -100.
            positions_BS: Positions, which restart with each document; 0, 1, 2 … when absent.
            documents_BS: The document of each token: a token attends to its own document only. Plain causal
                attention when absent.
            documents: Return the sum of each document, (B, documents), of sequences with so many documents.
                Not with tensor parallelism.
        """
        if positions_BS is None:
            positions_BS = torch.arange(targets_BS.shape[1], device=targets_BS.device)[None]
        mask = None if documents_BS is None else visible_documents(documents_BS)
        decoder = self.llama.model
        hidden_BSD = decoder.embed_tokens(ids_or_hidden) if self.is_first else ids_or_hidden
        hidden_BSD = self.llama.run_blocks(hidden_BSD, positions_BS, mask)
        if not self.is_last:
            return hidden_BSD
        hidden_BSD = decoder.norm(hidden_BSD)
        if documents is not None:
            assert documents_BS is not None  # noqa: S101
            return self._document_nll(hidden_BSD, targets_BS, documents_BS, documents)
        return torch.stack([self._nll_sum(hidden_BSD, targets_BS)])

    def _document_nll(
        self, hidden_BSD: Tensor, targets_BS: Tensor, documents_BS: Tensor, documents: int
    ) -> Tensor:
        kept = (targets_BS != -100).nonzero(as_tuple=True)
        nll_N = token_nll(hidden_BSD[kept], self.llama.head_weight, targets_BS[kept])
        # Columns are stacked, because FSDP warns of a module that returns a view.
        documents_N, sums = documents_BS[kept], nll_N.new_zeros(len(targets_BS))
        return torch.stack(
            [sums.index_add(0, kept[0], nll_N * (documents_N == number)) for number in range(documents)],
            dim=1,
        )

    def _nll_sum(self, hidden_BSD: Tensor, targets_BS: Tensor) -> Tensor:
        weight = self.llama.head_weight
        if not self.training:
            # As `model.head.Head`: a held-out loss does not depend on whether the model is divided.
            wide = torch.promote_types(weight.dtype, torch.float32)
            hidden_BSD, weight = hidden_BSD.to(wide), weight.to(wide)
        if self.tp_layout is None:
            # The output projection is computed for positions with a target only: in finetuning these are
            # few, and logits of a large vocabulary are the largest tensors of a step.
            return nll_sum(hidden_BSD, weight, targets_BS)[0]
        assert isinstance(weight, DTensor)  # noqa: S101
        mesh = self.tp_layout.tp_mesh
        # All positions are gathered, because each rank has the logits of all of them for its own rows. The
        # gradient of each rank is a part: it is summed and scattered again.
        sharded = DTensor.from_local(hidden_BSD, mesh, [Shard(1)])
        whole_BSD = sharded.redistribute(placements=[Replicate()]).to_local(grad_placements=[Partial()])
        rows = -(-weight.shape[0] // mesh.size())
        return vocabulary_parallel_nll_sum(
            whole_BSD,
            weight.to_local(),
            targets_BS,
            group=mesh.get_group(),
            first_row=rows * self.tp_layout.tensor_rank,
        )


class ShardedModel:
    """The part of a model that one rank has under a layout of several ranks.

    Args:
        config: The model's config.
        layout: The layout, which must be possible for the model (`parallel.constraints`).
        dtype: The dtype of computation: parameters are cast to it when they are gathered. Shards, and sums of
            gradients, have `master_dtype`.
        master_dtype: float32; float64 to compare layouts beyond float32's rounding.
        adapter: Adapters that are trained on frozen weights; by default all weights are trained. Shards of
            frozen weights have `dtype`.
        quantized: Keep the frozen matrices of the blocks in NF4. Every data-parallel rank has all of them.
        prepare_blocks: Changes the blocks of each stage before they are sharded: compilation, float8.
    """

    def __init__(
        self,
        config: LlamaConfig,
        layout: Layout,
        *,
        dtype: torch.dtype,
        master_dtype: torch.dtype = torch.float32,
        adapter: LoraConfig | None = None,
        quantized: bool = False,
        prepare_blocks: Callable[[Llama], None] = lambda llama: None,
    ) -> None:
        self.config, self.layout = config, layout
        shape = layout.shape
        blocks = stage_blocks(config.num_hidden_layers, shape.stages)
        self.stages = {
            index: _build_stage(
                config,
                blocks[index],
                index == 0,
                index == shape.stages - 1,
                master_dtype if adapter is None else dtype,
            )
            for index in rank_stages(shape.pp, layout.pipeline_rank, shape.schedule)
        }
        for stage in self.stages.values():
            if adapter is not None:
                (quantize_blocks if quantized else add_adapters)(stage.llama, adapter, master_dtype)
            if shape.tp > 1:
                divide_matrices(stage.llama, layout.tp_mesh)
                stage.tp_layout = layout
                if adapter is not None:
                    # torch's styles make new parameters of the norms, which are not frozen.
                    freeze_weights(stage.llama, adapter)
            random = adapter is not None and adapter.dropout > 0
            apply_activation_checkpointing(stage.llama, layout.config.activation_checkpointing, random=random)
            prepare_blocks(stage.llama)
            _apply_fsdp(stage, layout, dtype, master_dtype)
            stage.to_empty(device=layout.device)
        # Collected once: between a forward and a backward pass modules have the gathered parameters instead.
        self._parameters = self._collect_parameters()
        self._quantized = {
            name: layer
            for stage in self.stages.values()
            for name, layer in quantized_layers(stage.llama).items()
        }
        self._tied_group = self._make_tied_group()

    def parameters(self) -> dict[str, DTensor]:
        """Return this rank's parameters by HF's names."""
        return dict(self._parameters)

    def trained_parameters(self) -> dict[str, DTensor]:
        """Return those of this rank's parameters that are trained."""
        return {name: parameter for name, parameter in self._parameters.items() if parameter.requires_grad}

    def _collect_parameters(self) -> dict[str, DTensor]:
        named: dict[str, DTensor] = {}
        for stage in self.stages.values():
            for name, parameter in stage.llama.named_parameters():
                assert isinstance(parameter, DTensor)  # noqa: S101  # FSDP has made it one
                named[name] = parameter
        return named

    def load(self, weights: Mapping[str, Tensor]) -> None:
        """Fill the shards from weights by HF's names; each rank reads one whole tensor at a time."""
        for stage in self.stages.values():
            # FSDP completes its shards' memory at the first gathering; the optimizer needs it before that.
            assert isinstance(stage, FSDPModule)  # noqa: S101  # fully_shard has made it one
            stage.unshard()
            stage.reshard()
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                local = parameter.to_local()
                local.copy_(local_shard(weights[name].to(local.dtype), parameter))
            for name, layer in self._quantized.items():
                layer.fill(weights[name])

    def gather(self, name: str) -> Tensor | None:
        """Return a whole parameter on the main rank, in host memory, and None on the others.

        Every rank must call this with the same names in the same order.
        """
        whole = self._whole(name)
        if self.layout.shape.pp == 1:
            return whole.cpu() if whole is not None and self.layout.is_main else None
        # The lowest rank with the parameter sends it to the main rank.
        owners: list[tuple[int, torch.Size, torch.dtype] | None] = [None] * dist.get_world_size()
        mine = (self.layout.rank, whole.shape, whole.dtype) if whole is not None else None
        dist.all_gather_object(owners, mine, group=self.layout.cpu_group)
        owner, size, dtype = next(entry for entry in owners if entry is not None)
        if owner == 0:
            return whole.cpu() if whole is not None and self.layout.is_main else None
        if self.layout.rank == owner and whole is not None:
            dist.send(whole.cpu(), 0, group=self.layout.cpu_group)
        if not self.layout.is_main:
            return None
        received = torch.empty(size, dtype=dtype)
        dist.recv(received, owner, group=self.layout.cpu_group)
        return received

    def _whole(self, name: str) -> Tensor | None:
        """Return a whole parameter of this rank's stages, None for one of the others."""
        if name in self._quantized:
            return self._quantized[name].dequantized()
        parameter = self._parameters.get(name)
        return parameter.full_tensor() if parameter is not None else None

    def reduce_over_copies(self, *, reduce: bool) -> None:
        """Set if the next backward pass sums gradients over the copies of the model (dp_replicate).

        Sums over the shards of one copy are made in every backward pass; those over copies, which cross the
        network between nodes, are needed only once per step.
        """
        if self.layout.shape.dp_replicate > 1:
            for stage in self.stages.values():
                assert isinstance(stage, FSDPModule)  # noqa: S101
                stage.set_requires_all_reduce(reduce)

    def sum_tied_gradients(self) -> None:
        """Sum the gradients of a tied head's two copies, which are on the first and on the last stage."""
        if self._tied_group is not None and self._parameters[_EMBEDDING].requires_grad:
            gradient = self._parameters[_EMBEDDING].grad
            assert isinstance(gradient, DTensor)  # noqa: S101
            dist.all_reduce(gradient.to_local(), group=self._tied_group)

    def shard_copies(self) -> dict[str, int]:
        """Return, by parameter, the number of ranks that have the same shard."""
        copies = {}
        for name, parameter in self._parameters.items():
            mesh = parameter.device_mesh
            copies[name] = prod(
                mesh.size(dimension)
                for dimension, placement in enumerate(parameter.placements)
                if placement.is_replicate()
            )
            if name == _EMBEDDING and self._tied_group is not None:
                copies[name] *= 2
        return copies

    def _make_tied_group(self) -> dist.ProcessGroup | None:
        """Return the group of this rank and the one with the other copy of the same shard of a tied head."""
        shape, mine = self.layout.shape, None
        if not self.config.tie_word_embeddings or shape.pp == 1:
            return None
        assert self.layout.mesh is not None  # noqa: S101
        ranks = self.layout.mesh.mesh.reshape(shape.pp, -1)
        # Every rank must take part in the creation of every group.
        for pair in zip(ranks[0].tolist(), ranks[-1].tolist(), strict=True):
            group = dist.new_group(list(pair))
            mine = group if self.layout.rank in pair else mine
        return mine


class GatheredWeights(Mapping[str, Tensor]):
    """The weights of a model that is divided over ranks, by HF's names; each access gathers one tensor.

    Only the main rank gets the tensors. The other ranks must call `ShardedModel.gather` for the same names in
    the same order: the order of iteration, which is sorted. Adapters can be accessed, but are not iterated.
    """

    def __init__(self, model: ShardedModel) -> None:
        self._model = model
        self._names = sorted(parameter_shapes(model.config))

    def __getitem__(self, name: str) -> Tensor:
        """Gather a weight, in host memory."""
        weight = self._model.gather(name)
        assert weight is not None  # noqa: S101  # this is the main rank
        return weight

    def __iter__(self) -> Iterator[str]:
        """Iterate over the sorted names."""
        return iter(self._names)

    def __len__(self) -> int:
        """Return the number of weights."""
        return len(self._names)


_EMBEDDING = "model.embed_tokens.weight"


def local_shard(whole: Tensor, parameter: DTensor) -> Tensor:
    """Return this rank's shard of a whole tensor, by the parameter's placements; a view."""
    mesh = parameter.device_mesh
    coordinates = mesh.get_coordinate()
    assert coordinates is not None  # noqa: S101
    # Tensor parallelism, the last dimension of the mesh, divides first; FSDP divides what is left.
    for dimension in reversed(range(mesh.ndim)):
        placement = parameter.placements[dimension]
        if isinstance(placement, Replicate):
            continue
        axis: int = placement.dim  # type: ignore[attr-defined]  # Shard and FSDP's _StridedShard
        step = -(-whole.shape[axis] // mesh.size(dimension))
        start = min(step * coordinates[dimension], whole.shape[axis])
        whole = whole.narrow(axis, start, min(step, whole.shape[axis] - start))
    return whole


def _build_stage(
    config: LlamaConfig, blocks: range, is_first: bool, is_last: bool, dtype: torch.dtype
) -> ModelStage:
    """Build a stage without memory for its weights."""
    with torch.device("meta"):
        llama = Llama(config).to(dtype)
    decoder = llama.model
    # The blocks keep their numbers, so that parameters keep their names.
    kept = {str(index): decoder.layers[index] for index in blocks}
    decoder.layers = nn.ModuleDict(kept)  # type: ignore[assignment]
    if not is_last:
        llama.lm_head = decoder.norm = None  # type: ignore[assignment]
    if not (is_first or (is_last and config.tie_word_embeddings)):
        decoder.embed_tokens = None  # type: ignore[assignment]
    return ModelStage(llama, is_first=is_first, is_last=is_last)


# Matrix products and attention: the results that cost most to compute again.
_KEPT_RESULTS = {
    torch.ops.aten.mm.default,
    torch.ops.aten.addmm.default,
    torch.ops.aten._scaled_dot_product_flash_attention.default,
    torch.ops.aten._scaled_dot_product_efficient_attention.default,
    torch.ops.aten._scaled_dot_product_cudnn_attention.default,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu.default,
    torch.ops.higher_order.flex_attention,
}


def _keep_expensive_results(
    _context: object, operation: object, *_args: object, **_kwargs: object
) -> CheckpointPolicy:
    return CheckpointPolicy.MUST_SAVE if operation in _KEPT_RESULTS else CheckpointPolicy.PREFER_RECOMPUTE


def apply_activation_checkpointing(
    llama: Llama, mode: ActivationCheckpointing, *, random: bool = False
) -> None:
    """Compute activations of the blocks again in the backward pass; call this before compilation.

    Args:
        llama: The model.
        mode: What is computed again.
        random: Whether the blocks draw random numbers, which have to be the same both times.
    """
    if mode == "none":
        return
    options: dict[str, Any] = {"use_reentrant": False, "preserve_rng_state": random}
    if mode == "selective":
        options["context_fn"] = partial(create_selective_checkpoint_contexts, _keep_expensive_results)

    def with_checkpointing(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
        # A function of this module: torch's compiler would skip a partial of torch's own `checkpoint`.
        def forward_with_checkpointing(*inputs: object) -> Tensor:
            out: Tensor = checkpoint(forward, *inputs, **options)
            return out

        return forward_with_checkpointing

    for block in llama.blocks():
        # The method is replaced and not the module, so that parameters keep their names.
        block.forward = with_checkpointing(block.forward)  # type: ignore[method-assign]


def _apply_fsdp(stage: ModelStage, layout: Layout, dtype: torch.dtype, master_dtype: torch.dtype) -> None:
    """Shard every block, and the rest of the stage, over the data-parallel ranks.

    FSDP is applied for one data-parallel rank too: it gathers parameters in `dtype` and keeps gradients in
    `master_dtype`.
    """
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=master_dtype)
    # A pipeline runs each stage once per micro-batch: gathering the parameters every time would take longer
    # than the memory is worth.
    reshard = layout.shape.pp == 1

    def shard_dimension(parameter: nn.Parameter) -> Shard | None:
        """Divide by columns what tensor parallelism has divided by rows: plain shards in both dimensions."""
        by_rows = isinstance(parameter, DTensor) and parameter.placements[0] == Shard(0)
        return Shard(1) if by_rows and parameter.dim() == 2 else None

    for block in stage.llama.blocks():
        fully_shard(
            block,
            mesh=layout.fsdp_mesh,
            mp_policy=policy,
            reshard_after_forward=reshard,
            shard_placement_fn=shard_dimension,
        )
    fully_shard(
        stage,
        mesh=layout.fsdp_mesh,
        mp_policy=policy,
        reshard_after_forward=False,
        shard_placement_fn=shard_dimension,
    )
    for module in stage.modules():
        if isinstance(module, FSDPModule):
            # The loss of each rank is already divided by the targets of the whole batch, so gradients are
            # summed; gloo has no other reduction than the sum.
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
