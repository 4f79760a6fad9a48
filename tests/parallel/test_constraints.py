"""Constraints of layouts: `meditron plan` and a training give one verdict, and torch accepts it too."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch.distributed.device_mesh import init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore

from meditron.core.errors import RecipeError
from meditron.model.config import LlamaConfig
from meditron.model.llama import Llama
from meditron.parallel.config import ParallelConfig
from meditron.parallel.constraints import require_possible_layout
from meditron.parallel.layout import Layout
from meditron.parallel.shapes import LayoutShape
from meditron.plan.cluster import Cluster, load_cluster, with_nodes
from meditron.plan.prediction import Job
from meditron.plan.training_plan import make_plan
from meditron.store.files import write_json
from meditron.store.models import ModelFiles, resolve_model
from meditron.train.config import PretrainConfig
from meditron.train.loop import TrainState
from meditron.train.samples import Sample
from meditron.train.setup import build_state

CLUSTER: Cluster = with_nodes(load_cluster(Path(__file__).parents[2] / "recipes/clusters/h200.toml"), 8)
MODEL = LlamaConfig(
    vocab_size=11,
    hidden_size=8,
    intermediate_size=12,
    num_hidden_layers=4,
    num_attention_heads=2,
    num_key_value_heads=2,
    head_dim=4,
    max_position_embeddings=16,
)
BASE = {"sequence_length": 7, "batch_size": 6, "micro_batch_size": None}
POSSIBLE = {"sequence_length": 16, "batch_size": 8, "micro_batch_size": 1}


def some_layouts() -> Iterator[tuple[ParallelConfig, dict[str, int | None]]]:
    """Every combination of small sizes with one batch, and batches of several sizes with some layouts."""
    sizes = itertools.product((1, 2), (1, 3), (1, 2, 3, 5), (1, 2, 3), ("1f1b", "interleaved"))
    for copies, shards, tp, pp, schedule in sizes:
        if pp > 1 or schedule == "1f1b":
            yield (
                ParallelConfig(dp_replicate=copies, dp_shard=shards, tp=tp, pp=pp, schedule=schedule),  # type: ignore[arg-type]
                BASE,
            )
    batches = [(5, None), (5, 5), (6, 2), (6, 3), (7, 1), (9, 3), (2, 1), (1, None)]
    layouts = [
        ParallelConfig(dp_shard=4),
        ParallelConfig(dp_shard=1, pp=2, schedule="interleaved"),
        ParallelConfig(dp_shard=2, pp=2),
        ParallelConfig(dp_shard=1, pp=2, schedule="zero-bubble"),
        ParallelConfig(dp_shard=1, tp=4),
    ]
    for parallel, (batch, micro) in itertools.product(layouts, batches):
        yield parallel, {"sequence_length": 17 - batch % 2, "batch_size": batch, "micro_batch_size": micro}


class Repeated:
    """Equal samples, as many as wanted."""

    document_mask = False

    def __init__(self, count: int, length: int) -> None:
        ids_S = torch.arange(length).numpy() % MODEL.vocab_size
        places_S = torch.arange(length).numpy()
        self.count, self.sample = count, Sample(ids_S, ids_S, 0 * places_S, places_S, "text", (0,))

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, k: int) -> Sample:
        return self.sample

    def count_tokens(self, consumed: int) -> int:
        return consumed * len(self.sample.ids_S)

    def epochs_by_source(self, consumed: int) -> dict[str, float]:
        return {}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> ModelFiles:
    folder = tmp_path_factory.mktemp("model")
    llama = Llama(MODEL)
    llama.init_weights(1)
    save_file(llama.state_dict(), folder / "model.safetensors")
    write_json(folder / "config.json", MODEL.to_hf())
    return resolve_model(str(folder))


def begin_training(files: ModelFiles, parallel: ParallelConfig, batch: dict[str, int | None]) -> None:
    """Do what rank 0 of a training does up to its first backward pass, in a world without other ranks."""
    shape = parallel.shape_on(1)
    config = PretrainConfig(tokens=1, learning_rate=1e-3, parallel=parallel, **batch)  # type: ignore[arg-type]
    dist.init_process_group("fake", rank=0, world_size=shape.ranks, store=FakeStore())
    try:
        sizes = (shape.pp, shape.dp_replicate, shape.dp_shard, shape.tp)
        mesh = init_device_mesh("cpu", sizes, mesh_dim_names=("pp", "dp_replicate", "dp_shard", "tp"))
        layout = Layout(
            parallel, shape, torch.device("cpu"), 0, mesh if shape.ranks > 1 else None, dist.group.WORLD
        )
        dataset = Repeated(config.batch_size, config.sequence_length)
        state = build_state(config, files, dataset, layout, torch.float32)
        forward_backward(state)
    finally:
        dist.destroy_process_group()


def forward_backward(state: TrainState) -> None:
    (step,) = state.batches()
    if state.pipeline is None:  # stages would wait for messages of the others; their schedule exists already
        for batch in step.batches:
            state.model(batch.ids_BS, targets_BS=batch.targets_BS).sum().backward()


def plan_refuses(parallel: ParallelConfig, batch: dict[str, int | None]) -> bool:
    job = Job(
        config=MODEL,
        sequence_length=batch["sequence_length"] or 0,
        batch_size=batch["batch_size"] or 0,
        tokens=None,
    )
    return bool(make_plan(job, CLUSTER, parallel, batch["micro_batch_size"]).problems)


@pytest.mark.filterwarnings("ignore:Full backward hook")
def test_the_plan_refuses_exactly_what_a_training_refuses(files: ModelFiles) -> None:
    verdicts = []
    for parallel, batch in some_layouts():
        refused = plan_refuses(parallel, batch)
        try:
            begin_training(files, parallel, batch)
            verdict = False
        except RecipeError:
            verdict = True
        assert refused == verdict, (parallel, batch)
        verdicts.append(refused)
    assert 20 < sum(verdicts) < len(verdicts) - 20


@pytest.mark.parametrize(
    ("layout", "batch", "message"),
    [
        (LayoutShape(tp=5), {}, "tp 5 does not divide the model's intermediate_size, 12"),
        (LayoutShape(tp=6), {}, "tp 6 leaves a rank without a part of the vocabulary of 9 tokens"),
        (LayoutShape(tp=2, dp_shard=3), {}, "dp_shard 3 does not divide the model's hidden_size, 8"),
        (LayoutShape(pp=8), {}, "4 blocks cannot be divided over 8 pipeline stages"),
        (LayoutShape(pp=4, dp_shard=4), {}, "2 micro-batches of a data-parallel rank are too few for pp 4"),
        (
            LayoutShape(pp=2, schedule="zero-bubble"),
            {"batch_size": 5},
            "5 micro-batches of a data-parallel rank cannot be divided into 2 rounds",
        ),
        (LayoutShape(), {"sequence_length": 17}, "longer than the model's context of 16 tokens"),
    ],
)
def test_each_constraint_has_a_message(layout: LayoutShape, batch: dict[str, int], message: str) -> None:
    model = MODEL.model_copy(update={"vocab_size": 9})
    with pytest.raises(RecipeError, match=message):
        require_possible_layout(model, layout, **POSSIBLE | batch)
