"""Sizes of a rank's part: chunks, pipeline stages and ranks. test_sharded_bytes.py compares whole shards."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from meditron.parallel.shapes import (
    LayoutShape,
    chunk_length,
    rank_parameters,
    rank_stages,
    stage_blocks,
    stage_parameters,
)
from meditron.plan.architectures import KNOWN


@given(st.integers(1, 500), st.integers(1, 40))
def test_chunks_are_torchs(size: int, chunks: int) -> None:
    real = [len(part) for part in torch.arange(size).chunk(chunks)]
    real += [0] * (chunks - len(real))  # torch.chunk leaves empty chunks out; DTensor and FSDP have them
    assert [chunk_length(size, chunks, index) for index in range(chunks)] == real


@given(st.integers(1, 130), st.integers(1, 64))
def test_stages_have_all_blocks_in_order_and_near_equal(blocks: int, stages: int) -> None:
    if stages > blocks:
        with pytest.raises(ValueError, match="cannot be divided"):
            stage_blocks(blocks, stages)
        return
    ranges = stage_blocks(blocks, stages)
    assert [block for part in ranges for block in part] == list(range(blocks))
    sizes = [len(part) for part in ranges]
    assert max(sizes) - min(sizes) <= 1
    assert sizes[-1] == min(sizes), "the last stage also has the head"
    assert sizes[0] == min(sizes) or min(sizes[:-1]) == max(sizes), "the first also has the embedding"


@pytest.mark.parametrize("schedule", ["1f1b", "interleaved", "zero-bubble"])
@pytest.mark.parametrize("pp", [1, 2, 5])
def test_every_stage_has_one_rank(schedule: str, pp: int) -> None:
    layout = LayoutShape(pp=pp, schedule=schedule)
    stages = [stage for rank in range(pp) for stage in rank_stages(pp, rank, schedule)]
    assert sorted(stages) == list(range(layout.stages))


def test_coordinates_are_those_of_torchs_mesh() -> None:
    layout = LayoutShape(dp_replicate=2, dp_shard=3, tp=4, pp=5)
    mesh = torch.arange(layout.ranks).reshape(5, 2, 3, 4)
    for rank in range(layout.ranks):
        assert mesh[layout.coordinates(rank)] == rank


@pytest.mark.parametrize("name", ["Qwen/Qwen2.5-0.5B", "Qwen/Qwen3-0.6B", "HuggingFaceTB/SmolLM2-135M"])
def test_shards_without_a_pipeline_add_up_to_the_model(name: str) -> None:
    config = KNOWN[name]
    layout = LayoutShape(dp_shard=7)
    assert stage_parameters(config, layout, 0) == config.parameter_count
    assert sum(rank_parameters(config, layout, rank) for rank in range(7)) == config.parameter_count


def test_a_tied_head_is_copied_to_a_last_stage_without_the_embedding() -> None:
    config = KNOWN["HuggingFaceTB/SmolLM2-135M"]
    copy = config.vocab_size * config.hidden_size
    two = LayoutShape(pp=2)
    assert sum(rank_parameters(config, two, rank) for rank in range(2)) == config.parameter_count + copy
