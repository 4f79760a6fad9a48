"""The ranks of a job as its launcher describes them, and the connection between them.

`meditron run --nproc` and torchrun describe a rank in the same environment variables: RANK, WORLD_SIZE,
LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT. Importing this module does not import torch.
"""

import os
import socket
from collections.abc import MutableMapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING

from meditron.core.errors import EngineError, MissingExtra, UsageError
from meditron.core.machine import usable_cores

if TYPE_CHECKING:
    import torch
    from torch.distributed import Store  # type: ignore[attr-defined]

__all__ = [
    "DEVICE_VARIABLE",
    "LISTEN_VARIABLE",
    "World",
    "connect",
    "current_world",
    "disconnect",
    "group_timeout",
    "limit_threads",
    "open_store",
    "pick_device",
    "silence_cpp_log",
]

DEVICE_VARIABLE = "MEDITRON_DEVICE"
"""Environment variable that selects the device: `cpu`, or `cuda`; by default a GPU if there is one."""
LISTEN_VARIABLE = "MEDITRON_STORE_FD"
"""Environment variable with the descriptor of the socket that rank 0's store listens on. The launcher opens
the socket, so no other program can take its port before rank 0 has started."""
_LAUNCH_HINT = "start ranks with `meditron run RECIPE --nproc N`, or with torchrun"


@dataclass(frozen=True, slots=True)
class World:
    """Position of this process (rank) among the processes of a job."""

    rank: int = 0
    """Number of this process, from 0 to `size` - 1."""
    size: int = 1
    """Number of processes."""
    local_rank: int = 0
    """Number of this process on its machine: the number of its GPU."""
    local_size: int = 1
    """Number of processes on this machine."""

    @property
    def is_main(self) -> bool:
        """True for the rank that plans, prints and writes manifests."""
        return self.rank == 0


def current_world() -> World:
    """Return this process's world from the environment; one process if no launcher started it.

    Raises:
        UsageError: The variables contradict each other, or some are missing.
    """
    if "RANK" not in os.environ:
        return World()
    world = World(
        _environment_int("RANK"),
        _environment_int("WORLD_SIZE"),
        _environment_int("LOCAL_RANK"),
        _environment_int("LOCAL_WORLD_SIZE"),
    )
    if not (0 <= world.rank < world.size and 0 <= world.local_rank < world.local_size <= world.size):
        raise UsageError(
            f"RANK={world.rank}, WORLD_SIZE={world.size}, LOCAL_RANK={world.local_rank} and "
            f"LOCAL_WORLD_SIZE={world.local_size} contradict each other",
            hint=_LAUNCH_HINT,
        )
    return world


def _environment_int(name: str) -> int:
    text = os.environ.get(name)
    if text is None:
        raise UsageError(f"RANK is set, but {name} is not", hint=_LAUNCH_HINT)
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"{name} must be a whole number, got {text!r}", hint=_LAUNCH_HINT) from None


def limit_threads(
    local_size: int, threads: int | None = None, variables: MutableMapping[str, str] = os.environ
) -> None:
    """Set OMP_NUM_THREADS: `threads`, by default the usable cores divided over the ranks of this machine.

    Has an effect only before torch is imported. Without `threads`, a value that the user or torchrun has set
    is kept.
    """
    if threads is not None:
        variables["OMP_NUM_THREADS"] = str(threads)
    elif local_size > 1:
        variables.setdefault("OMP_NUM_THREADS", str(max(1, usable_cores() // local_size)))


def pick_device(world: World) -> "torch.device":
    """Return this rank's device: the GPU with its local rank, or the CPU if there is none.

    MEDITRON_DEVICE=cpu selects the CPU also on a machine with GPUs.

    Raises:
        UsageError: There are fewer GPUs than ranks on this machine, or MEDITRON_DEVICE has another value.
    """
    import torch

    choice = os.environ.get(DEVICE_VARIABLE, "auto")
    if choice not in ("auto", "cpu", "cuda"):
        raise UsageError(f"{DEVICE_VARIABLE} must be cpu or cuda, got {choice!r}")
    gpus = torch.cuda.device_count() if choice != "cpu" and torch.cuda.is_available() else 0
    if choice == "cuda" and not gpus:
        raise UsageError(f"{DEVICE_VARIABLE}=cuda, but torch finds no GPU", hint="unset it to use the CPU")
    if not gpus:
        return torch.device("cpu")
    if world.local_rank >= gpus:
        raise UsageError(
            f"rank {world.rank} needs GPU {world.local_rank}, but this machine has {gpus}",
            hint=f"start at most {gpus} ranks on a machine, or set {DEVICE_VARIABLE}=cpu",
        )
    return torch.device("cuda", world.local_rank)


def group_timeout(timeout: float) -> timedelta:
    """Return the timeout of collectives for a job whose watchdog has this timeout in seconds.

    A collective's own timeout aborts the process without naming the rank that is late, so it must be the
    longer one.
    """
    return timedelta(seconds=2 * timeout + 60)


def connect(timeout: float) -> "torch.device":
    """Connect this rank to the others and return its device; further calls only return the device.

    The process group has gloo for CPU tensors and, with a GPU, NCCL for its tensors. One process needs no
    group, so none is created.

    Args:
        timeout: Seconds without progress after which a rank counts as hung. Collectives wait longer
            (`group_timeout`), so that the watchdog reports first.

    Raises:
        UsageError: MASTER_ADDR or another variable is missing, a port is taken, or there are too few GPUs.
        EngineError: Rank 0 does not answer.
    """
    silence_cpp_log()
    import torch
    import torch.distributed as dist

    world = current_world()
    device = pick_device(world)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    if world.size > 1 and not dist.is_initialized():
        if world.local_size == world.size:
            # Without this gloo resolves the host's name, which fails in many containers.
            os.environ.setdefault("GLOO_SOCKET_IFNAME", _loopback_interface())
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if device.type == "cuda" else "cpu:gloo",
            store=dist.PrefixStore("group", open_store(timeout)),  # type: ignore[attr-defined]
            rank=world.rank,
            world_size=world.size,
            timeout=group_timeout(timeout),
        )
    return device


def silence_cpp_log(variables: MutableMapping[str, str] = os.environ) -> None:
    """Make torch's C++ code print no log, unless the user has set a level; read when torch is imported.

    It prints a page for each retry of a connection, although the exception says the same.
    """
    variables.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")


def _loopback_interface() -> str:
    return next((name for _, name in socket.if_nameindex() if name.startswith("lo")), "lo")


def disconnect() -> None:
    """Destroy the process group and close the store, if they exist."""
    import torch.distributed as dist

    if dist.is_initialized():
        dist.destroy_process_group()
    _Connection.store = None


class _Connection:
    """The connection of this process to the other ranks."""

    store: "Store | None" = None


def open_store(timeout: float) -> "Store":
    """Return the key-value store that all ranks share; rank 0, or torchrun, is its server.

    Args:
        timeout: Seconds to wait for the server, and for keys.

    Raises:
        UsageError: MASTER_ADDR or MASTER_PORT is missing, or the port is taken.
        EngineError: The server does not answer.
    """
    if _Connection.store is None:
        _Connection.store = _connect_store(current_world(), timeout)
    return _Connection.store


def _connect_store(world: World, timeout: float) -> "Store":
    silence_cpp_log()
    try:
        import torch.distributed as dist
    except ModuleNotFoundError as error:
        raise MissingExtra("torch", "train") from error
    host = os.environ.get("MASTER_ADDR")
    if not host:
        raise UsageError("RANK is set, but MASTER_ADDR is not", hint=_LAUNCH_HINT)
    port = _environment_int("MASTER_PORT")
    if not 0 < port < 1 << 16:
        raise UsageError(f"MASTER_PORT must be a port, 1 to 65535, got {port}", hint=_LAUNCH_HINT)
    descriptor = os.environ.get(LISTEN_VARIABLE) if world.is_main else None
    # torchrun's agent is the server itself and says so in this variable.
    serves = world.is_main and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != str(True)
    try:
        return dist.TCPStore(  # type: ignore[attr-defined]
            host,
            port,
            world.size,
            serves,
            timeout=timedelta(seconds=timeout),
            # Ranks on other machines may start minutes later; waiting is up to the caller.
            wait_for_workers=False,
            master_listen_fd=int(descriptor) if descriptor else None,
        )
    except (dist.DistError, ValueError) as error:
        if "EADDRINUSE" in str(error):
            raise UsageError(
                f"rank 0 cannot listen on port {port}: it is in use",
                hint="set MASTER_PORT to a free port, or torchrun's --master-port",
            ) from error
        raise EngineError(
            f"rank {world.rank} cannot reach rank 0 at {host}:{port} (MASTER_ADDR, MASTER_PORT)",
            hint="all ranks need the same address, of the machine that runs rank 0, and an open port there",
        ) from error
