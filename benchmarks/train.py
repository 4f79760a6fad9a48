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
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec

os.environ.update(OMP_WAIT_POLICY="active", GOMP_SPINCOUNT="1000000")

import torch
import torch._inductor.config as inductor

from benchmarks._contestants import take_part, take_turns
from benchmarks._profile import table
from benchmarks._training import Setup, train_ours, train_plain
from benchmarks.common import record
from meditron.core.errors import MissingExtra
from meditron.core.machine import DType, describe, resolve_matrix_dtype
from meditron.model.config import LlamaConfig
from meditron.train.config import PretrainConfig
from meditron.train.peak import matmul_peak

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
WARM_UP = 3


CONTESTANTS: dict[str, Callable[[Setup, Callable[[float], None]], None]] = {
    "ours": train_ours,
    "eager": partial(train_plain, compile_blocks=False),
    "compiled": partial(train_plain, compile_blocks=True),
}


def compete(dtype: DType) -> None:
    """Let the contestants take steps in turn, and record the results."""
    if find_spec("transformers") is None:
        raise SystemExit(str(MissingExtra("transformers", "dev")))
    rounds = take_turns("benchmarks.train", CONTESTANTS, dtype, warm_up=WARM_UP)
    tokens = CONFIG.batch_size * CONFIG.sequence_length
    amx = describe()["cpu_class"] == "amx-bf16" and dtype == "bfloat16"
    for peer, bar in (("eager", 1.15 if amx else 1.25), ("compiled", None)):
        record(
            "train",
            f"train-vs-{peer}",
            ours=tokens / rounds.wall("ours"),
            peer=tokens / rounds.wall(peer),
            unit="tokens/s",
            bar=bar,
            peer_name=f"transformers LlamaForCausalLM, sdpa, {peer}",
            dtype=dtype,
            threads=torch.get_num_threads(),
            **rounds.details("ours", peer),
        )


def show_profile(dtype: torch.dtype) -> None:
    """Print the time of our steps by operation."""
    tokens = CONFIG.batch_size * CONFIG.sequence_length
    peak = matmul_peak(SHAPE, tokens, dtype=dtype, device=torch.device("cpu"))
    with inductor.patch({"cpp.enable_kernel_profile": True}):
        print(
            "\n".join(table(partial(train_ours, Setup(SHAPE, CONFIG, dtype)), WARM_UP, SHAPE, tokens, peak))
        )


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
        take_part(partial(CONTESTANTS[arguments.contestant], Setup(SHAPE, CONFIG, dtype)))
    elif arguments.profile:
        show_profile(dtype)
    else:
        compete(arguments.dtype)


if __name__ == "__main__":
    main()
