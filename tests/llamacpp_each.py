"""llama.cpp on many small files in one child process, which starts only once."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from urllib.request import Request, urlopen

from llamacpp import ENVIRONMENT


def continuations(paths: Sequence[Path], prompt: Sequence[int], tokens: int) -> list[list[int]]:
    """Return each model's greedy continuation of the prompt; RuntimeError if a model does not load."""
    words = [sys.executable, str(Path(__file__).resolve()), json.dumps(list(prompt)), str(tokens), *paths]
    ran = subprocess.run(
        words, capture_output=True, text=True, env={**os.environ, **ENVIRONMENT}, timeout=120
    )
    if ran.returncode:
        raise RuntimeError(f"llama.cpp: {ran.stderr[-2000:]}")
    return [json.loads(line)["tokens"] for line in ran.stdout.splitlines()]


def _main(prompt: str, tokens: str, *paths: str) -> None:
    import xllamacpp

    body = {"prompt": json.loads(prompt), "n_predict": int(tokens), "temperature": 0.0, "return_tokens": True}
    for path in paths:
        params = xllamacpp.CommonParams()
        params.model.path = path
        params.n_ctx = 64
        params.n_parallel = 1
        params.n_gpu_layers = 0
        params.cpuparams.n_threads = 1
        params.cpuparams.poll = 0
        params.cache_ram_mib = 0
        params.warmup = False
        params.fit_params = False
        params.ui = False
        params.verbosity = 0
        server = xllamacpp.Server(params)
        request = Request(f"{server.listening_address}/completion", json.dumps(body).encode())  # noqa: S310
        request.add_header("Content-Type", "application/json")
        with urlopen(request) as answer:  # noqa: S310
            sys.stdout.write(json.dumps(json.load(answer)) + "\n")


if __name__ == "__main__":
    _main(*sys.argv[1:])
