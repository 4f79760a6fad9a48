"""Growth of the corpus stage with the number of documents: `make bench ONLY=corpus_scale`.

Builds the corpus of 1/16, 1/4 and all of two sets of distinct documents with one worker, each in a process of
its own, and prints one row each: CPU seconds, seconds, and the peak of the resident memory.

`small` has many documents of 20 words: a byte of memory per document shows. `text` has documents of 250
words, as long as an abstract: its rate is that of real text. `DOCUMENTS=N` changes the size of `small`.
"""

import json
import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.common import RESULTS
from meditron.core.machine import describe

SMALL = int(os.environ.get("DOCUMENTS", "2_000_000"))
TEXT = 120_000
PARTS = (16, 4, 1)
BOUND = 64  # bytes of memory per document
SHARD = 2_000

_WORDS = 4_000  # distinct words, of lengths as in English
_STEM = "bcdfghlmnprstv"
_VOWEL = "aeiou"


def write_documents(path: Path, count: int, words: int) -> int:
    """Write distinct documents as JSON lines, and return the number of characters of their texts."""
    chooser = random.Random(0)  # noqa: S311  # made-up text
    vocabulary = [
        "".join(
            chooser.choice(_STEM) + chooser.choice(_VOWEL) for _ in range(chooser.choice((1, 2, 2, 3, 4, 5)))
        )
        for _ in range(_WORDS)
    ]
    characters = 0
    with path.open("w", encoding="utf-8") as file:
        for number in range(count):
            # The number makes the document distinct: random words alone might repeat.
            text = f"Case {number}: {' '.join(chooser.choices(vocabulary, k=words))}."
            characters += len(text)
            file.write(json.dumps({"id": f"case:{number}", "text": text}) + "\n")
    return characters


_BUILD = """
import json, resource, sys, time
from pathlib import Path
from meditron.core.console import configure
from meditron.corpus.build import run
from meditron.corpus.config import CorpusConfig
from meditron.store.manifest import Artifact
configure(quiet=True)
source, out, shard = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
# Made-up text has no function words.
filters = {"min_stop_words": 0}
keys = {"sources": {"cases": {"from": str(source)}}, "shard_documents": shard, "filters": filters}
started = time.monotonic()
run(CorpusConfig.model_validate(keys), {"cases": Artifact("cases", source, "0" * 64)}, out)
usage = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps([usage.ru_utime + usage.ru_stime, time.monotonic() - started, usage.ru_maxrss * 1024]))
"""


def measure(source: Path, out: Path) -> tuple[float, float, int]:
    """Build a corpus in a process of its own; return CPU seconds, seconds and the peak memory in bytes."""
    command = [sys.executable, "-c", _BUILD, str(source), str(out), str(SHARD)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    cpu, seconds, peak = json.loads(done.stdout)
    return cpu, seconds, peak


def main() -> None:
    RESULTS.mkdir(exist_ok=True)
    machine = describe()
    for name, count, words in (("small", SMALL, 20), ("text", TEXT, 250)):
        peaks: dict[int, int] = {}
        for part in PARTS:
            with tempfile.TemporaryDirectory() as folder:
                source = Path(folder) / "cases.jsonl"
                documents = count // part
                characters = write_documents(source, documents, words)
                cpu, seconds, peak = measure(source, Path(folder) / "corpus")
            peaks[documents] = peak
            row = {
                "name": f"{name}, 1/{part}",
                "documents": documents,
                "MB": characters / 1e6,
                "cpu_seconds": cpu,
                "seconds": seconds,
                "peak_MB": peak / 1e6,
                "documents_per_cpu_second": documents / cpu,
                "MB_per_cpu_second": characters / 1e6 / cpu,
                "cpu": f"{machine['cpu']} ({machine['cpu_class']})",
            }
            print(json.dumps(row), flush=True)
            with (RESULTS / "corpus_scale.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        _, (before, low), (after, high) = sorted(peaks.items())
        if name == "small":
            per_document = (high - low) / (after - before)
            print(f"{per_document:.1f} bytes of memory per document (bound {BOUND})", flush=True)
            assert per_document <= BOUND


if __name__ == "__main__":
    main()
