"""Tensor parallelism: how the matrices and norms of a Llama are divided over ranks."""

from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Placement, Replicate, Shard, distribute_module
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

from meditron.model.llama import Block, Llama, RMSNorm
from meditron.parallel.shapes import attention_ranks

__all__ = ["divide_matrices"]


def divide_matrices(llama: Llama, mesh: DeviceMesh) -> None:
    """Divide the matrices of a stage over the tensor-parallel ranks (Shoeybi et al. 2019).

    Norms and the residual stream are divided by sequence (Korthikanti et al. 2022).

    Args:
        llama: The stage's part of the model; parts of other stages are None.
        mesh: The tensor-parallel ranks.
    """
    decoder, config = llama.model, llama.config
    plan: dict[str, ParallelStyle] = {}
    if decoder.embed_tokens is not None:
        plan["model.embed_tokens"] = RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(1))
    if decoder.norm is not None:
        plan["model.norm"] = SequenceParallel(use_local_output=True)
    if llama.lm_head is not None:
        plan["lm_head"] = ColwiseParallel()
    parallelize_module(llama, mesh, plan)
    divided = attention_ranks(config.num_attention_heads, config.num_key_value_heads, mesh.size()) > 1
    for block in llama.blocks():
        parallelize_module(
            block,
            mesh,
            {
                "input_layernorm": SequenceParallel(),
                "post_attention_layernorm": SequenceParallel(),
                # The gathered input stays a DTensor: the gradients of all matrices that read it are added as
                # parts, and one reduce-scatter sums and divides them.
                "self_attn": PrepareModuleInput(
                    input_layouts=(Shard(1), None, None, None, None),
                    desired_input_layouts=(Replicate(), None, None, None, None),
                ),
                **(_divided_attention(block) if divided else _whole_attention(block)),
                "mlp": PrepareModuleInput(input_layouts=(Shard(1),), desired_input_layouts=(Replicate(),)),
                "mlp.gate_proj": ColwiseParallel(),
                "mlp.up_proj": ColwiseParallel(),
                "mlp.down_proj": RowwiseParallel(output_layouts=Shard(1)),
            },
        )


def _divided_attention(block: Block) -> dict[str, ParallelStyle]:
    """Return the styles of an attention of which each rank computes some of the heads."""
    return {
        **{f"self_attn.{name}_proj": ColwiseParallel() for name in "qkv"},
        "self_attn.o_proj": RowwiseParallel(output_layouts=Shard(1)),
        # Norms of queries and keys see this rank's heads, the dimension after the batch.
        **{name: SequenceParallel(sequence_dim=1, use_local_output=True) for name in _head_norms(block)},
    }


def _whole_attention(block: Block) -> dict[str, ParallelStyle]:
    """Return the styles of an attention that every rank computes whole: its heads cannot be divided."""
    inner = [*(f"self_attn.{name}_proj" for name in "qkv"), *_head_norms(block)]
    return {**{name: _Replicated() for name in inner}, "self_attn.o_proj": _Replicated(output=Shard(1))}


def _head_norms(block: Block) -> list[str]:
    """Return the names of the norms of queries and keys, in the families that have them."""
    names = ("q_norm", "k_norm")
    return [f"self_attn.{name}" for name in names if isinstance(getattr(block.self_attn, name), RMSNorm)]


class _Replicated(ParallelStyle):
    """A module that every tensor-parallel rank computes whole, from equal inputs; gradients are equal too.

    Args:
        output: How the result is divided afterwards; by default every rank keeps all of it.
    """

    def __init__(self, output: Placement = Replicate()) -> None:  # noqa: B008 (a constant)
        super().__init__()
        self._output = output

    def _apply(self, module: nn.Module, device_mesh: DeviceMesh) -> nn.Module:
        def to_replicated(_module: nn.Module, inputs: tuple[Tensor], mesh: DeviceMesh) -> DTensor:
            value = inputs[0]
            return value if isinstance(value, DTensor) else DTensor.from_local(value, mesh, [Replicate()])

        def to_local(_module: nn.Module, output: DTensor, mesh: DeviceMesh) -> Tensor:
            return output.redistribute(placements=[self._output]).to_local()

        # torch's types are wrong: it uses what the functions return.
        return distribute_module(module, device_mesh, None, to_replicated, to_local)  # type: ignore[arg-type]
