"""A LoRA training step at the 135M shape against a plain loop around transformers and peft.

    python -m benchmarks.lora                   # row lora-vs-peft
    python -m benchmarks.lora --dtype float32   # as on a CPU without instructions for bfloat16

As `benchmarks.train`: SmolLM2-135M's shape with seeded weights, the same samples, batch, threads and gradient
clipping, each contestant in a process of its own, steps in turn. Adapters of rank 16 on all seven matrices of
every block; every token is a target. peft keeps its adapters in float32, its default.
"""

import argparse
import os
import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec

os.environ.update(OMP_WAIT_POLICY="active", GOMP_SPINCOUNT="1000000")

import torch

from benchmarks._contestants import take_part, take_turns
from benchmarks._training import Setup, train_ours
from benchmarks.common import record
from benchmarks.train import CONFIG, SHAPE, WARM_UP
from meditron.core.errors import MissingExtra
from meditron.core.machine import DType, resolve_matrix_dtype
from meditron.model.lora_config import LoraConfig
from meditron.train.batches import StepBatches

LORA = LoraConfig(rank=16, alpha=32.0)
BAR = 1.25


def train_peft(setup: Setup, after_step: Callable[[float], None]) -> None:
    """Run the loop that one writes around transformers and peft."""
    import peft
    import transformers

    torch.manual_seed(0)
    shape = transformers.LlamaConfig(**setup.shape.to_hf())
    base = transformers.LlamaForCausalLM._from_config(shape, attn_implementation="sdpa").to(setup.dtype)
    model = peft.get_peft_model(
        base,
        peft.LoraConfig(
            r=LORA.rank,
            lora_alpha=int(LORA.alpha),
            target_modules=list(LORA.modules),
            task_type="CAUSAL_LM",
        ),
    )
    model.train()
    config = setup.config
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(
        trained,
        lr=config.learning_rate,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=True,
    )
    for step in StepBatches(setup.samples(), config, start_step=0, rank=0, size=1, device=setup.device):
        started = time.perf_counter() - step.wait_seconds
        for batch in step.batches:
            loss = model(input_ids=batch.ids_BS, labels=batch.ids_BS, use_cache=False).loss
            (loss / len(step.batches)).backward()
        torch.nn.utils.clip_grad_norm_(trained, config.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        after_step(time.perf_counter() - started)


CONTESTANTS: dict[str, Callable[[Setup, Callable[[float], None]], None]] = {
    "ours": partial(train_ours, lora=LORA),
    "peft": train_peft,
}


def compete(dtype: DType) -> None:
    """Let the contestants take steps in turn, and record the result."""
    if find_spec("peft") is None:
        raise SystemExit(str(MissingExtra("peft", "dev")))
    rounds = take_turns("benchmarks.lora", CONTESTANTS, dtype, warm_up=WARM_UP)
    tokens = CONFIG.batch_size * CONFIG.sequence_length
    record(
        "lora",
        "lora-vs-peft",
        ours=tokens / rounds.wall("ours"),
        peer=tokens / rounds.wall("peft"),
        unit="tokens/s",
        bar=BAR,
        peer_name="transformers LlamaForCausalLM, sdpa, with peft's LoRA",
        dtype=dtype,
        rank=LORA.rank,
        threads=torch.get_num_threads(),
        **rounds.details("ours", "peft"),
    )


def main() -> None:
    """Run the comparison."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--contestant", choices=CONTESTANTS, help=argparse.SUPPRESS)
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default=resolve_matrix_dtype(), help="of the base"
    )
    arguments = parser.parse_args()
    if arguments.contestant:
        setup = Setup(SHAPE, CONFIG, getattr(torch, arguments.dtype))
        take_part(partial(CONTESTANTS[arguments.contestant], setup))
    else:
        compete(arguments.dtype)


if __name__ == "__main__":
    main()
