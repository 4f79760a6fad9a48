"""Speed and memory of a long training: the last of 1,000 steps against the first.

    python -m benchmarks.train_steady

A small model (0.2 million parameters beside a vocabulary of 512) trains for 1,000 steps on packed documents.
Rows: train-steady-speed, the median speed of the last 100 steps against that of steps 100 to 200; and
train-steady-memory, the peak memory after step 200 against that at the end. On a CPU speeds are per second of
the process's own computing time, because other programs come and go during a thousand steps.
"""

import statistics
import time
from typing import Any

import torch

from benchmarks._training import Setup, train_ours
from benchmarks.common import record
from benchmarks.gpu_train import TINY
from meditron.parallel.world import World, pick_device
from meditron.train.config import PretrainConfig
from meditron.train.runtime import peak_memory_bytes, training_dtype

STEPS = 1000
CONFIG = PretrainConfig(
    tokens=STEPS * 4 * 128, sequence_length=128, batch_size=4, micro_batch_size=2, learning_rate=1e-3
)


def measure(device: torch.device) -> tuple[list[float], list[int]]:
    """Return the tokens per second and the peak memory of each step but the first."""
    setup = Setup(TINY, CONFIG, getattr(torch, training_dtype("auto", device)), device)
    speeds: list[float] = []
    memory: list[int] = []
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    before = clock()

    def after_step(_seconds: float) -> None:
        nonlocal before
        now = clock()
        speeds.append(setup.tokens_per_step() / (now - before))
        memory.append(peak_memory_bytes(device))
        before = now

    train_ours(setup, after_step)
    return speeds[1:], memory[1:]


def main() -> None:
    """Measure and record."""
    speeds, memory = measure(pick_device(World()))
    common: dict[str, Any] = {"peer_name": "the same run, steps 100 to 200"}
    record(
        "train_steady",
        "train-steady-speed",
        ours=statistics.median(speeds[-100:]),
        peer=statistics.median(speeds[100:200]),
        unit="tokens/s",
        bar=0.97,
        **common,
    )
    # As speeds, more is better: the earlier peak is divided by the final one.
    record(
        "train_steady",
        "train-steady-memory",
        ours=memory[199],
        peer=memory[-1],
        unit="bytes after step 200 / at the end",
        bar=0.97,
        **common,
    )


if __name__ == "__main__":
    main()
