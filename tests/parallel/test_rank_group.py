"""Agreement of ranks: one rank's error is everyone's."""

import os

import pytest
import torch.distributed as dist

from meditron.core.errors import LostRankError, StorageError, TrainingError
from meditron.parallel.rank_group import RankGroup
from ranks import RankError, run_ranks


def agree():
    group = RankGroup.of_job()
    assert group.gather(group.rank * 10) == [0, 10, 20]
    assert group.agree(lambda: group.rank) == dist.get_rank()

    def work():
        if group.rank == 1:
            raise StorageError("the disk of rank 1 is full", hint="free some space")
        if group.rank == 2:
            raise KeyError("later")

    with pytest.raises(StorageError) as error:
        group.agree(work)
    with pytest.raises(TrainingError) as other:
        group.agree(lambda: 1 // (group.rank - 2))
    return error.value.message, error.value.hint, other.value.message, other.value.hint


def lose_a_rank():
    group = RankGroup.of_job()
    group.gather(0)  # both are connected: a rank that ends before fails the other one's connection instead
    if group.rank == 1:
        os._exit(3)
    with pytest.raises(LostRankError, match="another rank does not answer") as error:
        group.gather(1)
    assert error.value.hint == "the cause is the error of that rank; the same command resumes"


def test_the_first_error_is_raised_by_all_ranks():
    expected = (
        "the disk of rank 1 is full",
        "free some space",
        "rank 2: ZeroDivisionError: integer division or modulo by zero",
        "the same command resumes",
    )
    assert run_ranks(3, agree) == [expected] * 3


def test_the_end_of_another_rank_is_noticed():
    with pytest.raises(RankError) as error:
        run_ranks(2, lose_a_rank)
    assert str(error.value) == "rank 1: ended with exit code 3"


def test_one_process_needs_no_process_group():
    group = RankGroup.of_job()
    assert (group.rank, group.size, group.gather("x")) == (0, 1, ["x"])
