"""The helper that runs the ranks of the other tests."""

import os
import time

import pytest
import torch
import torch.distributed as dist

from ranks import RankError, run_ranks, start_ranks


def add_ranks(offset):
    value = torch.tensor([dist.get_rank() + offset])
    dist.all_reduce(value)
    return dist.get_rank(), value


def fail_on_one():
    if dist.get_rank() == 1:
        raise ValueError("the message of rank 1")
    dist.barrier()


def sleep():
    time.sleep(60)


def exit_hard():
    if dist.get_rank() == 0:
        os._exit(7)
    dist.barrier()


def test_results_are_in_rank_order():
    assert run_ranks(3, add_ranks, 10) == [(0, torch.tensor([33])), (1, 33), (2, 33)]


def test_the_traceback_of_a_failed_rank_is_shown():
    started = time.monotonic()
    with pytest.raises(RankError, match=r"rank 1: Traceback[^$]*the message of rank 1"):
        run_ranks(2, fail_on_one)
    assert time.monotonic() - started < 30


def test_a_rank_that_ends_without_a_result_is_named():
    with pytest.raises(RankError, match="rank 0: ended with exit code 7"):
        run_ranks(2, exit_hard)


def test_ranks_that_hang_are_ended():
    with start_ranks(2, sleep, timeout=3) as ranks, pytest.raises(RankError, match="rank 0: not finished"):
        ranks.results()
    assert not any(process.is_alive() for process in ranks.processes)
