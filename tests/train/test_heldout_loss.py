"""Held-out losses: their precision; those that are not finite are errors."""

import math

import pytest
import torch
import torch.distributed as dist

from meditron.core.errors import TrainingError
from meditron.model.head import Head
from meditron.model.weights import load_model
from meditron.parallel.layout import build_layout
from meditron.parallel.model import ModelStage
from meditron.parallel.world import World
from meditron.store.models import resolve_model
from meditron.train.heldout_loss import check_finite, document_loss, document_samples, sharded_heldout_loss
from meditron.train.setup import build_state
from ranks import run_ranks
from train.world import make_config


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_heldout_loss_that_is_not_finite_is_an_error_with_its_source(loss):
    assert check_finite({"wiki": 3.0}) == {"wiki": 3.0}
    with pytest.raises(TrainingError, match=f"held-out loss of pubmed is {loss:g}"):
        check_finite({"wiki": 3.0, "pubmed": loss})


def test_the_head_of_a_heldout_loss_is_that_of_evaluation():
    """In bfloat16 too: ranks and one process would otherwise report losses of different precision."""
    llama = load_model("init:tiny", dtype=torch.bfloat16)
    ids_BS = torch.arange(5, 45)[None]
    stage = ModelStage(llama).eval()
    with torch.no_grad():
        loss = float(stage(ids_BS[:, :-1], targets_BS=ids_BS[:, 1:]))
        expected = Head(llama.head_weight).nll(llama(ids_BS[:, :-1])[0], ids_BS[0, 1:]).double().sum()
        rounded = float(stage.train()(ids_BS[:, :-1], targets_BS=ids_BS[:, 1:]))
    assert loss == pytest.approx(float(expected), rel=1e-6)
    assert rounded != pytest.approx(float(expected), rel=1e-6)


class Empty(list):
    """A training without steps."""

    document_mask = True


HELDOUT = {"text": [[*range(5, 5 + size)] for size in (9, 31, 2, 20)]}


def loss_on_ranks(base, **parallel):
    """The held-out loss in bfloat16 of this rank's part of the model."""
    config = make_config(dtype="bfloat16", parallel=parallel)
    layout = build_layout(config.parallel, World(dist.get_rank(), 2), torch.device("cpu"))
    state = build_state(config, resolve_model(base), Empty(), layout, torch.bfloat16)
    for stage in state.sharded.stages.values():
        stage.eval()
    return sharded_heldout_loss(state, document_samples(HELDOUT, max_length=32))["text"]


def losses_on_ranks(base):
    return [loss_on_ranks(base, **sizes) for sizes in ({"dp_shard": 2}, {"tp": 2}, {"pp": 2})]


def test_ranks_have_the_heldout_loss_of_one_process_in_bfloat16(world):
    base = world["base"].spec
    alone = document_loss(load_model(base, dtype=torch.bfloat16), HELDOUT, max_length=32)["text"]
    for losses in run_ranks(2, losses_on_ranks, base):
        # The rounding of the blocks is left: tensor parallelism sums parts in bfloat16.
        assert losses == pytest.approx([alone] * 3, rel=1e-3)
