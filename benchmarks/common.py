"""What the benchmarks share: alternating rounds, and lines that say what was measured on which machine."""

import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from meditron.core.machine import describe

__all__ = ["alternate", "cpu_seconds", "record"]

RESULTS = Path(__file__).parent / "results"


def cpu_seconds(work: Callable[[], object]) -> float:
    """CPU seconds of this process, all threads together, that `work` takes."""
    start = time.process_time()
    work()
    return time.process_time() - start


def alternate(ours: Callable[[], float], peer: Callable[[], float], rounds: int = 5) -> tuple[float, float]:
    """Medians of both measures, taken in turn so that a busy machine is busy for both."""
    pairs = [(ours(), peer()) for _ in range(rounds)]
    return statistics.median(mine for mine, _ in pairs), statistics.median(other for _, other in pairs)


def record(
    benchmark: str,
    name: str,
    *,
    ours: float,
    peer: float,
    unit: str,
    bar: float | None,
    peer_name: str,
    **more: object,
) -> None:
    """Print a row and add it to `benchmarks/results/BENCHMARK.jsonl`; of both figures, more is better."""
    machine = describe()
    row = {
        "name": name,
        "ours": ours,
        "peer": peer,
        "ratio": ours / peer,
        "unit": unit,
        "bar": bar,
        "peer_name": peer_name,
        "cpu": f"{machine['cpu']} ({machine['cpu_class']})",
        **more,
    }
    RESULTS.mkdir(exist_ok=True)
    with (RESULTS / f"{benchmark}.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")
    print(json.dumps(row), flush=True)
