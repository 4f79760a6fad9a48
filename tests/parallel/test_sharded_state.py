"""Sharded state: every mesh writes what every other reads, and torch's own reader agrees."""

import random

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from safetensors.torch import load_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from meditron.parallel.rank_group import RankGroup
from meditron.parallel.sharded_state import StagedFile, load_shards, plan_shards, read_private
from ranks import run_ranks

MESHES = ((4,), (2, 2), (1, 4), (4, 1), (1, 2, 2))


def save(folder, state, group, private=None):
    folder.mkdir(exist_ok=True)
    file = StagedFile(plan_shards(state, group), private or {}, rank=group.rank, pin=False)
    file.fill(state, private or {})
    return file.write(folder / f"rank-{group.rank:05d}.safetensors")


def draw_mesh(generator, meshes, dimensions):
    """A random mesh of four ranks, with a random placement on each of its dimensions."""
    mesh = meshes[generator.randrange(len(meshes))]
    placements = [
        Replicate() if (axis := generator.randrange(-1, dimensions)) < 0 else Shard(axis)
        for _ in range(mesh.ndim)
    ]
    return mesh, placements


def any_mesh_to_any_mesh(folder, examples):
    group = RankGroup.of_job()
    meshes = [init_device_mesh("cpu", sizes) for sizes in MESHES]
    for example in range(examples):
        # All ranks draw the same numbers.
        generator = random.Random(example)
        torch.manual_seed(example)
        whole, saved, loaded = {}, {}, {}
        for name in "abc":
            shape = [generator.randrange(1, 14) for _ in range(generator.randrange(1, 4))]
            whole[name] = torch.randn(shape, dtype=generator.choice([torch.float32, torch.bfloat16]))
            saved[name] = distribute_tensor(whole[name], *draw_mesh(generator, meshes, len(shape)))
            loaded[name] = distribute_tensor(
                torch.zeros(shape, dtype=whole[name].dtype), *draw_mesh(generator, meshes, len(shape))
            )
        place = folder / str(example)
        save(place, {"weights": saved}, group)
        dist.barrier()
        load_shards(place, {"weights": loaded}, group)
        for name, tensor in whole.items():
            assert torch.equal(loaded[name].full_tensor(), tensor), (example, name, saved[name], loaded[name])
        # torch's own planner and reader, for the same files.
        theirs = {f"weights.{name}": torch.zeros_like(tensor) for name, tensor in whole.items()}
        dcp.load(theirs, storage_reader=dcp.HuggingFaceStorageReader(str(place)), process_group=group.group)
        assert all(torch.equal(theirs[f"weights.{name}"], tensor) for name, tensor in whole.items())


def test_any_mesh_writes_what_any_other_reads(tmp_path):
    run_ranks(4, any_mesh_to_any_mesh, tmp_path, 25)


def test_a_file_of_one_process_is_a_plain_safetensors_file(tmp_path):
    state = {
        "weights": {"a": torch.randn(3, 5), "b": torch.randn(7).bfloat16()},
        "exp_avg": {"a": torch.randn(3, 5).bfloat16()},
    }
    private = {"torch": torch.get_rng_state()}
    save(tmp_path, state, RankGroup(0, 1), private)
    stored = load_file(tmp_path / "rank-00000.safetensors")
    assert torch.equal(stored["weights.a"], state["weights"]["a"])
    assert torch.equal(stored["weights.b"], state["weights"]["b"])
    assert torch.equal(stored["exp_avg.a"], state["exp_avg"]["a"])
    assert len(stored) == 4
    again = read_private(tmp_path / "rank-00000.safetensors", 0, ["torch", "cuda"])
    assert again.keys() == {"torch"}
    assert torch.equal(again["torch"], private["torch"])


def test_moments_are_converted_to_the_type_that_the_optimizer_has(tmp_path):
    moment = torch.randn(4, 4)
    save(tmp_path, {"exp_avg": {"a": moment}}, RankGroup(0, 1))
    loaded = torch.zeros(4, 4, dtype=torch.bfloat16)
    load_shards(tmp_path, {"exp_avg": {"a": loaded}}, RankGroup(0, 1))
    assert torch.equal(loaded, moment.bfloat16())


@pytest.mark.parametrize(
    ("state", "message"),
    [
        (
            {"weights": {"a": (2, 3)}},
            r"has weights.a of shape \(3, 2\), the model has weights.a of shape \(2, 3\)",
        ),
        ({"weights": {"b": (3, 2)}}, r"has weights.a of shape \(3, 2\), the model has no weights.a"),
        ({"exp_avg": {"a": (3, 2)}}, r"has no exp_avg.a, the model has exp_avg.a"),
    ],
)
def test_a_state_of_other_names_or_shapes_is_refused(tmp_path, state, message):
    save(tmp_path, {"weights": {"a": torch.ones(3, 2)}}, RankGroup(0, 1))
    tensors = {
        kind: {name: torch.zeros(shape) for name, shape in parts.items()} for kind, parts in state.items()
    }
    with pytest.raises(ValueError, match=message):
        load_shards(tmp_path, tensors, RankGroup(0, 1))
    assert not any(tensor.any() for parts in tensors.values() for tensor in parts.values())
