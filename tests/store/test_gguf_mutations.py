"""Mutated GGUF headers: each is refused with an error of meditron or read, in bounded memory and time.

2,000 mutations run always, 100,000 with MEDITRON_GGUF_MUTATIONS=100000.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from meditron.core.machine import usable_cores

COUNT = int(os.environ.get("MEDITRON_GGUF_MUTATIONS", "2000"))
WORKER = Path(__file__).parents[1] / "gguf_mutations.py"


@pytest.mark.timeout(3600)
def test_every_mutated_header_is_refused_or_read(tmp_path: Path):
    workers = min(usable_cores(), 2) if COUNT > 2000 else 1
    share = COUNT // workers
    commands = [
        [sys.executable, str(WORKER), str(tmp_path / f"{seed}"), str(seed), str(share)]
        for seed in range(workers)
    ]
    # Threads of BLAS would each reserve address space, which the process limits.
    environment = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment)
        for command in commands
    ]
    outputs = [process.communicate() for process in running]
    for process, (_, err) in zip(running, outputs, strict=True):
        assert process.returncode == 0, err.decode()[-2000:]
    counts = [json.loads(out) for out, _ in outputs]
    total = {key: sum(count[key] for count in counts) for key in ("read", "refused")}
    sys.stdout.write(f"{total}, largest peak {max(count['peak'] for count in counts):,} bytes\n")
    assert sum(total.values()) == share * workers
    # Mutations that only ever are refused, or never, would test nothing.
    assert min(total.values()) > share * workers // 50
