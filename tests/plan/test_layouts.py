"""Layouts: the impossible ones are refused with what is possible; the suggested ones fit."""

from pathlib import Path

import pytest

from meditron.parallel.config import ParallelConfig
from meditron.parallel.shapes import LayoutShape
from meditron.plan.architectures import KNOWN
from meditron.plan.cluster import load_cluster, with_nodes
from meditron.plan.layouts import layout_notes, layout_problems, nodes_that_fit, suggest_layouts
from meditron.plan.prediction import Job
from meditron.plan.training_plan import make_plan

CLUSTERS = Path(__file__).parents[2] / "recipes/clusters"
A100, H100 = load_cluster(CLUSTERS / "a100-80.toml"), load_cluster(CLUSTERS / "h100.toml")
JOB_70B = Job(config=KNOWN["meta-llama/Llama-2-70b"], sequence_length=4096, batch_size=512, tokens=10**9)
JOB_8B = Job(config=KNOWN["meta-llama/Llama-3.1-8B"], sequence_length=8192, batch_size=128, tokens=10**9)


def test_shards_are_the_ranks_that_remain() -> None:
    assert ParallelConfig(tp=8, pp=4).shape_on(128).dp_shard == 4
    assert ParallelConfig(dp_replicate=2, dp_shard=1, tp=8, pp=8).shape_on(128).ranks == 128
    assert ParallelConfig(tp=8).shape_on(4).dp_shard == 1


@pytest.mark.parametrize(
    ("layout", "micro", "message", "hint"),
    [
        (
            LayoutShape(tp=24, dp_shard=8),
            2,
            "tp 24 does not divide the model's intermediate_size, 28,672",
            "tp may be 1, 2, 4, 7, 8, 14, 16",
        ),
        (LayoutShape(tp=8, pp=16, dp_shard=2), 2, "256 ranks", "more nodes"),
        (LayoutShape(pp=128), 4, "80 blocks cannot be divided over 128", "at most 80"),
        (LayoutShape(pp=64, schedule="interleaved"), 4, "over 128 pipeline stages", "at most 40"),
        (
            LayoutShape(dp_shard=16, pp=8),
            8,
            "4 micro-batches of a data-parallel rank are too few for pp 8",
            "lower micro",
        ),
        (
            LayoutShape(dp_shard=3, tp=8),
            1,
            "dp_shard 3 does not divide the model's hidden_size, 8,192",
            "dp_replicate",
        ),
    ],
)
def test_impossible_layouts_say_what_is_possible(
    layout: LayoutShape, micro: int, message: str, hint: str
) -> None:
    problems = layout_problems(JOB_70B, A100, layout, micro)
    matching = [problem for problem in problems if message in problem.message]
    assert matching, problems
    assert hint in matching[0].hint


def test_the_published_layout_is_possible() -> None:
    assert not layout_problems(JOB_70B, A100, LayoutShape(dp_replicate=2, tp=8, pp=8), 2)


def test_an_uneven_batch_and_heads_that_tp_does_not_divide_are_noted() -> None:
    notes = list(layout_notes(JOB_70B, A100, LayoutShape(dp_shard=6, tp=7)))
    assert any("6 data-parallel ranks: in every step they also compute 4 samples" in note for note in notes)
    assert any("tp 7 does not divide 64 heads and 8 key/value heads" in note for note in notes)


@pytest.mark.parametrize(("job", "cluster"), [(JOB_70B, A100), (JOB_8B, H100)], ids=["70B", "8B"])
def test_suggested_layouts_are_possible_fit_and_are_sorted(job: Job, cluster: object) -> None:
    assert isinstance(cluster, type(A100))
    suggestions = suggest_layouts(job, cluster)
    assert len(suggestions) == 3
    for suggestion in suggestions:
        assert suggestion.layout.ranks == cluster.gpus
        assert suggestion.fits(cluster)
        assert not layout_problems(job, cluster, suggestion.layout, suggestion.micro_batch_size)
    rates = [suggestion.tokens_per_second for suggestion in suggestions]
    assert rates == sorted(rates, reverse=True)


def test_a_layout_without_enough_memory_is_a_problem_with_a_prediction() -> None:
    parallel = ParallelConfig(dp_replicate=8, dp_shard=1)
    plan = make_plan(JOB_8B, H100, parallel, 1)
    assert plan.prediction is not None
    (problem,) = plan.problems
    assert "a GPU needs" in problem.message
    assert plan.suggestions


def test_nodes_are_doubled_until_a_layout_fits() -> None:
    one = with_nodes(A100, 1)
    assert not suggest_layouts(JOB_70B, one)
    nodes = nodes_that_fit(JOB_70B, one)
    assert nodes in (2, 4)
    assert suggest_layouts(JOB_70B, with_nodes(A100, nodes))
