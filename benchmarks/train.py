"""A training step at the 135M shape against a plain loop around transformers' Llama, in alternating rounds.

    python -m benchmarks.train             # rows train-vs-eager and train-vs-compiled
    python -m benchmarks.train --profile   # time of one of our steps by operation
    python -m benchmarks.train --dtype float32   # either, as on a CPU without instructions for bfloat16

Each contestant is a process of its own and takes one step per line that it receives, so that neither's memory
or compiler settings affect the other. All train the same shape (SmolLM2-135M's, seeded weights) on the same
samples, in bfloat16 with float32 master weights (in float32 on a CPU without instructions for bfloat16), with
fused AdamW and the same gradient clipping, batch and threads. Waiting OpenMP threads spin for some tens of
milliseconds, then sleep: enough within a step, and the cores are free for the contestant whose turn it is.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
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
from meditron.core.machine import DType, describe, resolve_matrix_dtype
from meditron.model.config import LlamaConfig
from meditron.model.llama import Llama
from meditron.train.compilation import compiled_blocks
from meditron.train.config import PretrainConfig
from meditron.train.loop import TrainState, train
from meditron.train.mixture import Mixture
from meditron.train.optimizer import MasterAdamW
from meditron.train.peak import matmul_peak
from meditron.train.runtime import deterministic

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
        """Return the document."""
        return self.ids


def data() -> Mixture:
    """Return the samples of the run."""
    return Mixture(
        {"text": Text(1 << 20)},
        None,
        sequence_length=CONFIG.sequence_length,
        samples=CONFIG.steps * CONFIG.batch_size,
        seed=0,
        document_mask=CONFIG.document_mask,
    )


def ours(dtype: torch.dtype, after_step: Callable[[float], None]) -> None:
    """Run our loop as the stage does."""
    model = Llama(SHAPE)
    model.init_weights(0)
    optimizer = MasterAdamW(
        model, dtype=dtype, betas=CONFIG.betas, eps=CONFIG.eps, weight_decay=CONFIG.weight_decay
    )
    state = TrainState(model, optimizer, data(), CONFIG)
    with deterministic(0, None), compiled_blocks(model):
        train(state, log=lambda step: after_step(step.seconds), checkpoint=lambda steps_done: None)


def plain(dtype: torch.dtype, after_step: Callable[[float], None], *, compile_blocks: bool) -> None:
    """Run the loop that one writes around transformers."""
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
    samples = data()
    for step in range(CONFIG.steps):
        started = time.perf_counter()
        first = step * CONFIG.batch_size
        ids = torch.from_numpy(np.stack([samples[first + k].ids_S for k in range(CONFIG.batch_size)]))
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, CONFIG.max_grad_norm)
        for master, weight in zip(masters, weights, strict=True):
            assert weight.grad is not None
            master.grad = weight.grad.float()
        optimizer.step()
        if dtype != torch.float32:  # in float32 the masters share the weights' memory
            with torch.no_grad():
                torch._foreach_copy_(weights, masters)
        model.zero_grad(set_to_none=True)
        after_step(time.perf_counter() - started)


CONTESTANTS: dict[str, Callable[[torch.dtype, Callable[[float], None]], None]] = {
    "ours": ours,
    "eager": partial(plain, compile_blocks=False),
    "compiled": partial(plain, compile_blocks=True),
}


class Contestant:
    """A process that takes a step per line that it receives, and answers with its wall and CPU seconds."""

    def __init__(self, name: str, dtype: DType) -> None:
        self.name = name
        command = [sys.executable, "-m", "benchmarks.train", "--contestant", name, "--dtype", dtype]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def step(self) -> tuple[float, float]:
        """Take a step; return its wall and CPU seconds."""
        assert self.process.stdin
        assert self.process.stdout
        with suppress(BrokenPipeError):
            print("step", file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline().split()
        if len(answer) != 2:
            raise SystemExit(
                f"{self.name} ended with code {self.process.wait()}: is there memory for three models?"
            )
        return float(answer[0]), float(answer[1])

    def end(self) -> None:
        """End the process."""
        self.process.communicate()


def take_part(name: str, dtype: torch.dtype) -> None:
    """Run as a contestant: a step per line on stdin, until stdin ends."""

    def await_turn() -> float:
        if not sys.stdin.readline():
            raise SystemExit
        return time.process_time()

    started = await_turn()

    def after_step(seconds: float) -> None:
        nonlocal started
        print(seconds, time.process_time() - started, flush=True)
        started = await_turn()

    CONTESTANTS[name](dtype, after_step)


def compete(dtype: DType) -> None:
    """Let the contestants take steps in turn, and record the results."""
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
    """Print the time of our steps by operation."""
    tokens = CONFIG.batch_size * CONFIG.sequence_length
    peak = matmul_peak(Llama(SHAPE).to(dtype), tokens)
    with inductor.patch({"cpp.enable_kernel_profile": True}):
        print("\n".join(table(partial(ours, dtype), WARM_UP, SHAPE, tokens, peak)))


def main() -> None:
    """Run the comparison, or the profile."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--contestant", choices=CONTESTANTS, help=argparse.SUPPRESS)
    parser.add_argument("--profile", action="store_true", help="print the time of our steps by operation")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default=resolve_matrix_dtype(), help="of all contestants"
    )
    arguments = parser.parse_args()
    dtype = getattr(torch, arguments.dtype)
    if arguments.contestant:
        take_part(arguments.contestant, dtype)
    elif arguments.profile:
        show_profile(dtype)
    else:
        compete(arguments.dtype)


if __name__ == "__main__":
    main()
