"""Checkpoints: restored exactly, or refused by name."""

import json
from contextlib import suppress

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_parity import make_hf, our_llama
from meditron.core.errors import InputError, StorageError
from meditron.parallel.model import ModelStage
from meditron.train.checkpoint import Checkpoints
from meditron.train.loop import Callbacks, TrainState, train
from meditron.train.mixture import Mixture
from meditron.train.optimizer import MasterAdamW
from train.world import documents, make_config, one_process

CONFIG = make_config(dtype="bfloat16")
MACHINE = {"threads": 1, "cpu": "some", "torch": "2"}


def make_training(width=64):
    model = our_llama(make_hf(0, hidden_size=width, num_attention_heads=4, tie_word_embeddings=True))
    optimizer = MasterAdamW(model, dtype=torch.bfloat16, betas=CONFIG.betas, eps=CONFIG.eps, weight_decay=0.1)
    data = Mixture(
        {"pubmed": documents(40), "wiki": documents(9)},
        CONFIG.mixture,
        sequence_length=32,
        samples=48,
        seed=1,
    )
    return model, optimizer, data


class Stopped(Exception):
    """The end of a training that is to be resumed."""


def train_until(checkpoints, until, every=2):
    """Train as far as `until`, saving every second step; (steps restored, weights, moments)."""
    model, optimizer, data = make_training()
    done = checkpoints.restore(optimizer).step

    def checkpoint(steps_done, stop):
        if steps_done % every == 0:
            checkpoints.save(steps_done, optimizer)
        if steps_done == until:
            raise Stopped

    with suppress(Stopped):
        state = TrainState(ModelStage(model), optimizer, data, CONFIG, one_process(), start_step=done)
        train(state, Callbacks(checkpoint=checkpoint))
    checkpoints.wait()
    return done, dict(model.named_parameters()), optimizer.state_tensors()


@pytest.fixture
def checkpoints(tmp_path):
    return Checkpoints(tmp_path / "checkpoints", MACHINE, keep=3)


def names(checkpoints):
    return sorted(path.name for path in checkpoints.folder.iterdir())


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path, checkpoints):
    _, whole, moments = train_until(Checkpoints(tmp_path / "other", MACHINE), 12)
    assert train_until(checkpoints, 5)[0] == 0
    assert train_until(checkpoints, 7)[0] == 4
    done, weights, again = train_until(checkpoints, 12)
    assert done == 6
    assert equal(weights, whole)
    assert all(equal(again[kind], moments[kind]) for kind in moments)
    assert names(checkpoints) == ["step-00000008", "step-00000010", "step-00000012"]


def damage_byte(folder):
    path = folder / "rank-00000.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def cut(folder):
    path = folder / "rank-00000.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def lose(folder):
    (folder / "rank-00000.safetensors").unlink()


def spoil_state(folder):
    (folder / "state.json").write_text('{"format": 1, "st')


def lose_state(folder):
    (folder / "state.json").unlink()


def lie(folder):
    state = json.loads((folder / "state.json").read_text())
    (folder / "state.json").write_text(json.dumps(state | {"step": 3}))


@pytest.mark.parametrize("harm", [damage_byte, cut, lose, spoil_state, lose_state, lie])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(tmp_path, checkpoints, harm, capsys):
    train_until(checkpoints, 6)
    harm(checkpoints.folder / "step-00000006")
    capsys.readouterr()
    done, weights, _ = train_until(checkpoints, 12)
    assert done == 4
    warning = capsys.readouterr().err
    assert "step-00000006" in warning
    assert "using the checkpoint before it" in warning
    _, whole, _ = train_until(Checkpoints(tmp_path / "other", MACHINE), 12)
    assert equal(weights, whole)


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory):
    saver = Checkpoints(tmp_path_factory.mktemp("two") / "checkpoints", MACHINE)
    _, optimizer, _ = make_training(width=16)
    for step in (1, 2):
        saver.save(step, optimizer, {"events": [f"step {step}"]})
    saver.wait()
    return saver, optimizer


@given(data=st.data())
@settings(max_examples=60)
def test_any_flipped_bit_is_noticed(two_checkpoints, data):
    saver, optimizer = two_checkpoints
    newest = saver.newest()
    path = newest / data.draw(st.sampled_from(sorted(file.name for file in newest.iterdir())))
    content = path.read_bytes()
    position = data.draw(st.integers(0, len(content) - 1))
    flipped = bytearray(content)
    flipped[position] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(flipped)
    try:
        restored = saver.restore(optimizer)
    finally:
        path.write_bytes(content)
    assert (restored.step, restored.extra) == (1, {"events": ["step 1"]})


def test_a_file_too_many_is_damage(two_checkpoints, capsys):
    saver, optimizer = two_checkpoints
    extra = saver.newest() / "rank-00001.safetensors"
    extra.write_bytes((saver.newest() / "rank-00000.safetensors").read_bytes())
    assert saver.restore(optimizer).step == 1
    extra.unlink()
    assert "rank-00001.safetensors: not a file of this checkpoint" in capsys.readouterr().err
    assert saver.restore(optimizer).step == 2


def test_optimizer_steps_may_be_fewer_than_training_steps(tmp_path):
    _, optimizer, _ = make_training(width=16)
    optimizer.set_steps(7)
    saver = Checkpoints(tmp_path / "checkpoints", MACHINE)
    events = [{"step": 3, "event": "skipped"}]
    saver.save(9, optimizer, {"events": events})
    events.clear()  # the state at the call is saved
    optimizer.set_steps(0)
    restored = saver.restore(optimizer)
    assert (restored.step, optimizer.steps) == (9, 7)
    assert restored.extra == {"events": [{"step": 3, "event": "skipped"}]}


def test_extra_values_that_json_cannot_hold_are_refused_at_the_call(checkpoints):
    _, optimizer, _ = make_training(width=16)
    with pytest.raises(ValueError, match="not JSON compliant"):
        checkpoints.save(1, optimizer, {"loss": float("nan")})
    with pytest.raises(TypeError, match="cannot be stored as JSON"):
        checkpoints.save(1, optimizer, {"path": checkpoints.folder})
    checkpoints.wait()
    assert checkpoints.newest() is None


def test_an_error_in_the_background_is_raised_by_the_next_save(tmp_path):
    _, optimizer, _ = make_training(width=16)
    (tmp_path / "file").touch()
    saver = Checkpoints(tmp_path / "file/checkpoints", MACHINE)
    saver.save(1, optimizer)
    with pytest.raises(StorageError, match="Not a directory"):
        saver.save(2, optimizer)
    saver.wait()


def test_incomplete_checkpoints_of_a_killed_run_are_removed(checkpoints):
    train_until(checkpoints, 4)
    half = checkpoints.folder / ".step-00000001.12345678.tmp"
    half.mkdir()
    (half / "weights.safetensors").write_bytes(b"...")
    assert train_until(checkpoints, 5)[0] == 4
    assert not half.exists()


def test_a_checkpoint_of_another_model_changes_nothing(checkpoints):
    train_until(checkpoints, 2)
    _, optimizer, _ = make_training(width=32)
    before = {name: master.clone() for name, master in optimizer.masters.items()}
    with pytest.raises(InputError, match="step-00000002: checkpoint of another model") as error:
        checkpoints.restore(optimizer)
    assert "rebuild" in error.value.hint
    assert equal(optimizer.masters, before)


def test_another_machine_is_warned_of(checkpoints, capsys):
    train_until(checkpoints, 2)
    train_until(Checkpoints(checkpoints.folder, MACHINE | {"threads": 2}), 3)
    assert "written with threads 1, cpu some, torch 2; with threads 2" in capsys.readouterr().err


def test_the_random_generator_is_restored(checkpoints):
    _, optimizer, _ = make_training()
    torch.manual_seed(5)
    torch.rand(3)
    checkpoints.save(1, optimizer)
    wanted = torch.rand(4)
    torch.manual_seed(6)
    assert checkpoints.restore(optimizer).step == 1
    assert torch.equal(torch.rand(4), wanted)


def test_removing_all_checkpoints_leaves_nothing(checkpoints):
    train_until(checkpoints, 4)
    checkpoints.remove_all()
    assert not checkpoints.folder.exists()
    assert not list(checkpoints.folder.parent.iterdir())
    checkpoints.remove_all()
