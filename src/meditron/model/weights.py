"""Loading a model from an HF folder, a GGUF file, a Megatron-LLM checkpoint or a preset; saving it."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from meditron.model.config import LlamaConfig
from meditron.model.gguf_layout import read_gguf_config
from meditron.model.gguf_weights import GGUFWeights, save_gguf
from meditron.model.hf_config import read_hf_config
from meditron.model.hf_weights import HFWeights, save_hf
from meditron.model.llama import Llama
from meditron.model.megatron_weights import MegatronCheckpoint, MegatronWeights
from meditron.model.new_tokens import ExtendedWeights, NewTokens, extended_config
from meditron.model.presets import find_preset
from meditron.store.gguf import GGUF
from meditron.store.models import ModelFiles, resolve_model

__all__ = ["load_model", "open_weights", "save_gguf", "save_hf"]


def load_model(
    model: ModelFiles | Path | str,
    *,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    device: torch.device | str = "cpu",
    new_tokens: NewTokens | None = None,
) -> Llama:
    """Load a model from an HF folder, a GGUF file (dequantized), a checkpoint or a preset (`init:tiny`).

    Weights are read one tensor at a time: memory holds the model and one more tensor. With `device` a GPU,
    host memory holds one tensor only (of a preset, the whole model).

    Args:
        model: The MODEL or its files.
        dtype: The dtype of all weights.
        seed: The seed of a preset whose name has no seed (`init:tiny`, unlike `init:tiny:1`).
        device: The device of all weights.
        new_tokens: Tokens that are added to the vocabulary.

    Raises:
        InputError: a file is damaged, its architecture is not supported, or its tensors do not match its
            config.
        SourceError: there is no such model.
    """
    with open_weights(model, seed=seed, new_tokens=new_tokens) as (config, weights):
        # The meta device allocates no memory for default weights; `assign` makes the loaded tensors the
        # parameters.
        with torch.device("meta"):
            filled = Llama(config)
        # Each tensor is copied, because it may be a view of a memory-mapped file that is replaced later.
        state = {name: weight.to(device, dtype, copy=True).contiguous() for name, weight in weights.items()}
        filled.load_state_dict(state, assign=True)  # a tied head is one tensor and stays one
        return filled


@contextmanager
def open_weights(
    model: ModelFiles | Path | str, *, seed: int = 0, new_tokens: NewTokens | None = None
) -> Iterator[tuple[LlamaConfig, Mapping[str, Tensor]]]:
    """Open a model's config and its weights by HF's names; each weight is read when it is accessed.

    Weights are as stored (an HF folder, a Megatron-LLM checkpoint), dequantized to fp32 (a GGUF file) or
    random (a preset, the only form that is in memory as a whole). With `new_tokens`, embedding and head have
    rows for them. Errors are those of `load_model`.
    """
    with _open_stored_weights(_resolve_files(model), seed) as (config, weights):
        if new_tokens is None:
            yield config, weights
        else:
            yield extended_config(config, new_tokens), ExtendedWeights(weights, new_tokens)


@contextmanager
def _open_stored_weights(files: ModelFiles, seed: int) -> Iterator[tuple[LlamaConfig, Mapping[str, Tensor]]]:
    if files.kind == "init":
        (config, _), preset_seed = find_preset(files.spec)
        initialized = Llama(config)
        initialized.init_weights(seed if preset_seed is None else preset_seed)
        yield config, initialized.state_dict()
    elif files.kind == "gguf":
        with GGUF(Path(files.path)) as gguf:
            config = read_gguf_config(gguf)
            yield config, GGUFWeights(gguf, config)
    elif files.kind == "megatron":
        checkpoint = MegatronCheckpoint(Path(files.path))
        config = checkpoint.config()
        yield config, MegatronWeights(checkpoint, config)
    else:
        folder = Path(files.path)
        config = read_hf_config(folder)
        yield config, HFWeights(folder, config)


def _resolve_files(model: ModelFiles | Path | str) -> ModelFiles:
    return model if isinstance(model, ModelFiles) else resolve_model(str(model))
