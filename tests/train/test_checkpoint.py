"""Checkpoints: restored exactly, or refused by name."""

import json
from contextlib import suppress

import pytest
import torch

from hf_parity import make_hf, our_llama
from meditron.core.errors import InputError
from meditron.train.checkpoint import Checkpoints
from meditron.train.loop import TrainState, train
from meditron.train.mixture import Mixture
from meditron.train.optimizer import MasterAdamW
from train.world import documents, make_config

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
    done = checkpoints.restore(optimizer)

    def checkpoint(steps_done):
        if steps_done % every == 0:
            checkpoints.save(steps_done, optimizer)
        if steps_done == until:
            raise Stopped

    with suppress(Stopped):
        state = TrainState(model, optimizer, data, CONFIG, start_step=done)
        train(state, log=lambda step: None, checkpoint=checkpoint)
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
    path = folder / "exp_avg_sq.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)


def cut(folder):
    path = folder / "weights.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def lose(folder):
    (folder / "exp_avg.safetensors").unlink()


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
    assert checkpoints.restore(optimizer) == 1
    assert torch.equal(torch.rand(4), wanted)


def test_removing_all_checkpoints_leaves_nothing(checkpoints):
    train_until(checkpoints, 4)
    checkpoints.remove_all()
    assert not checkpoints.folder.exists()
    assert not list(checkpoints.folder.parent.iterdir())
    checkpoints.remove_all()
