"""Finetunes with new tokens in layouts of four real processes against one process: losses, norms, weights."""

import numpy as np
import pytest
import torch
import torch.distributed as dist

from meditron.model.lora import MergedWeights, trained_shapes
from meditron.model.new_tokens import NewTokens, extended_config
from meditron.model.nf4 import WholeWeights
from meditron.model.shapes import parameter_shapes
from meditron.parallel.config import ParallelConfig
from meditron.parallel.layout import build_layout
from meditron.parallel.model import GatheredWeights
from meditron.parallel.world import World
from meditron.store.models import resolve_model
from meditron.train.finetune_config import FinetuneConfig
from meditron.train.loop import Callbacks, train
from meditron.train.setup import build_state
from parallel.test_layouts import BATCH, LENGTH, MODELS, make_dataset, make_models
from ranks import run_ranks

CASES = [
    ("untied", {"dp_shard": 2, "tp": 2}, "full"),
    ("tied", {"pp": 2, "tp": 2}, "full"),
    ("untied", {"dp_shard": 2, "tp": 2}, "lora"),
    ("tied", {"pp": 2, "dp_shard": 2}, "qlora"),
]
STEPS = 3
ADDED = 3
"""New tokens; the vocabulary then cannot be divided evenly by 2."""


def new_tokens(model):
    size = MODELS[model].vocab_size
    return NewTokens(size, size + ADDED + size % 2)


def make_state(models, model, parallel, method):
    world = World(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else World()
    config = FinetuneConfig(
        rows="rows.jsonl",
        method=method,
        lora=None if method == "full" else {"rank": 6},
        added_tokens=["<a>"],  # the embedding is trained beside adapters
        sequence_length=LENGTH,
        batch_size=BATCH,
        learning_rate=1e-2,
        max_grad_norm=0.5,
        seed=5,
        parallel=ParallelConfig(**parallel),
    )
    return build_state(
        config,
        resolve_model(str(models / model)),
        make_dataset(STEPS, new_tokens(model).end),
        build_layout(config.parallel, world, torch.device("cpu")),
        torch.float64,
        master_dtype=torch.float64,
        new_tokens=new_tokens(model),
    )


def final_weights(state, model):
    """The exported model as a mapping of whole tensors, on rank 0."""
    shape = extended_config(MODELS[model], new_tokens(model))
    whole = WholeWeights(state.model.llama, {}) if state.sharded is None else GatheredWeights(state.sharded)
    adapter = state.config.adapter
    weights = whole if adapter is None else MergedWeights(whole, shape, adapter)
    if state.layout.is_main:
        return {name: weights[name].detach().clone() for name in sorted(parameter_shapes(shape))}
    for name in sorted(parameter_shapes(shape)):
        for part in weights.parts(name) if isinstance(weights, MergedWeights) else (name,):
            state.sharded.gather(part)
    return {}


def figures(state):
    steps = []
    train(state, Callbacks(log=lambda result, heldout: steps.append(result)))
    return [(step.loss, step.gradient_norm) for step in steps]


def run_cases(models):
    results = []
    for case in CASES:
        state = make_state(models, *case)
        results.append((figures(state), final_weights(state, case[0])))
    return results


@pytest.mark.timeout(600)
def test_every_layout_trains_new_tokens_as_one_process(tmp_path):
    models = make_models(tmp_path)
    by_rank = run_ranks(4, run_cases, models, timeout=500)
    for number, (model, parallel, method) in enumerate(CASES):
        state = make_state(models, model, {}, method)
        expected, weights = figures(state), final_weights(state, model)
        shape = extended_config(MODELS[model], new_tokens(model))
        assert shape.vocab_size % 2
        if method != "full":
            assert set(state.optimizer.masters) == set(trained_shapes(shape, state.config.adapter))
        for results in by_rank:
            assert np.abs(np.array(results[number][0]) - np.array(expected)).max() <= 2e-8, (model, parallel)
        gathered = by_rank[0][number][1]
        assert gathered.keys() == weights.keys()
        for name, weight in weights.items():
            assert gathered[name].shape == parameter_shapes(shape)[name], "no padding is exported"
            assert (gathered[name] - weight).abs().max() <= 1e-9, (model, parallel, method, name)
