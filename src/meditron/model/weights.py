"""A model's weights, in and out, whatever holds them: an HF folder, a GGUF file, a seeded preset."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor

from meditron.model.config import LlamaConfig
from meditron.model.gguf_weights import GGUFWeights, gguf_config, save_gguf
from meditron.model.hf_weights import HFWeights, hf_config, save_hf
from meditron.model.llama import Llama
from meditron.model.presets import preset
from meditron.store.gguf import GGUF
from meditron.store.models import ModelFiles, resolve

__all__ = ["load_config", "load_model", "open_weights", "save_gguf", "save_hf"]


def load_model(model: ModelFiles | Path | str, *, dtype: torch.dtype = torch.float32, seed: int = 0) -> Llama:
    """Load a model in `dtype` from an HF folder, a GGUF file (dequantized) or a preset (`init:tiny`).

    Weights arrive tensor by tensor: memory holds the model and one tensor more. `seed` fills a preset
    that names none itself (`init:tiny:1`).
    Raises InputError for a damaged file, another architecture, missing, unexpected or misshapen
    tensors; SourceError for what names no model.
    """
    with open_weights(model, seed=seed) as (config, weights):
        # Made without storage: its parameters then are the tensors themselves.
        with torch.device("meta"):
            filled = Llama(config)
        # A copy: what is read may be a view of the file, which somebody may replace.
        state = {name: weight.to(dtype, copy=True).contiguous() for name, weight in weights.items()}
        filled.load_state_dict(state, assign=True)
        return filled


@contextmanager
def open_weights(
    model: ModelFiles | Path | str, *, seed: int = 0
) -> Iterator[tuple[LlamaConfig, Mapping[str, Tensor]]]:
    """The shape of a model and its parameters by HF's names, each read when it is asked for.

    They come as they are stored (an HF folder), dequantized to fp32 (a GGUF file) or drawn (a preset, the
    only form that is in memory as a whole). Errors as of `load_model`.
    """
    files = _files(model)
    if files.kind == "init":
        (config, _), own = preset(files.spec)
        fresh = Llama(config)
        fresh.init_weights(seed if own is None else own)
        yield config, fresh.state_dict()
    elif files.kind == "gguf":
        with GGUF(Path(files.path)) as gguf:
            config = gguf_config(gguf)
            yield config, GGUFWeights(gguf, config)
    else:
        folder = Path(files.path)
        config = hf_config(folder)
        yield config, HFWeights(folder, config)


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
