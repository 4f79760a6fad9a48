"""Checkpoints come back as they were, or are refused by name."""

import json

import pytest
import torch

from hf_parity import make_hf, our_llama
from meditron.core.errors import InputError
from meditron.train.checkpoint import Checkpoints
from meditron.train.data import Mixture
from meditron.train.loop import steps
from meditron.train.optimizer import MasterAdamW
from train.world import documents, make_config

CONFIG = make_config(dtype="bfloat16")
MACHINE = {"threads": 1, "cpu": "some", "torch": "2"}


def begin(width=64):
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


def go_on(checkpoints, until, every=2):
    """Train as far as `until`, saving every second step; (steps restored, weights, moments)."""
    model, optimizer, data = begin()
    done = checkpoints.restore(optimizer)
    for step in steps(model, optimizer, data, CONFIG, done=done):
        if step.number % every == 0:
            checkpoints.save(step.number, optimizer)
        if step.number == until:
            break
    return done, dict(model.named_parameters()), optimizer.tensors()


@pytest.fixture
def checkpoints(tmp_path):
    return Checkpoints(tmp_path / "checkpoints", MACHINE, keep=3)


def names(checkpoints):
    return sorted(path.name for path in checkpoints.folder.iterdir())


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_a_run_that_went_on_is_the_run_that_never_stopped(tmp_path, checkpoints):
    _, whole, moments = go_on(Checkpoints(tmp_path / "other", MACHINE), 12)
    assert go_on(checkpoints, 5)[0] == 0
    assert go_on(checkpoints, 7)[0] == 4
    done, weights, again = go_on(checkpoints, 12)
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
def test_a_damaged_one_is_named_and_the_one_before_it_taken(tmp_path, checkpoints, harm, capsys):
    go_on(checkpoints, 6)
    harm(checkpoints.folder / "step-00000006")
    capsys.readouterr()
    done, weights, _ = go_on(checkpoints, 12)
    assert done == 4
    warning = capsys.readouterr().err
    assert "step-00000006" in warning
    assert "the checkpoint before it is taken instead" in warning
    _, whole, _ = go_on(Checkpoints(tmp_path / "other", MACHINE), 12)
    assert equal(weights, whole)


def test_what_a_kill_left_half_written_is_removed(checkpoints):
    go_on(checkpoints, 4)
    half = checkpoints.folder / ".tmp-12345678"
    half.mkdir()
    (half / "weights.safetensors").write_bytes(b"...")
    assert go_on(checkpoints, 5)[0] == 4
    assert not half.exists()


def test_a_checkpoint_of_another_model_changes_nothing(checkpoints):
    go_on(checkpoints, 2)
    _, optimizer, _ = begin(width=32)
    before = {name: master.clone() for name, master in optimizer.masters.items()}
    with pytest.raises(InputError, match="step-00000002: not of this model") as error:
        checkpoints.restore(optimizer)
    assert "rebuild" in error.value.hint
    assert equal(optimizer.masters, before)


def test_another_machine_is_said(checkpoints, capsys):
    go_on(checkpoints, 2)
    go_on(Checkpoints(checkpoints.folder, MACHINE | {"threads": 2}), 3)
    assert "made with threads 1, cpu some, torch 2; with threads 2" in capsys.readouterr().err


def test_random_numbers_go_on_where_they_were(checkpoints):
    _, optimizer, _ = begin()
    torch.manual_seed(5)
    torch.rand(3)
    checkpoints.save(1, optimizer)
    wanted = torch.rand(4)
    torch.manual_seed(6)
    assert checkpoints.restore(optimizer) == 1
    assert torch.equal(torch.rand(4), wanted)


def test_removing_them_leaves_nothing(checkpoints):
    go_on(checkpoints, 4)
    checkpoints.remove()
    assert not checkpoints.folder.exists()
    assert not list(checkpoints.folder.parent.iterdir())
    checkpoints.remove()
