"""Predictions follow the training: its micro-batches, and what it leaves out."""

import dataclasses
from pathlib import Path

from meditron.parallel.config import ParallelConfig
from meditron.parallel.shapes import LayoutShape
from meditron.plan.architectures import KNOWN
from meditron.plan.cluster import load_cluster
from meditron.plan.prediction import Job, predict
from meditron.plan.training_plan import make_plan

H100 = load_cluster(Path(__file__).parents[2] / "recipes/clusters/h100.toml")
JOB = Job(config=KNOWN["meta-llama/Llama-3.1-8B"], sequence_length=4096, batch_size=12, tokens=10**9)


def test_compilation_saves_memory_only_where_the_training_compiles() -> None:
    compiled = dataclasses.replace(JOB, compiled=True)
    for tp, saves in ((1, True), (2, False)):
        layout = LayoutShape(dp_shard=4, tp=tp)
        eager, fused = (predict(job, H100, layout, 1, "none").memory for job in (JOB, compiled))
        assert (fused.activations < eager.activations) == saves


def test_a_pipelines_micro_batches_have_one_sample_by_default() -> None:
    plan = make_plan(JOB, H100, ParallelConfig(dp_shard=1, tp=4, pp=2), None)
    assert plan.prediction is not None
    assert plan.prediction.micro_batch_size == 1


def test_an_uneven_batch_takes_as_long_as_the_next_larger_even_one() -> None:
    layout = LayoutShape(dp_shard=8)
    uneven = predict(JOB, H100, layout, 1, "full")
    even = predict(dataclasses.replace(JOB, batch_size=16), H100, layout, 1, "full")
    assert uneven.step.total == even.step.total
    assert uneven.tokens_per_second == even.tokens_per_second * 12 / 16
