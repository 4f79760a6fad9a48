"""Training of a 7B shape on one GPU: model FLOP utilization, and speed against a loop around transformers.

    python -m benchmarks.gpu_train          # one H100, H200 or other NVIDIA GPU; at most ten minutes
    python -m benchmarks.gpu_train --tiny   # the same program with a small model, also on a CPU

Random weights and tokens, no downloads; the comparison needs transformers. Rows:

gpu-train-mfu           our loop with the whole shape, or the blocks that fit the GPU's memory: the model's
                        operations per second, against a product of two 8192 × 8192 matrices in the same run
gpu-train-vs-eager      our loop against the plain one, in tokens per second, with as many blocks as fit both
gpu-train-vs-compiled   the same, with transformers' blocks compiled

Both train in bfloat16 with float32 master weights, fused AdamW, gradient clipping, and one sequence of 4,096
tokens per forward pass. Each contestant is a process of its own, one after the other: together they would not
fit. Ours uses deterministic algorithms, as every training here does; the plain loop does not.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from benchmarks._training import Setup, train_ours, train_plain
from benchmarks.common import record
from meditron.model.config import LlamaConfig
from meditron.parallel.world import World, pick_device
from meditron.plan.cluster import load_cluster
from meditron.train.config import PretrainConfig
from meditron.train.peak import best_seconds
from meditron.train.runtime import peak_memory_bytes, training_dtype

CONVENTION = (
    "PaLM's: 6 operations per parameter and token, 12 · layers · width · sequence for attention, "
    "not halved for causal masks, none for recomputation"
)
LLAMA_7B = LlamaConfig(
    vocab_size=32_000,
    hidden_size=4096,
    intermediate_size=11_008,
    num_hidden_layers=32,
    num_attention_heads=32,
    num_key_value_heads=32,
    head_dim=128,
    max_position_embeddings=4096,
    rms_norm_eps=1e-5,
    tie_word_embeddings=False,
)
TINY = LLAMA_7B.model_copy(
    update={
        "vocab_size": 512,
        "hidden_size": 64,
        "intermediate_size": 192,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "head_dim": 16,
    }
)
ROOT = Path(__file__).parent.parent
CLUSTERS = ROOT / "recipes" / "clusters"
WARM_UP, STEPS = 2, 5
LIMIT_SECONDS = 570.0
"""Of the whole benchmark; contestants for which less than `CONTESTANT_SECONDS` are left are skipped."""
CONTESTANT_SECONDS = 60.0


class Memory(NamedTuple):
    """Estimated memory of a contestant, in bytes; rounded up, so that a first attempt fits."""

    per_parameter: int
    per_layer: float
    """Activations of a layer, for 4,096 tokens."""


# bfloat16 weights 2, float32 masters 4, gradients 4, moments 8 or 4.
OURS: dict[Literal["float32", "bfloat16"], Memory] = {
    "float32": Memory(18, 0.8e9),
    "bfloat16": Memory(14, 0.8e9),
}
# The same, and all bfloat16 gradients at once, 2; activations that are not fused away.
PLAIN = Memory(20, 1.4e9)
RESERVED = 8e9
"""Logits, the context, fragmentation."""


class Case(NamedTuple):
    """One contestant's training, passed to its process as JSON."""

    contestant: str
    layers: int
    moments: Literal["float32", "bfloat16"]
    tiny: bool

    def setup(self, device: torch.device) -> Setup:
        """Return the training."""
        shape = (TINY if self.tiny else LLAMA_7B).model_copy(update={"num_hidden_layers": self.layers})
        length, batch = (64, 2) if self.tiny else (4096, 8)
        config = PretrainConfig(
            tokens=(WARM_UP + STEPS + 1) * batch * length,
            sequence_length=length,
            batch_size=batch,
            micro_batch_size=1,
            learning_rate=1e-4,
            document_mask=False,
            optimizer_state_dtype=self.moments,
            # On a CPU compilation takes longer than the rest of the small model's benchmark.
            compile=not self.tiny,
        )
        return Setup(shape, config, getattr(torch, training_dtype("auto", device)), device)


CONTESTANTS: dict[str, Callable[[Setup, Callable[[float], None]], None]] = {
    "ours": train_ours,
    "eager": partial(train_plain, compile_blocks=False),
    "compiled": partial(train_plain, compile_blocks=True),
}


class _Finished(Exception):
    """The end of the timed steps."""


def run_case(case: Case) -> dict[str, Any]:
    """Train the steps of a case in this process; return its figures."""
    device = pick_device(World())
    setup = case.setup(device)
    gemm = gemm_speed(256 if case.tiny else 8192, setup.dtype, device)
    times: list[float] = []

    def after_step(seconds: float) -> None:
        times.append(seconds)
        if len(times) == WARM_UP + STEPS:
            raise _Finished

    with suppress(_Finished):
        CONTESTANTS[case.contestant](setup, after_step)
    speed = setup.tokens_per_step() / statistics.median(times[WARM_UP:])
    operations = setup.shape.flops_per_token(setup.config.sequence_length)
    return {
        "tokens_per_second": speed,
        "model_flops": speed * operations,
        "gemm_flops": gemm,
        "memory_bytes": peak_memory_bytes(device),
        "dtype": str(setup.dtype).removeprefix("torch."),
        "step_seconds": [round(seconds, 4) for seconds in times],
    }


def gemm_speed(side: int, dtype: torch.dtype, device: torch.device) -> float:
    """Return the operations per second of a product of two side × side matrices."""
    a, b = (torch.ones(side, side, dtype=dtype, device=device) for _ in range(2))
    out = torch.empty_like(a)
    return 2.0 * side**3 / best_seconds(lambda: torch.mm(a, b, out=out), rounds=5, repeats=10, device=device)


def start_case(case: Case, seconds: float) -> dict[str, Any] | None:
    """Run a case in a process of its own; None if it fails, with its last lines on stderr."""
    command = [sys.executable, "-m", "benchmarks.gpu_train", "--case", json.dumps(case)]
    try:
        process = subprocess.run(
            command, capture_output=True, text=True, timeout=seconds, check=False, cwd=ROOT
        )
    except subprocess.TimeoutExpired:
        print(f"{case}: not finished after {seconds:.0f} s", file=sys.stderr)
        return None
    if process.returncode:
        print(f"{case} failed:", *process.stderr.splitlines()[-5:], sep="\n", file=sys.stderr)
        return None
    figures: dict[str, Any] = json.loads(process.stdout.splitlines()[-1])
    return figures


def fitting_layers(shape: LlamaConfig, memory: Memory, available: float) -> int:
    """Return the number of blocks, at most the shape's, whose training fits the memory."""
    one, two = (shape.model_copy(update={"num_hidden_layers": n}).parameter_count for n in (1, 2))
    per_layer = (two - one) * memory.per_parameter + memory.per_layer
    rest = available - RESERVED - (2 * one - two) * memory.per_parameter
    return max(1, min(shape.num_hidden_layers, int(rest / per_layer)))


def peak_flops(name: str) -> float | None:
    """Return the dense bfloat16 peak of a GPU from the clusters' files, None if it is in none."""
    for file in sorted(CLUSTERS.glob("*.toml")):
        cluster = load_cluster(file)
        # PCIe and NVL boards of the same name are slower.
        if cluster.gpu.upper() in name and not any(board in name for board in ("PCIe", "NVL")):
            return cluster.peak_flops
    return None


def our_cases(shape: LlamaConfig, available: float, *, tiny: bool) -> list[Case]:
    """Return our cases, the first one wanted most: all blocks, else smaller moments, else fewer blocks."""
    cases = []
    for moments, memory in OURS.items():
        layers = fitting_layers(shape, memory, available)
        cases.append(Case("ours", layers, moments, tiny))
        if layers == shape.num_hidden_layers:
            break
    # More blocks are preferred. If the estimate was too low, half of them fit for certain.
    cases.sort(key=lambda case: -case.layers)
    return [*cases[:1], cases[0]._replace(layers=max(1, cases[0].layers // 2))]


def compare(*, tiny: bool) -> None:
    """Run all cases and record the rows."""
    ends = time.monotonic() + LIMIT_SECONDS
    device = pick_device(World())
    gpu = torch.cuda.get_device_name(device) if device.type == "cuda" else None
    available = float(torch.cuda.get_device_properties(device).total_memory) if gpu else 1e15
    shape = TINY if tiny else LLAMA_7B

    def run(case: Case) -> dict[str, Any] | None:
        left = ends - time.monotonic()
        if left < CONTESTANT_SECONDS:
            print(f"skipped, no time is left: {case}", file=sys.stderr)
            return None
        return start_case(case, left)

    for case in our_cases(shape, available, tiny=tiny):
        figures = run(case)
        if figures is not None:
            record_mfu(case, figures, gpu)
            break
    else:
        raise SystemExit("our loop did not finish; its error is above")
    if find_spec("transformers") is None:
        print("transformers is not installed: no comparison", file=sys.stderr)
        return
    layers = fitting_layers(shape, PLAIN, available)
    mine = run(Case("ours", layers, "float32", tiny))
    for peer in ("eager", "compiled"):
        # Without compilation of ours, theirs is not compared.
        theirs = run(Case(peer, layers, "float32", tiny)) if mine and (peer == "eager" or not tiny) else None
        if mine and theirs:
            record_comparison(peer, layers, mine, theirs, gpu)


def record_mfu(case: Case, figures: dict[str, Any], gpu: str | None) -> None:
    """Record the share of the matrix product's speed, with the utilization of the vendor's peak."""
    peak = peak_flops(gpu) if gpu else None
    record(
        "gpu_train",
        "gpu-train-mfu",
        ours=figures["model_flops"] / 1e12,
        peer=figures["gemm_flops"] / 1e12,
        unit="TFLOP/s",
        bar=0.6,
        peer_name="torch.mm of two square matrices in the same process",
        gpu=gpu,
        mfu=figures["model_flops"] / peak if peak else None,
        mfu_bar=0.45,
        mfu_convention=CONVENTION,
        layers=case.layers,
        optimizer_state_dtype=case.moments,
        **{key: figures[key] for key in ("tokens_per_second", "memory_bytes", "dtype", "step_seconds")},
    )


def record_comparison(
    peer: str, layers: int, mine: dict[str, Any], theirs: dict[str, Any], gpu: str | None
) -> None:
    """Record our speed against a peer's."""
    record(
        "gpu_train",
        f"gpu-train-vs-{peer}",
        ours=mine["tokens_per_second"],
        peer=theirs["tokens_per_second"],
        unit="tokens/s",
        bar=None,
        peer_name=f"transformers LlamaForCausalLM, sdpa, {peer}",
        gpu=gpu,
        layers=layers,
        dtype=mine["dtype"],
        memory_bytes=[mine["memory_bytes"], theirs["memory_bytes"]],
        step_seconds=[mine["step_seconds"], theirs["step_seconds"]],
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the comparison, or one case of it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tiny", action="store_true", help="a small model, also on a CPU")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.case:
        print(json.dumps(run_case(Case(*json.loads(options.case)))))
    elif not options.tiny and pick_device(World()).type == "cpu":
        # Not an error: `make bench` runs every benchmark.
        print("skipped: no GPU here; --tiny runs on a CPU", file=sys.stderr)
    else:
        compare(tiny=options.tiny)


if __name__ == "__main__":
    main()
