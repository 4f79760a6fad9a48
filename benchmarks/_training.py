"""Training loops that the benchmarks compare: ours, and the one that one writes around transformers."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from meditron.model.config import LlamaConfig
from meditron.model.llama import Llama
from meditron.model.lora import add_adapters, initialize_adapters
from meditron.model.lora_config import LoraConfig
from meditron.parallel.layout import build_layout
from meditron.parallel.model import ModelStage
from meditron.parallel.world import World
from meditron.train.batches import StepBatches
from meditron.train.compilation import compile_blocks, use_device_attention
from meditron.train.config import PretrainConfig
from meditron.train.loop import Callbacks, TrainState, train
from meditron.train.mixture import Mixture
from meditron.train.optimizer import MasterAdamW
from meditron.train.runtime import deterministic, synchronize

__all__ = ["Setup", "train_ours", "train_plain"]

AfterStep = Callable[[float], None]
"""Receives the seconds of each step; ends the training by an exception."""


@dataclass(frozen=True)
class Setup:
    """The model, settings, dtype and device of a training on random tokens."""

    shape: LlamaConfig
    config: PretrainConfig
    dtype: torch.dtype
    device: torch.device = torch.device("cpu")  # noqa: RUF009 (immutable)

    def samples(self) -> Mixture:
        """Return the samples of the run."""
        config = self.config
        return Mixture(
            {"text": _RandomText(1 << 20, self.shape.vocab_size)},
            None,
            sequence_length=config.sequence_length,
            samples=config.steps * config.batch_size,
            seed=0,
            document_mask=config.document_mask,
        )

    def tokens_per_step(self) -> int:
        """Return the tokens of an optimizer step."""
        return self.config.batch_size * self.config.sequence_length


class _RandomText:
    """One long document of random tokens."""

    def __init__(self, tokens: int, vocabulary: int) -> None:
        self.ids = np.random.default_rng(0).integers(0, vocabulary, tokens)
        self.sizes = np.array([tokens])

    def __getitem__(self, index: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Return the document."""
        return self.ids


def train_ours(setup: Setup, after_step: AfterStep, *, lora: LoraConfig | None = None) -> None:
    """Run our loop as the stage does, on all weights or on adapters."""
    config = setup.config
    with _on_device(setup.device):
        model = Llama(setup.shape)
    _draw_weights(model, setup.device)
    if lora is not None:
        add_adapters(model, lora, torch.float32)
        initialize_adapters(model, seed=0)
    optimizer = MasterAdamW(
        model,
        dtype=setup.dtype,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
        state_dtype=getattr(torch, config.optimizer_state_dtype),
    )
    if config.compile:
        compile_blocks(model, setup.device)
    else:
        use_device_attention(model, setup.device, compiled=False)
    layout = build_layout(config.parallel, World(), setup.device)
    state = TrainState(ModelStage(model), optimizer, setup.samples(), config, layout)
    with deterministic(0, None, setup.device):
        train(state, Callbacks(log=lambda step, heldout: after_step(step.seconds)))


def train_plain(setup: Setup, after_step: AfterStep, *, compile_blocks: bool) -> None:
    """Run the loop that one writes around transformers."""
    import transformers

    torch.manual_seed(0)
    shape = transformers.LlamaConfig(**setup.shape.to_hf())
    with _on_device(setup.device):
        model = transformers.LlamaForCausalLM._from_config(shape, attn_implementation="sdpa").to(setup.dtype)
    model.train()
    if compile_blocks:
        for block in model.model.layers:
            block.compile()
    config = setup.config
    weights = list(model.parameters())
    masters = [weight.detach().float() for weight in weights]
    optimizer = torch.optim.AdamW(
        masters,
        lr=config.learning_rate,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=True,
    )
    parts = config.batch_size // (config.micro_batch_size or config.batch_size)
    steps = StepBatches(setup.samples(), config, start_step=0, rank=0, size=1, device=setup.device)
    for step in steps:
        started = time.perf_counter() - step.wait_seconds
        for batch in step.batches:
            loss = model(input_ids=batch.ids_BS, labels=batch.ids_BS, use_cache=False).loss
            (loss / parts).backward()
        torch.nn.utils.clip_grad_norm_(weights, config.max_grad_norm)
        for master, weight in zip(masters, weights, strict=True):
            assert weight.grad is not None
            master.grad = weight.grad.float()
        optimizer.step()
        if setup.dtype != torch.float32:  # in float32 the masters share the weights' memory
            with torch.no_grad():
                torch._foreach_copy_(weights, masters)
        model.zero_grad(set_to_none=True)
        synchronize(setup.device)
        after_step(time.perf_counter() - started)


@contextmanager
def _on_device(device: torch.device) -> Iterator[None]:
    """Create weights on the device: 7 billion random numbers take minutes on a CPU."""
    if device.type == "cpu":
        yield
    else:
        with device:
            yield


def _draw_weights(model: Llama, device: torch.device) -> None:
    if device.type == "cpu":
        model.init_weights(0)
        return
    torch.manual_seed(0)
    for weight in model.parameters():
        if weight.dim() == 1:
            nn.init.ones_(weight)
        else:
            nn.init.normal_(weight, std=model.config.initializer_range)
