"""What the benchmarks share: alternating rounds, lines that say what was measured where, blocks of pages."""

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from meditron.core.machine import describe

__all__ = ["alternate", "cpu_seconds", "fill_blocks", "markdown_table", "record"]

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


def fill_blocks(page: str, blocks: Mapping[str, str]) -> str:
    """Return the text of a page with new text between `<!-- NAME -->` and `<!-- end -->` of each block."""
    for name, text in blocks.items():
        before, start, rest = page.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition("<!-- end -->")
        assert end, f"the page has no block {name}"
        page = f"{before}{start}{text}\n{end}{after}"
    return page


def markdown_table(headers: Sequence[str], rows: Sequence[Sequence[str]], sides: str) -> str:
    """Return a table in Markdown; `sides` has `l` or `r` for each column."""
    rule = "|".join("--:" if side == "r" else "---" for side in sides)
    lines = [f"| {' | '.join(headers)} |", f"|{rule}|"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])
