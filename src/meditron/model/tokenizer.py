"""The tokenizer that belongs to a model. No torch here."""

from meditron.model.config import preset
from meditron.store.fetch import fetch
from meditron.store.models import ModelFiles
from meditron.text.tokenizer import Tokenizer, load_tokenizer

__all__ = ["model_tokenizer"]


def model_tokenizer(files: ModelFiles) -> Tokenizer:
    """Open a model's tokenizer: from its HF folder, its GGUF file, or where a preset takes one from.

    Raises:
        SourceError: no such preset, or no tokenizer beside the weights.
        InputError: the tokenizer's files are damaged.
    """
    if files.kind != "init":
        return load_tokenizer(files.path)
    return load_tokenizer(fetch(preset(files.spec)[0].tokenizer))
