"""Parameters of the sharded model, rank by rank, in a simulated world: those of the plan, to the byte."""

from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore

from meditron.model.config import LlamaConfig
from meditron.parallel.config import ParallelConfig
from meditron.parallel.layout import Layout
from meditron.parallel.model import ShardedModel
from meditron.parallel.shapes import LayoutShape, rank_parameters
from meditron.plan.architectures import KNOWN

LLAMA_7B, LLAMA_70B = KNOWN["meta-llama/Llama-2-7b"], KNOWN["meta-llama/Llama-2-70b"]
ODD = LLAMA_7B.model_copy(update={"vocab_size": 32_017, "num_hidden_layers": 3})
# Meditron's published layout of 128 ranks, for both models, and others that have more uneven parts.
WORLDS = {
    "70B as published": (LLAMA_70B, LayoutShape(dp_replicate=2, tp=8, pp=8), range(0, 128, 9)),
    "7B as published": (LLAMA_7B, LayoutShape(dp_replicate=2, tp=8, pp=8), range(0, 128, 15)),
    "70B fsdp": (LLAMA_70B, LayoutShape(dp_shard=2, tp=8, pp=8), (0, 15, 64, 127)),
    "7B fsdp": (LLAMA_7B, LayoutShape(dp_replicate=2, dp_shard=24), (0, 23, 47)),
    "7B interleaved": (LLAMA_7B, LayoutShape(dp_shard=4, tp=4, pp=8, schedule="interleaved"), (0, 60, 127)),
    "7B zero-bubble": (LLAMA_7B, LayoutShape(dp_shard=25, pp=4, schedule="zero-bubble"), (0, 24, 99)),
    "padded vocabulary": (ODD, LayoutShape(dp_shard=2, tp=4, pp=2), (0, 3, 12, 15)),
    "Qwen3-0.6B": (KNOWN["Qwen/Qwen3-0.6B"], LayoutShape(dp_shard=8, tp=8, pp=2), (0, 63, 64, 127)),
    "Qwen2.5-7B": (KNOWN["Qwen/Qwen2.5-7B"], LayoutShape(dp_shard=7, tp=4), (0, 13, 27)),
    "heads that tp does not divide": (
        KNOWN["HuggingFaceTB/SmolLM2-135M"],
        LayoutShape(dp_shard=4, tp=2, pp=2),
        (0, 7, 8, 15),
    ),
    "SmolLM2-1.7B": (
        KNOWN["HuggingFaceTB/SmolLM2-1.7B"],
        LayoutShape(dp_shard=8, tp=8, pp=2),
        (0, 63, 64, 127),
    ),
}


@pytest.fixture(autouse=True)
def _no_world_left() -> Iterator[None]:
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("world", WORLDS)
def test_bytes_of_a_rank_are_the_plans(world: str) -> None:
    config, shape, ranks = WORLDS[world]
    for rank in ranks:
        assert sharded_bytes(config, shape, rank) == 4 * rank_parameters(config, shape, rank), rank


def sharded_bytes(config: LlamaConfig, shape: LayoutShape, rank: int) -> int:
    if dist.is_initialized():
        dist.destroy_process_group()
    dist.init_process_group("fake", rank=rank, world_size=shape.ranks, store=FakeStore())
    sizes = (shape.pp, shape.dp_replicate, shape.dp_shard, shape.tp)
    mesh = init_device_mesh("cpu", sizes, mesh_dim_names=("pp", "dp_replicate", "dp_shard", "tp"))
    parallel = ParallelConfig(
        dp_replicate=shape.dp_replicate,
        dp_shard=shape.dp_shard,
        tp=shape.tp,
        pp=shape.pp,
        schedule=shape.schedule,  # type: ignore[arg-type]
    )
    layout = Layout(parallel, shape, torch.device("meta"), rank, mesh)
    model = ShardedModel(config, layout, dtype=torch.bfloat16)
    return sum(parameter.to_local().nbytes for parameter in model.parameters().values())
