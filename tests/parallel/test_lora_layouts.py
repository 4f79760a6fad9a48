"""LoRA in layouts of four real processes against one process: losses, norms, merged models, checkpoints."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.distributed as dist

from meditron.core.errors import RecipeError
from meditron.model.lora import MergedWeights, adapter_shapes
from meditron.model.lora_config import LoraConfig
from meditron.model.nf4 import WholeWeights
from meditron.model.shapes import parameter_shapes
from meditron.parallel.config import ParallelConfig
from meditron.parallel.layout import build_layout
from meditron.parallel.model import GatheredWeights
from meditron.parallel.world import World
from meditron.store.models import resolve_model
from meditron.train.checkpoint import Checkpoints
from meditron.train.finetune_config import FinetuneConfig
from meditron.train.loop import Callbacks, train
from meditron.train.setup import build_state
from parallel.test_layouts import BATCH, LENGTH, MODELS, make_dataset, make_models
from ranks import run_ranks

CASES = [
    ("untied", {"dp_shard": 2, "tp": 2}, "lora"),
    ("tied", {"pp": 2, "dp_shard": 2}, "lora"),
    ("odd", {"dp_replicate": 2, "tp": 2, "activation_checkpointing": "full"}, "lora"),
    ("biases", {"pp": 2, "dp_shard": 2}, "qlora"),
]
STEPS = 4
LORA = LoraConfig(rank=6, alpha=12.0)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return make_models(tmp_path_factory.mktemp("models"))


def make_state(models, model, parallel, method="lora", *, lora=LORA, dtype=torch.float64):
    world = World(dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else World()
    config = FinetuneConfig(
        rows="rows.jsonl",
        method=method,
        lora=lora,
        sequence_length=LENGTH,
        batch_size=BATCH,
        learning_rate=1e-2,
        max_grad_norm=0.5,
        seed=5,
        parallel=ParallelConfig(**parallel),
    )
    files = resolve_model(str(models / model))
    layout = build_layout(config.parallel, world, CPU)
    return build_state(config, files, make_dataset(STEPS), layout, dtype, master_dtype=torch.float64)


def merged_weights(state, model):
    """The merged model as a mapping of whole tensors, on rank 0."""
    shape = MODELS[model]
    if state.sharded is None:
        return dict(MergedWeights(WholeWeights(state.model.llama, {}), shape, LORA))
    merged = MergedWeights(GatheredWeights(state.sharded), shape, LORA)
    if state.layout.is_main:
        return {name: merged[name].clone() for name in sorted(parameter_shapes(shape))}
    for name in sorted(parameter_shapes(shape)):
        for part in merged.parts(name):
            state.sharded.gather(part)
    return {}


def figures(state, **callbacks):
    steps = []
    train(state, Callbacks(log=lambda result, heldout: steps.append(result), **callbacks))
    return [(step.loss, step.gradient_norm) for step in steps]


def run_cases(models):
    results = []
    for model, parallel, method in CASES:
        state = make_state(models, model, parallel, method)
        results.append((figures(state), merged_weights(state, model)))
    return results


@pytest.mark.timeout(600)
def test_every_layout_trains_the_adapters_as_one_process(models):
    by_rank = run_ranks(4, run_cases, models, timeout=500)
    for number, (model, parallel, method) in enumerate(CASES):
        state = make_state(models, model, {}, method)
        expected, merged = figures(state), merged_weights(state, model)
        assert set(state.optimizer.masters) == set(adapter_shapes(MODELS[model], LORA))
        for results in by_rank:
            measured = results[number][0]
            assert len(measured) == STEPS
            assert np.abs(np.array(measured) - np.array(expected)).max() <= 2e-8, (model, parallel)
        gathered = by_rank[0][number][1]
        assert gathered.keys() == merged.keys()
        for name, weight in merged.items():
            assert (gathered[name] - weight).abs().max() <= 1e-9, (model, parallel, name)


def save_and_go_on(models, folder):
    state = make_state(models, "tied", {"dp_shard": 2, "tp": 2})
    checkpoints = Checkpoints(folder, {}, layout=state.layout.describe())

    def save(step, stop):
        if step == 2:
            checkpoints.save(step, state.optimizer)

    measured = figures(state, checkpoint=save)
    checkpoints.wait()
    return measured[2:]


@pytest.mark.timeout(300)
def test_a_checkpoint_of_adapters_opens_in_another_layout(models, tmp_path):
    expected = run_ranks(4, save_and_go_on, models, tmp_path / "checkpoints", timeout=200)[0]
    state = make_state(models, "tied", {})
    restored = Checkpoints(tmp_path / "checkpoints", {}, layout=state.layout.describe()).restore(
        state.optimizer
    )
    assert restored.step == 2
    stored = sum(file.stat().st_size for file in (tmp_path / "checkpoints").rglob("*.safetensors"))
    assert stored < 8 * 3 * sum(np.prod(s) for s in adapter_shapes(MODELS["tied"], LORA).values()) + 2e5
    measured = figures(replace(state, start_step=restored.step))
    assert np.abs(np.array(measured) - np.array(expected)).max() <= 2e-8


REFUSED = [
    (LoraConfig(), {"dp_shard": 2, "tp": 2}, "qlora", "4-bit weights are not supported with tp > 1"),
    (
        LoraConfig(rank=5),
        {"dp_shard": 2, "tp": 2},
        "lora",
        "dp_shard 2 does not divide the adapters' rank, 5",
    ),
    (LoraConfig(dropout=0.1), {"dp_shard": 2, "tp": 2}, "lora", "dropout is not supported with tp > 1"),
    (
        LoraConfig(),
        {"pp": 2, "dp_shard": 2, "schedule": "zero-bubble"},
        "lora",
        "zero-bubble is not supported",
    ),
]


def refuse(models):
    for lora, parallel, method, problem in REFUSED:
        with pytest.raises(RecipeError, match=problem):
            make_state(models, "tied", parallel, method, lora=lora)
    return True


def test_adapters_that_cannot_be_divided_are_refused(models):
    assert run_ranks(4, refuse, models) == [True] * 4
