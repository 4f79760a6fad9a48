"""llama.cpp as the reference: its own server in a child process, on a loopback port of its choosing.

`with llama_server(path) as server:` starts it and kills it for sure; the child also ends by itself when its
parent is gone or after ten minutes. A crash in C++ is the child's own.
"""

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

START_SECONDS, REQUEST_SECONDS, LIFE_SECONDS = 120, 120, 600
ENVIRONMENT = {"OMP_WAIT_POLICY": "passive", "GOMP_SPINCOUNT": "0", "OMP_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Step:
    """One generated token: its id, its log-probability and those of the likeliest ids, best first."""

    id: int
    logprob: float
    top: list[tuple[int, float]]


@dataclass(frozen=True)
class LlamaServer:
    """A running server; `url` is its root, without a slash at the end."""

    url: str

    def post(self, path: str, **body: Any) -> Any:
        connection = HTTPConnection(urlsplit(self.url).netloc, timeout=REQUEST_SECONDS)
        with closing(connection):
            connection.request("POST", path, json.dumps(body), {"Content-Type": "application/json"})
            answer = connection.getresponse()
            content = answer.read()
        if answer.status != 200:
            raise RuntimeError(f"llama.cpp: {answer.status} {content[:500]!r}")
        return json.loads(content)

    def tokenize(self, text: str, *, special: bool = False, bos: bool = True) -> list[int]:
        """Ids of `text`; `special` reads control tokens' names as such, `bos` adds what the model adds."""
        return self.post("/tokenize", content=text, add_special=bos, parse_special=special)["tokens"]

    def detokenize(self, ids: Sequence[int]) -> str:
        return self.post("/detokenize", tokens=list(ids))["content"]

    def greedy(self, prompt: str | Sequence[int], tokens: int, *, top: int = 2) -> list[Step]:
        """The greedy continuation; fewer steps than `tokens` where the model ends its text."""
        answer = self.post(
            "/completion",
            prompt=prompt if isinstance(prompt, str) else list(prompt),
            n_predict=tokens,
            temperature=0.0,
            samplers=["temperature"],
            n_probs=top,
            cache_prompt=False,
            return_tokens=True,
        )
        return [
            Step(step["id"], step["logprob"], [(t["id"], t["logprob"]) for t in step["top_logprobs"]])
            for step in answer["completion_probabilities"]
        ]


@contextmanager
def llama_server(gguf: Path, *, context: int = 2048) -> Iterator[LlamaServer]:
    """Run llama.cpp's server on a GGUF file; RuntimeError, with its last words, if it does not start."""
    with tempfile.TemporaryFile() as log:
        child = subprocess.Popen(
            [sys.executable, str(Path(__file__).resolve()), str(gguf), str(context)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            env={**os.environ, **ENVIRONMENT},
            start_new_session=True,
        )
        try:
            yield LlamaServer(_address(child, log))
        finally:
            os.killpg(child.pid, signal.SIGKILL)
            child.communicate()


def _address(child: subprocess.Popen[bytes], log: IO[bytes]) -> str:
    """The address that the child prints once the model is loaded."""
    assert child.stdout is not None
    if select.select([child.stdout], [], [], START_SECONDS)[0] and (line := child.stdout.readline()):
        return line.split()[1].decode()
    log.seek(0)
    raise RuntimeError("llama.cpp did not start: " + log.read()[-2000:].decode(errors="replace"))


def _serve(gguf: str, context: int) -> None:
    """The child: serve until stdin ends."""
    import xllamacpp

    signal.alarm(LIFE_SECONDS)
    params = xllamacpp.CommonParams()
    params.model.path = gguf
    params.n_ctx = context
    params.n_parallel = 1
    params.n_gpu_layers = 0
    params.cpuparams.n_threads = 1
    params.cpuparams.poll = 0
    params.n_threads_http = 2
    params.cache_ram_mib = 0
    params.warmup = False
    params.fit_params = False
    params.ui = False
    # Weights repacked for speed and a cache in halves round otherwise than float32 in torch does.
    params.no_extra_bufts = True
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.verbosity = 0
    server = xllamacpp.Server(params)
    sys.stdout.write(f"listening {server.listening_address}\n")
    sys.stdout.flush()
    sys.stdin.read()


if __name__ == "__main__":
    _serve(sys.argv[1], int(sys.argv[2]))
