"""The environment of a rank: torchrun's variables, threads, devices, and errors of the connection."""

import os
import socket

import pytest

from meditron.core.errors import EngineError, UsageError
from meditron.core.machine import usable_cores
from meditron.parallel.world import World, current_world, disconnect, limit_threads, open_store, pick_device

VARIABLES = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}


@pytest.fixture
def rank(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name, value in VARIABLES.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def test_a_process_without_a_launcher_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RANK", raising=False)
    assert current_world() == World(0, 1, 0, 1)
    assert current_world().is_main


def test_the_variables_of_torchrun_are_read(rank: pytest.MonkeyPatch) -> None:
    assert current_world() == World(5, 8, 1, 4)
    assert not current_world().is_main


@pytest.mark.parametrize("name", ["WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"])
def test_missing_and_wrong_variables_are_named(rank: pytest.MonkeyPatch, name: str) -> None:
    rank.setenv(name, "many")
    with pytest.raises(UsageError, match=f"{name} must be a whole number, got 'many'"):
        current_world()
    rank.setenv(name, "9" if name == "LOCAL_RANK" else "1")
    with pytest.raises(UsageError, match="contradict each other"):
        current_world()
    rank.delenv(name)
    with pytest.raises(UsageError, match=f"RANK is set, but {name} is not"):
        current_world()


def test_cores_are_divided_over_the_ranks_unless_set() -> None:
    variables: dict[str, str] = {}
    limit_threads(2, None, variables)
    assert variables == {"OMP_NUM_THREADS": str(max(1, usable_cores() // 2))}
    limit_threads(10_000, None, variables)
    assert variables == {"OMP_NUM_THREADS": str(max(1, usable_cores() // 2))}, "a value that is set is kept"
    limit_threads(2, 7, variables)
    assert variables == {"OMP_NUM_THREADS": "7"}
    alone: dict[str, str] = {}
    limit_threads(1, None, alone)
    assert alone == {}


def test_the_cpu_can_be_forced_and_a_wrong_device_is_refused(rank: pytest.MonkeyPatch) -> None:
    rank.setenv("MEDITRON_DEVICE", "cpu")
    assert pick_device(World(5, 8, 1, 4)).type == "cpu"
    rank.setenv("MEDITRON_DEVICE", "tpu")
    with pytest.raises(UsageError, match="must be cpu or cuda, got 'tpu'"):
        pick_device(World())


def test_more_ranks_than_gpus_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MEDITRON_DEVICE", raising=False)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert str(pick_device(World(1, 4, 1, 4))) == "cuda:1"
    with pytest.raises(UsageError, match="rank 3 needs GPU 3, but this machine has 2"):
        pick_device(World(3, 4, 3, 4))


def test_a_port_in_use_and_a_silent_rank_0_are_one_line_errors(rank: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        rank.setenv("MASTER_ADDR", "127.0.0.1")
        rank.setenv("MASTER_PORT", str(port))
        for name in ("RANK", "LOCAL_RANK"):
            rank.setenv(name, "0")
        with pytest.raises(UsageError, match=f"rank 0 cannot listen on port {port}: it is in use"):
            open_store(2)
    rank.setenv("RANK", "5")
    with pytest.raises(EngineError, match=f"rank 5 cannot reach rank 0 at 127.0.0.1:{port}"):
        open_store(1)
    rank.delenv("MASTER_ADDR")
    with pytest.raises(UsageError, match="RANK is set, but MASTER_ADDR is not"):
        open_store(1)
    disconnect()
    assert "TORCH_CPP_LOG_LEVEL" in os.environ


@pytest.mark.parametrize("port", ["0", "-1", "99999"])
def test_a_number_that_is_no_port_is_refused(rank: pytest.MonkeyPatch, port: str) -> None:
    rank.setenv("MASTER_ADDR", "127.0.0.1")
    rank.setenv("MASTER_PORT", port)
    with pytest.raises(UsageError, match="MASTER_PORT must be a port, 1 to 65535"):
        open_store(1.0)
