"""A tiny Llama under a parallel layout, as torch shards it: state that checkpoints save and restore."""

import functools
from dataclasses import dataclass

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module

from hf_parity import SHAPE
from meditron.model.config import LlamaConfig
from meditron.model.llama import Llama

KINDS = ("weights", "exp_avg", "exp_avg_sq")
# Not divisible by 2, 3 or 4: FSDP's shards and those of tensor parallelism are of unequal sizes.
VOCABULARY = 323
LAYERS = 2


@dataclass(frozen=True)
class Mesh:
    """Sizes of a layout; their product is the number of ranks."""

    pp: int = 1
    replicate: int = 1
    shard: int = 1
    tp: int = 1


@dataclass
class ShardedState:
    """Weights and moments of one rank, in the place of an optimizer."""

    tensors: dict
    steps: int = 0

    def state_tensors(self):
        return self.tensors

    def set_steps(self, steps):
        self.steps = steps

    def advance(self, step):
        """Set every element to the step, in place: the cheapest state that tells its step."""
        self.steps = step
        for tensors in self.tensors.values():
            for tensor in tensors.values():
                tensor.fill_(step)

    def whole(self):
        """The whole tensors of this rank's stage, gathered by torch."""
        return {
            kind: {
                name: (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()
                for name, tensor in tensors.items()
            }
            for kind, tensors in self.tensors.items()
        }


@functools.cache
def reference(step, *, tied=False, width=SHAPE["hidden_size"]):
    """The whole tensors after `step` steps, by kind and name."""
    result = {}
    for number, kind in enumerate(KINDS):
        generator = torch.Generator().manual_seed(1_000 * step + number)
        model = _model(tied, width, VOCABULARY)
        result[kind] = {
            name: torch.randn(weight.shape, generator=generator) for name, weight in model.named_parameters()
        }
    return result


def sharded_state(step, mesh=Mesh(), *, tied=False, moments=torch.float32, empty=False):
    """The state after `step` steps under a layout; zeros and ones of the same shapes if `empty`."""
    whole = reference(step, tied=tied)
    return ShardedState(
        {
            kind: {
                name: tensor.detach() if kind == "weights" else tensor.detach().to(moments)
                for name, tensor in _sharded(whole[kind], mesh, tied, empty).items()
            }
            for kind in KINDS
        },
        steps=0 if empty else step,
    )


def _model(tied, width, vocabulary):
    changes = {"vocab_size": vocabulary, "hidden_size": width, "num_hidden_layers": LAYERS}
    config = SHAPE | changes | {"tie_word_embeddings": tied}
    with torch.device("meta"):
        model = Llama(LlamaConfig.from_hf(config | {"architectures": ["LlamaForCausalLM"]}))
    return model.to_empty(device="cpu")


def _sharded(whole, mesh, tied, empty):
    """The parameters of this rank's stage, sharded by torch's own functions."""
    model = _model(tied, SHAPE["hidden_size"], VOCABULARY)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if empty:
                weight.fill_(1.0)
            else:
                weight.copy_(whole[name])
    if mesh == Mesh():
        return dict(model.named_parameters())
    devices = _devices(mesh)
    if mesh.tp > 1:
        _apply_tensor_parallel(model, devices["tp"])
    if mesh.replicate * mesh.shard > 1:
        data = devices["replicate", "shard"] if mesh.replicate > 1 else devices["shard"]
        for block in model.model.layers:
            fully_shard(block, mesh=data)
        fully_shard(model, mesh=data)
    stage = devices.get_local_rank("pp")
    return {
        name: weight for name, weight in model.named_parameters() if stage in _stages(name, mesh.pp, tied)
    }


@functools.cache
def _devices(mesh):
    # Kept, because each new mesh makes new process groups, which takes long.
    sizes = {"pp": mesh.pp, "replicate": mesh.replicate, "shard": mesh.shard, "tp": mesh.tp}
    return init_device_mesh("cpu", tuple(sizes.values()), mesh_dim_names=tuple(sizes))


def _apply_tensor_parallel(model, mesh):
    columns, rows = ColwiseParallel, RowwiseParallel
    plan = {
        "self_attn.q_proj": columns(),
        "self_attn.k_proj": columns(),
        "self_attn.v_proj": columns(),
        "self_attn.o_proj": rows(),
        "mlp.gate_proj": columns(),
        "mlp.up_proj": columns(),
        "mlp.down_proj": rows(),
    }
    for block in model.model.layers:
        parallelize_module(block, mesh, plan)
    parallelize_module(model.model, mesh, {"embed_tokens": rows(output_layouts=Shard(1))})
    if not model.config.tie_word_embeddings:
        parallelize_module(model, mesh, {"lm_head": columns()})


def _stages(name, stages, tied):
    """The pipeline stages that have a parameter; a tied embedding is on the first and the last."""
    if name == "model.embed_tokens.weight":
        return {0, stages - 1} if tied else {0}
    if not name.startswith("model.layers."):
        return {stages - 1}
    return {int(name.split(".")[2]) * stages // LAYERS}
