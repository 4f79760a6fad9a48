"""The tokenizer that belongs to a model. No torch here."""

from meditron.ground.errors import SourceError
from meditron.model.config import PRESETS
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
    name = files.spec.removeprefix("init:")
    if name not in PRESETS:
        raise SourceError(f"init:{name}: no such preset", hint=f"there is {', '.join(PRESETS)}")
    return load_tokenizer(fetch(PRESETS[name].tokenizer))
