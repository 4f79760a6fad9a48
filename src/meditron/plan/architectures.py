"""Configs of known models, so that a plan needs no download."""

from collections.abc import Mapping
from typing import Any

from meditron.core.errors import SourceError
from meditron.model.config import LlamaConfig

__all__ = ["KNOWN", "known_config", "unknown_model"]


def _llama(
    width: int,
    blocks: int,
    heads: int,
    kv: int,
    mlp: int,
    vocabulary: int,
    **more: Any,  # noqa: ANN401
) -> LlamaConfig:
    """Return a config from the sizes in the order of a model card's table."""
    fields: dict[str, Any] = {
        "vocab_size": vocabulary,
        "hidden_size": width,
        "num_hidden_layers": blocks,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "head_dim": width // heads,
        "intermediate_size": mlp,
        "max_position_embeddings": 4096,
    }
    return LlamaConfig(**(fields | more))


def _mistral(vocabulary: int, context: int) -> LlamaConfig:
    """Return a config of Mistral 7B; `context` is at most its sliding window, which is not implemented."""
    more = {"model_type": "mistral", "max_position_embeddings": context}
    return _llama(4096, 32, 32, 8, 14336, vocabulary, **more)


def _qwen25(
    width: int, blocks: int, heads: int, kv: int, mlp: int, vocabulary: int, tied: bool
) -> LlamaConfig:
    more = {"model_type": "qwen2", "max_position_embeddings": 32768, "tie_word_embeddings": tied}
    return _llama(width, blocks, heads, kv, mlp, vocabulary, **more)


def _qwen3(width: int, blocks: int, heads: int, mlp: int, tied: bool) -> LlamaConfig:
    more = {
        "model_type": "qwen3",
        "head_dim": 128,
        "max_position_embeddings": 40960,
        "tie_word_embeddings": tied,
    }
    return _llama(width, blocks, heads, 8, mlp, 151936, **more)


_LLAMA3 = {"max_position_embeddings": 131072}
_LLAMA32 = _LLAMA3 | {"tie_word_embeddings": True}
_SMOL = {"max_position_embeddings": 8192, "tie_word_embeddings": True}

# Sources: each model's config.json on the Hugging Face Hub.
KNOWN: Mapping[str, LlamaConfig] = {
    "meta-llama/Llama-2-7b": _llama(4096, 32, 32, 32, 11008, 32000),
    "meta-llama/Llama-2-13b": _llama(5120, 40, 40, 40, 13824, 32000),
    "meta-llama/Llama-2-70b": _llama(8192, 80, 64, 8, 28672, 32000),
    "meta-llama/Llama-3-8B": _llama(4096, 32, 32, 8, 14336, 128256, max_position_embeddings=8192),
    "meta-llama/Llama-3-70B": _llama(8192, 80, 64, 8, 28672, 128256, max_position_embeddings=8192),
    "meta-llama/Llama-3.1-8B": _llama(4096, 32, 32, 8, 14336, 128256, **_LLAMA3),
    "meta-llama/Llama-3.1-70B": _llama(8192, 80, 64, 8, 28672, 128256, **_LLAMA3),
    "meta-llama/Llama-3.1-405B": _llama(16384, 126, 128, 8, 53248, 128256, **_LLAMA3),
    "meta-llama/Llama-3.2-1B": _llama(2048, 16, 32, 8, 8192, 128256, **_LLAMA32),
    "meta-llama/Llama-3.2-3B": _llama(3072, 28, 24, 8, 8192, 128256, **_LLAMA32),
    "meta-llama/Llama-3.3-70B": _llama(8192, 80, 64, 8, 28672, 128256, **_LLAMA3),
    "mistralai/Mistral-7B-v0.1": _mistral(32000, 4096),
    "mistralai/Mistral-7B-v0.2": _mistral(32000, 32768),
    "mistralai/Mistral-7B-v0.3": _mistral(32768, 32768),
    "Qwen/Qwen2.5-0.5B": _qwen25(896, 24, 14, 2, 4864, 151936, True),
    "Qwen/Qwen2.5-1.5B": _qwen25(1536, 28, 12, 2, 8960, 151936, True),
    "Qwen/Qwen2.5-3B": _qwen25(2048, 36, 16, 2, 11008, 151936, True),
    "Qwen/Qwen2.5-7B": _qwen25(3584, 28, 28, 4, 18944, 152064, False),
    "Qwen/Qwen2.5-14B": _qwen25(5120, 48, 40, 8, 13824, 152064, False),
    "Qwen/Qwen2.5-32B": _qwen25(5120, 64, 40, 8, 27648, 152064, False),
    "Qwen/Qwen2.5-72B": _qwen25(8192, 80, 64, 8, 29568, 152064, False),
    "Qwen/Qwen3-0.6B": _qwen3(1024, 28, 16, 3072, True),
    "Qwen/Qwen3-1.7B": _qwen3(2048, 28, 16, 6144, True),
    "Qwen/Qwen3-4B": _qwen3(2560, 36, 32, 9728, True),
    "Qwen/Qwen3-8B": _qwen3(4096, 36, 32, 12288, False),
    "Qwen/Qwen3-14B": _qwen3(5120, 40, 40, 17408, False),
    "Qwen/Qwen3-32B": _qwen3(5120, 64, 64, 25600, False),
    "HuggingFaceTB/SmolLM2-135M": _llama(576, 30, 9, 3, 1536, 49152, **_SMOL),
    "HuggingFaceTB/SmolLM2-360M": _llama(960, 32, 15, 5, 2560, 49152, **_SMOL),
    "HuggingFaceTB/SmolLM2-1.7B": _llama(2048, 24, 32, 32, 8192, 49152, **_SMOL),
    "epfl-llm/meditron-7b": _llama(4096, 32, 32, 32, 11008, 32000),
    "epfl-llm/meditron-70b": _llama(8192, 80, 64, 8, 28672, 32000),
}
"""Name on the Hub, without the ending of a variant (-hf, -Instruct, …) → config."""
_VARIANTS = ("-hf", "-chat", "-instruct", "-base")  # removed in this order


def known_config(base: str) -> LlamaConfig | None:
    """Return the config of a model known by its address on the Hub; None for any other.

    Args:
        base: `hf:ORG/NAME`: case, an ending such as -hf or -Instruct, and a file after a colon do not matter.
    """
    if not base.startswith("hf:"):
        return None
    name = base.removeprefix("hf:").partition("@")[0].partition(":")[0].lower()
    name = name.replace("meta-llama/meta-llama-3", "meta-llama/llama-3")
    for ending in _VARIANTS:
        name = name.removesuffix(ending)
    return next((config for known, config in KNOWN.items() if known.lower() == name), None)


def unknown_model(base: str) -> SourceError:
    """Return the error for a model that is neither known nor on this machine."""
    names = ", ".join(name.partition("/")[2] for name in KNOWN)
    return SourceError(
        f"the sizes of {base} are not known, and the model is not on this machine",
        hint=f"set base to a local folder, a .gguf file, or hf: and one of the known models: {names}",
    )
