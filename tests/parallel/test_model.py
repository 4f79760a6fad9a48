"""The sharded model's communication: the collectives of a block, counted in a simulated world."""

from collections import Counter
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor.debug import CommDebugMode
from torch.testing._internal.distributed.fake_pg import FakeStore

from meditron.model.config import LlamaConfig
from meditron.parallel.config import ParallelConfig
from meditron.parallel.layout import Layout
from meditron.parallel.model import ShardedModel
from meditron.parallel.shapes import LayoutShape

SHAPE = {
    "vocab_size": 131,
    "hidden_size": 64,
    "intermediate_size": 96,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "model_type": "qwen3",
}


@pytest.fixture(autouse=True)
def _two_ranks() -> Iterator[None]:
    dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    yield
    dist.destroy_process_group()


def collectives(blocks: int, heads: int, kv_heads: int) -> list[Counter[str]]:
    """The collectives of a forward and of a backward pass, counted by their names."""
    config = LlamaConfig(
        **SHAPE, num_hidden_layers=blocks, num_attention_heads=heads, num_key_value_heads=kv_heads
    )
    mesh = init_device_mesh("cpu", (1, 1, 1, 2), mesh_dim_names=("pp", "dp_replicate", "dp_shard", "tp"))
    layout = Layout(ParallelConfig(tp=2), LayoutShape(tp=2), torch.device("cpu"), 0, mesh)
    sharded = ShardedModel(config, layout, dtype=torch.float32)
    for parameter in sharded.parameters().values():
        nn.init.normal_(parameter.to_local().detach())
    ids_BS = torch.arange(48).reshape(2, 24)
    counts = []
    with CommDebugMode() as forward:
        loss = sharded.stages[0](ids_BS, targets_BS=ids_BS).sum()
    with CommDebugMode() as backward:
        loss.backward()
    for mode in (forward, backward):
        counts.append(Counter({str(key).rpartition(".")[2]: n for key, n in mode.get_comm_counts().items()}))
    return counts


@pytest.mark.filterwarnings("ignore:Full backward hook")
@pytest.mark.parametrize(("heads", "kv_heads"), [(8, 4), (9, 3)], ids=["divided", "whole"])
def test_a_block_gathers_and_scatters_twice_in_each_direction(heads: int, kv_heads: int) -> None:
    divided = heads % 2 == 0
    one, two = collectives(1, heads, kv_heads), collectives(2, heads, kv_heads)
    forward, backward = (+(more - less) for less, more in zip(one, two, strict=True))
    # A whole attention ends with a cut, not with a sum of parts.
    scatters = 2 if divided else 1
    assert forward == {"all_gather_into_tensor": 2, "reduce_scatter_tensor": scatters}
    # The all-reduces are those of the norms' weights, which are vectors; the norms of queries and keys see
    # part of the heads only if these are divided.
    norms = 4 if divided else 2
    assert backward == {
        "all_gather_into_tensor": 2,
        "reduce_scatter_tensor": scatters,
        "all_reduce": norms,
    }
