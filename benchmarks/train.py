"""A training step at the 135M shape against a plain loop around transformers' Llama, in alternating rounds.

    python -m benchmarks.train             # rows train-vs-eager and train-vs-compiled
    python -m benchmarks.train --profile   # where the time of one of our steps goes
    python -m benchmarks.train --dtype float32   # either, as on a CPU without instructions for bfloat16

Each contestant lives in a process of its own and takes a step when told to, so that neither's memory or
compiler settings reach the other. All train the same shape (SmolLM2-135M's, seeded weights) on the same rows,
in bfloat16 with float32 master weights (in float32 on a CPU without instructions for bfloat16), fused AdamW,
the same clip, batch and threads. At a barrier everybody's threads spin some tens of milliseconds, then sleep:
long enough for a step, and whose turn it is not leaves the cores alone.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from typing import Any

os.environ.update(OMP_WAIT_POLICY="active", GOMP_SPINCOUNT="1000000")

import numpy as np
import torch
import torch._inductor.config as inductor

from benchmarks._profile import table
from benchmarks.common import record
from meditron.core.errors import MissingExtra
from meditron.core.machine import DType, describe, matrix_dtype
from meditron.model.config import LlamaConfig
from meditron.model.llama import Llama
from meditron.train.compilation import compiled
from meditron.train.config import PretrainConfig
from meditron.train.data import Mixture
from meditron.train.loop import steps
from meditron.train.optimizer import MasterAdamW
from meditron.train.peak import matmul_peak
from meditron.train.runtime import repeatable

SHAPE = LlamaConfig(
    vocab_size=49_152,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    head_dim=64,
    max_position_embeddings=8192,
    rms_norm_eps=1e-5,
    rope_theta=100_000.0,
    tie_word_embeddings=True,
)
CONFIG = PretrainConfig(
    tokens=1000 * 2 * 512,
    sequence_length=512,
    batch_size=2,
    learning_rate=1e-4,
    weight_decay=0.1,
    document_mask=False,
    compile=True,
)
WARM_UP, ROUNDS = 3, 5


class Text:
    """One long random document."""

    def __init__(self, tokens: int) -> None:
        self.ids = np.random.default_rng(0).integers(0, SHAPE.vocab_size, tokens)
        self.sizes = np.array([tokens])

    def __getitem__(self, index: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        """The document."""
        return self.ids


def data() -> Mixture:
    """The rows of the run."""
    return Mixture(
        {"text": Text(1 << 20)},
        None,
        sequence_length=CONFIG.sequence_length,
        samples=CONFIG.steps * CONFIG.batch_size,
        seed=0,
        document_mask=CONFIG.document_mask,
    )


def ours(dtype: torch.dtype) -> Iterator[float]:
    """Our loop as the stage runs it: the seconds of each step."""
    model = Llama(SHAPE)
    model.init_weights(0)
    optimizer = MasterAdamW(
        model, dtype=dtype, betas=CONFIG.betas, eps=CONFIG.eps, weight_decay=CONFIG.weight_decay
    )
    with repeatable(0, None), compiled(model):
        for step in steps(model, optimizer, data(), CONFIG):
            yield step.seconds


def plain(dtype: torch.dtype, *, compile_blocks: bool) -> Iterator[float]:
    """The loop that one writes around transformers: the seconds of each step."""
    import transformers

    torch.manual_seed(0)
    shape = transformers.LlamaConfig(**SHAPE.to_hf())
    model = transformers.LlamaForCausalLM._from_config(shape, attn_implementation="sdpa").to(dtype)
    model.train()
    if compile_blocks:
        for block in model.model.layers:
            block.compile()
    weights = list(model.parameters())
    masters = [weight.detach().float() for weight in weights]
    optimizer = torch.optim.AdamW(
        masters,
        lr=CONFIG.learning_rate,
        betas=CONFIG.betas,
        eps=CONFIG.eps,
        weight_decay=CONFIG.weight_decay,
        fused=True,
    )
    rows = data()
    for step in range(CONFIG.steps):
        began = time.perf_counter()
        first = step * CONFIG.batch_size
        ids = torch.from_numpy(np.stack([rows[first + k].ids_S for k in range(CONFIG.batch_size)]))
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, CONFIG.clip)
        for master, weight in zip(masters, weights, strict=True):
            assert weight.grad is not None
            master.grad = weight.grad.float()
        optimizer.step()
        if dtype != torch.float32:  # in which the masters are the weights' own memory
            with torch.no_grad():
                torch._foreach_copy_(weights, masters)
        model.zero_grad(set_to_none=True)
        yield time.perf_counter() - began


CONTESTANTS: dict[str, Callable[[torch.dtype], Iterator[float]]] = {
    "ours": ours,
    "eager": partial(plain, compile_blocks=False),
    "compiled": partial(plain, compile_blocks=True),
}


class Contestant:
    """A process that takes a step for each line it is sent, and answers with its wall and CPU seconds."""

    def __init__(self, name: str, dtype: DType) -> None:
        self.name = name
        command = [sys.executable, "-m", "benchmarks.train", "--contestant", name, "--dtype", dtype]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def step(self) -> tuple[float, float]:
        """Have it take a step; its wall and CPU seconds."""
        assert self.process.stdin
        assert self.process.stdout
        with suppress(BrokenPipeError):
            print("step", file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline().split()
        if len(answer) != 2:
            raise SystemExit(
                f"{self.name} ended with code {self.process.wait()}: no memory for three models?"
            )
        return float(answer[0]), float(answer[1])

    def end(self) -> None:
        """Let it go."""
        self.process.communicate()


def take_part(name: str, dtype: torch.dtype) -> None:
    """Be a contestant, until nobody asks for more."""
    course = CONTESTANTS[name](dtype)
    for _ in sys.stdin:
        began = time.process_time()
        print(next(course), time.process_time() - began, flush=True)


def compete(dtype: DType) -> None:
    """Rounds in which each takes one step after the other, and the rows they make."""
    if find_spec("transformers") is None:
        raise SystemExit(str(MissingExtra("transformers", "dev")))
    field = {name: Contestant(name, dtype) for name in CONTESTANTS}
    for contestant in field.values():
        for _ in range(WARM_UP):
            contestant.step()
    rounds = [{name: contestant.step() for name, contestant in field.items()} for _ in range(ROUNDS)]
    for contestant in field.values():
        contestant.end()
    tokens = CONFIG.batch_size * CONFIG.sequence_length
    wall, cpu = (
        {name: statistics.median(times[name][kind] for times in rounds) for name in CONTESTANTS}
        for kind in range(2)
    )
    amx = describe()["cpu_class"] == "amx-bf16" and dtype == "bfloat16"
    for peer, bar in (("eager", 1.15 if amx else 1.25), ("compiled", None)):
        record(
            "train",
            f"train-vs-{peer}",
            ours=tokens / wall["ours"],
            peer=tokens / wall[peer],
            unit="tokens/s",
            bar=bar,
            peer_name=f"transformers LlamaForCausalLM, sdpa, {peer}",
            dtype=dtype,
            threads=torch.get_num_threads(),
            cpu_seconds=[round(cpu["ours"], 3), round(cpu[peer], 3)],
            rounds=[[round(times["ours"][0], 3), round(times[peer][0], 3)] for times in rounds],
        )


def show_profile(dtype: torch.dtype) -> None:
    """Print where the time of our steps goes."""
    tokens = CONFIG.batch_size * CONFIG.sequence_length
    peak = matmul_peak(Llama(SHAPE).to(dtype), tokens)
    with inductor.patch({"cpp.enable_kernel_profile": True}):
        course = ours(dtype)
        for _ in range(WARM_UP):
            next(course)
        print("\n".join(table(course, SHAPE, tokens, peak)))


def main() -> None:
    """Compete, or profile."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--contestant", choices=CONTESTANTS, help=argparse.SUPPRESS)
    parser.add_argument("--profile", action="store_true", help="where the time of one of our steps goes")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default=matrix_dtype(), help="of all")
    asked = parser.parse_args()
    dtype = getattr(torch, asked.dtype)
    if asked.contestant:
        take_part(asked.contestant, dtype)
    elif asked.profile:
        show_profile(dtype)
    else:
        compete(asked.dtype)


if __name__ == "__main__":
    main()
