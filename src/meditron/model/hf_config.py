"""The config of an HF folder. This module does not import torch."""

from functools import cache
from pathlib import Path

import numpy as np

from meditron.core.console import warn
from meditron.core.errors import InputError
from meditron.model.config import LlamaConfig
from meditron.model.shapes import EMBEDDING, HEAD
from meditron.store.files import read_json
from meditron.store.safetensors import SafetensorsFile, tensor_files

__all__ = ["has_untied_head", "read_hf_config"]


def read_hf_config(folder: Path) -> LlamaConfig:
    """Read the config from `config.json`.

    A stored head that differs from the embedding is used even if `tie_word_embeddings` is true, as in
    transformers 5.

    Raises:
        InputError: an unsupported architecture, or impossible values.
    """
    path = folder / "config.json"
    content = read_json(path)
    if not isinstance(content, dict):
        raise InputError(path, f"expected an object, got a {type(content).__name__}")
    config = LlamaConfig.from_hf(content, path)
    if config.tie_word_embeddings and has_untied_head(folder):
        _warn_of_untied_head(path)
        return config.model_copy(update={"tie_word_embeddings": False})
    return config


@cache
def _warn_of_untied_head(path: Path) -> None:
    """Warn once for each config: a model is opened several times in a run."""
    warn(f"{path}: tie_word_embeddings is true, but {HEAD} differs from {EMBEDDING}; {HEAD} is used")


def has_untied_head(folder: Path) -> bool:
    """Return True if the folder stores a head that differs from the embedding."""
    if not any(folder.glob("*.safetensors")):
        return False  # a config.json alone, of a model without weights
    stored = tensor_files(folder)
    if HEAD not in stored or EMBEDDING not in stored:
        return False
    files = SafetensorsFile(stored[HEAD]), SafetensorsFile(stored[EMBEDDING])
    if files[0].tensors[HEAD].type != files[1].tensors[EMBEDDING].type:
        return True
    return not np.array_equal(files[0].array(HEAD), files[1].array(EMBEDDING))
