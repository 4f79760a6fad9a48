"""A model's weights, in and out, whatever holds them: an HF folder, a GGUF file, a seeded preset."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from meditron.model.config import LlamaConfig, preset
from meditron.model.gguf_weights import gguf_config, gguf_tensors, save_gguf
from meditron.model.hf_weights import hf_config, hf_tensors, save_hf
from meditron.model.llama import Llama
from meditron.store.gguf import GGUF
from meditron.store.models import ModelFiles, resolve

__all__ = ["load_config", "load_model", "save_gguf", "save_hf"]


def load_model(model: ModelFiles | Path | str, *, dtype: torch.dtype = torch.float32, seed: int = 0) -> Llama:
    """Load a model in `dtype` from an HF folder, a GGUF file (dequantized) or a preset (`init:tiny`).

    Weights arrive tensor by tensor: memory holds the model and one tensor more. `seed` fills a preset
    that names none itself (`init:tiny:1`).
    Raises InputError for a damaged file, another architecture, missing, unexpected or misshapen
    tensors; SourceError for what names no model.
    """
    files = _files(model)
    if files.kind == "init":
        (config, _), own = preset(files.spec)
        fresh = Llama(config)
        fresh.init_weights(seed if own is None else own)
        return fresh.to(dtype)
    path = Path(files.path)
    if files.kind == "gguf":
        with GGUF(path) as gguf:
            config = gguf_config(gguf)
            return _filled(config, gguf_tensors(gguf, config), dtype)
    config = hf_config(path)
    return _filled(config, hf_tensors(path, config), dtype)


def load_config(model: ModelFiles | Path | str) -> LlamaConfig:
    """The shape of a model, without its weights; errors as of `load_model`."""
    files = _files(model)
    if files.kind == "init":
        return preset(files.spec)[0].config
    path = Path(files.path)
    if files.kind == "gguf":
        with GGUF(path) as gguf:
            return gguf_config(gguf)
    return hf_config(path)


def _files(model: ModelFiles | Path | str) -> ModelFiles:
    return model if isinstance(model, ModelFiles) else resolve(str(model))


def _filled(config: LlamaConfig, tensors: Iterator[tuple[str, Tensor]], dtype: torch.dtype) -> Llama:
    """A model made without storage, whose parameters then are the tensors themselves."""
    with torch.device("meta"):
        model = Llama(config)
    # A copy: what safetensors gives may be a view of the file, which somebody may replace.
    state = {name: tensor.to(dtype, copy=True).contiguous() for name, tensor in tensors}
    model.load_state_dict(state, assign=True)
    return model
