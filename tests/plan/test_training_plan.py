"""The whole plan: what follows from a published rate is what the publication says."""

from pathlib import Path

import pytest

from meditron.parallel.config import ParallelConfig
from meditron.plan.architectures import KNOWN
from meditron.plan.cluster import load_cluster
from meditron.plan.prediction import Job
from meditron.plan.training_plan import TrainingPlan, make_plan, parameters_per_rank

A100 = load_cluster(Path(__file__).parents[2] / "recipes/clusters/a100-80.toml")
PUBLISHED = ParallelConfig(dp_replicate=2, dp_shard=1, tp=8, pp=8, activation_checkpointing="selective")
# 332 hours at 40,200 tokens per second.
JOB = Job(
    config=KNOWN["meta-llama/Llama-2-70b"], sequence_length=4096, batch_size=512, tokens=332 * 3600 * 40_200
)


def published(rate: float | None = 40_200, tokens: int | None = JOB.tokens) -> TrainingPlan:
    job = Job(config=JOB.config, sequence_length=4096, batch_size=512, tokens=tokens)
    return make_plan(job, A100, PUBLISHED, 2, measured_rate=rate)


def test_hours_and_carbon_of_the_published_rate_are_the_cards() -> None:
    plan = published()
    data = plan.to_json()
    assert data["parameters"] == 68_976_648_192
    assert data["hours"] == pytest.approx(332)
    assert data["gpu_hours"] == pytest.approx(42_496)
    assert data["kgco2e"] == pytest.approx(486, rel=0.01)
    assert data["cost"] == pytest.approx(42_496 * A100.price_per_gpu_hour)


def test_mfu_of_the_published_rate_under_each_convention() -> None:
    plan = published()
    assert plan.mfu("parameters") == pytest.approx(0.417, rel=0.01)
    assert plan.mfu() == pytest.approx(0.449, rel=0.01)
    # The paper rounds the model to 70 billion parameters.
    nominal = plan.mfu("parameters") * 70e9 / JOB.config.parameter_count  # type: ignore[operator]
    assert nominal == pytest.approx(0.423, rel=0.01)


def test_the_predicted_rate_is_near_the_published_one() -> None:
    rate = published(rate=None).tokens_per_second
    assert rate == pytest.approx(40_200, rel=0.3)


def test_memory_fits_and_has_no_total() -> None:
    memory = published().to_json()["memory"]
    assert set(memory) == {
        "weights", "gradients", "optimizer", "activations", "logits", "communication",
    }  # fmt: skip
    assert 12e9 < sum(memory.values()) < 80e9


def test_micro_batch_four_does_not_fit_as_published() -> None:
    plan = make_plan(JOB, A100, PUBLISHED, 4)
    assert plan.prediction is not None
    assert [problem for problem in plan.problems if "a GPU needs" in problem.message]


def test_ranks_add_up_to_two_copies() -> None:
    plan = published()
    assert plan.prediction is not None
    counts = parameters_per_rank(JOB.config, plan.prediction.layout)
    assert len(counts) == 128
    # Norms are whole on each of the eight tensor-parallel ranks.
    norms = (2 * 80 + 1) * 8192
    assert sum(counts) == 2 * (JOB.config.parameter_count + 7 * norms)


def test_a_job_without_tokens_has_a_rate_but_no_hours() -> None:
    data = published(rate=None, tokens=None).to_json()
    assert data["tokens_per_second"] > 0
    assert data["hours"] is data["gpu_hours"] is data["kgco2e"] is data["cost"] is None


def test_an_impossible_layout_has_problems_and_suggestions_instead_of_figures() -> None:
    data = make_plan(JOB, A100, ParallelConfig(tp=3), 2).to_json()
    assert data["tokens_per_second"] is None
    assert data["memory"] == {}
    assert data["problems"][0]["hint"] == "tp may be 1, 2, 4, 7, 8, 14, 16, 28, 32, 56, 64"
    assert len(data["suggestions"]) == 3
