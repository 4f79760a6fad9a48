"""Checkpoints of several ranks: any layout opens any other's, and errors are the same on all ranks."""

import os
import random
import resource
import shutil
import time
from contextlib import redirect_stderr
from io import StringIO

import pytest
import torch
import torch.distributed as dist

from meditron.core.errors import InputError, StorageError
from meditron.train.checkpoint import Checkpoints
from ranks import RankError, run_ranks, start_ranks
from sharded_llama import Mesh, ShardedState, reference, sharded_state

MACHINE = {"threads": 1}
ONE = Mesh()
OF_TWO = {"dp2": Mesh(shard=2), "tp2": Mesh(tp=2), "pp2": Mesh(pp=2)}
OF_FOUR = {
    "dp4": Mesh(shard=4),
    "dp2-tp2": Mesh(shard=2, tp=2),
    "pp2-dp2": Mesh(pp=2, shard=2),
    "replicate2-dp2": Mesh(replicate=2, shard=2),
}


def checkpoints(folder, mesh=ONE, **changes):
    return Checkpoints(folder, MACHINE, layout=vars(mesh), **changes)


def require_equal(state, step, tied=False):
    """Compare the restored tensors with the whole ones, bit for bit."""
    assert state.steps == step
    whole = state.whole()
    for kind, tensors in reference(step, tied=tied).items():
        for name, tensor in whole[kind].items():
            assert torch.equal(tensor, tensors[name]), (kind, name)


def save_all(folder, meshes, tied=False):
    for number, (name, mesh) in enumerate(meshes.items(), 1):
        saver = checkpoints(folder / name, mesh)
        saver.save(number, sharded_state(number, mesh, tied=tied), {"name": name})
        saver.wait()


def load_all(folder, names, meshes, tied=False):
    for mesh in meshes.values():
        state = sharded_state(0, mesh, tied=tied, empty=True)
        for name in names:
            state.advance(-1)
            restored = checkpoints(folder / name, mesh).restore(state)
            assert restored.extra == {"name": name}
            require_equal(state, restored.step, tied)


def save_and_load_all(folder, others, meshes, tied=False):
    save_all(folder, meshes, tied)
    load_all(folder, [*meshes, *others], meshes, tied)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_checkpoint_of_any_layout_opens_in_any_other(tmp_path):
    save_all(tmp_path, {"one": ONE})
    run_ranks(2, save_and_load_all, tmp_path, ["one"], OF_TWO)
    run_ranks(4, save_and_load_all, tmp_path, ["one", "tp2"], OF_FOUR, timeout=240)
    run_ranks(2, load_all, tmp_path, OF_FOUR, OF_TWO)
    load_all(tmp_path, [*OF_TWO, *OF_FOUR], {"one": ONE})


def test_a_tied_embedding_on_two_stages_is_stored_once(tmp_path):
    save_all(tmp_path, {"one": ONE}, tied=True)
    meshes = {"pp2-dp2": Mesh(pp=2, shard=2), "pp2-tp2": Mesh(pp=2, tp=2)}
    run_ranks(4, save_and_load_all, tmp_path, ["one"], meshes, True)
    load_all(tmp_path, meshes, {"one": ONE}, tied=True)
    size = sum(file.stat().st_size for file in tmp_path.glob("pp2-dp2/*/*.safetensors"))
    elements = sum(
        tensor.numel() for tensors in reference(1, tied=True).values() for tensor in tensors.values()
    )
    assert 4 * elements < size < 4 * elements + 4 * 20_000  # headers and random states


def restore_randoms(folder):
    """Each rank's next random numbers, drawn after the save and after a restore in two layouts."""
    mesh = Mesh(shard=2)
    state = sharded_state(1, mesh)
    torch.manual_seed(dist.get_rank())
    torch.rand(3)
    saver = checkpoints(folder, mesh)
    saver.save(1, state)
    saver.wait()
    drawn = torch.rand(4)
    torch.manual_seed(7)
    checkpoints(folder, mesh).restore(state)
    again = torch.rand(4)
    torch.manual_seed(7)
    fresh = torch.rand(4)
    torch.manual_seed(7)
    checkpoints(folder, Mesh(tp=2)).restore(sharded_state(1, Mesh(tp=2), empty=True))
    return drawn, again, fresh, torch.rand(4)


def test_each_rank_resumes_its_random_numbers_in_the_same_layout_only(tmp_path):
    first, second = run_ranks(2, restore_randoms, tmp_path)
    for drawn, again, fresh, other in (first, second):
        assert torch.equal(drawn, again)
        assert torch.equal(fresh, other)
    assert not torch.equal(first[0], second[0])


def errors_on_all_ranks(folder):
    """Return what this rank sees of a damaged checkpoint and of one of another model."""
    mesh = Mesh(shard=2)
    saver = checkpoints(folder, mesh)
    for step in (1, 2):
        saver.save(step, sharded_state(step, mesh))
    saver.wait()
    if dist.get_rank() == 0:
        (folder / "step-00000002" / "rank-00001.safetensors").unlink()
    dist.barrier()
    state = sharded_state(0, mesh, empty=True)
    warnings = StringIO()
    with redirect_stderr(warnings):
        step = saver.restore(state).step
    require_equal(state, 1)
    # Only rank 1 has a tensor of another shape.
    other = sharded_state(0, mesh, empty=True)
    before = other.whole()
    if dist.get_rank() == 1:
        other.tensors["exp_avg"]["more"] = torch.zeros(3)
    with pytest.raises(
        InputError, match=r"the checkpoint has no exp_avg.more, the model has .* shape"
    ) as error:
        saver.restore(other)
    other.tensors["exp_avg"].pop("more", None)
    after = other.whole()
    assert all(torch.equal(before[kind][name], after[kind][name]) for kind in before for name in before[kind])
    return step, warnings.getvalue(), error.value.message


def test_all_ranks_decide_alike_about_a_damaged_file_and_another_model(tmp_path):
    (step, warning, message), (step_of_1, warning_of_1, message_of_1) = run_ranks(
        2, errors_on_all_ranks, tmp_path
    )
    assert step == step_of_1 == 1
    assert "rank-00001.safetensors: missing; using the checkpoint before it" in warning
    assert not warning_of_1
    assert message == message_of_1


def fill_the_disk_of_one_rank(folder):
    mesh = Mesh(shard=2)
    state = sharded_state(1, mesh)
    saver = checkpoints(folder, mesh)
    saver.save(1, state)
    saver.wait()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    if dist.get_rank() == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    saver.save(2, state)
    with pytest.raises(StorageError) as error:
        saver.wait()
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    dist.barrier()
    names = sorted(path.name for path in folder.iterdir())
    dist.barrier()
    saver.save(3, state)
    saver.wait()
    return error.value.message, error.value.hint, names


def test_a_disk_that_is_full_for_one_rank_stops_all_and_loses_nothing(tmp_path):
    results = run_ranks(2, fill_the_disk_of_one_rank, tmp_path)
    for message, hint, names in results:
        assert "rank-00001.safetensors: File too large" in message
        assert "free some space" in hint
        assert names == ["step-00000001"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001", "step-00000003"]


def save_forever(folder):
    """Save a state whose every element is the step, as fast as the disk allows."""
    mesh = Mesh(shard=dist.get_world_size())
    saver, state = checkpoints(folder, mesh), sharded_state(1, mesh, empty=True)
    for step in range(saver.restore(state).step + 1, 1_000_000):
        state.advance(step)
        saver.save(step, state)


def restored_step(folder):
    """Restore in one process; all elements must be of one step."""
    state = sharded_state(1, empty=True)
    step = checkpoints(folder).restore(state).step
    assert state.steps == step
    for tensors in state.tensors.values():
        assert {float(value) for tensor in tensors.values() for value in tensor.unique()} == {
            float(step or 1)
        }
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]
    return step


def test_a_kill_of_any_rank_at_any_moment_leaves_complete_checkpoints(tmp_path):
    seed = random.Random(1)
    step = 0
    for _ in range(int(os.environ.get("MEDITRON_TEST_KILLS", "3"))):
        with start_ranks(2, save_forever, tmp_path) as ranks:
            while not (newest := checkpoints(tmp_path).newest()) or newest.name <= f"step-{step:08d}":
                assert all(process.is_alive() for process in ranks.processes)
                time.sleep(0.01)
            time.sleep(seed.uniform(0, 0.3))
            seed.choice(ranks.processes).kill()
            with pytest.raises(RankError, match="exit code -9"):
                ranks.results()
        assert not capture_damage(tmp_path)
        before, step = step, restored_step(tmp_path)
        assert step > before


def capture_damage(folder):
    """Return the warnings of a restore; a complete checkpoint gives none."""
    warnings = StringIO()
    with redirect_stderr(warnings):
        restored_step(folder)
    return [line for line in warnings.getvalue().splitlines() if "using the checkpoint before" in line]


def end_without_waiting(folder, hard):
    saver, state = checkpoints(folder), ShardedState({"weights": {"w": torch.ones(300_000)}})
    saver.save(1, state)
    saver.wait()
    state.advance(2)
    saver.save(2, state)
    state.advance(3)
    if hard:
        os._exit(0)


@pytest.mark.parametrize("hard", [True, False])
def test_an_exit_right_after_a_save_leaves_it_complete_or_absent(tmp_path, hard):
    if hard:
        with pytest.raises(RankError, match="exit code 0"):
            run_ranks(1, end_without_waiting, tmp_path, hard)
    else:
        run_ranks(1, end_without_waiting, tmp_path, hard)
    state = ShardedState({"weights": {"w": torch.zeros(300_000)}})
    step = checkpoints(tmp_path).restore(state).step
    assert step in ((1, 2) if hard else (2,))
    assert torch.equal(state.tensors["weights"]["w"], torch.full((300_000,), 2.0 if step == 2 else 1.0))


def test_a_save_is_the_state_at_the_call(tmp_path):
    state = ShardedState({"weights": {"w": torch.zeros(2_000_000)}, "exp_avg": {"w": torch.zeros(2_000_000)}})
    saver = checkpoints(tmp_path, keep=5)
    for step in range(1, 5):
        state.advance(step)
        saver.save(step, state)
        state.advance(-1)
    saver.wait()
    for step in range(4, 0, -1):
        assert saver.restore(state).step == state.steps == step
        assert all((tensors["w"] == step).all() for tensors in state.tensors.values())
        shutil.rmtree(tmp_path / f"step-{step:08d}")
