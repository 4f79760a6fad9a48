"""The `llama.*` metadata of a GGUF file as the fields of a LlamaConfig, and back.

Each key under `llama.` is one of three kinds: it sets a field, it has no effect on the model at the value it
has, or it is refused by name. The meaning of the keys is llama.cpp's (`src/llama-model.cpp`,
`llama_model_base::load_hparams`, and `src/llama-context.cpp` for the attention factor).
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from meditron.core.errors import InputError, UsageError

__all__ = ["GGUF_KEYS", "NEUTRAL", "REQUIRED", "decimal", "gguf_fields", "rope_divisors", "scaling_metadata"]

GGUF_KEYS = {
    "vocab_size": "llama.vocab_size",
    "hidden_size": "llama.embedding_length",
    "intermediate_size": "llama.feed_forward_length",
    "num_hidden_layers": "llama.block_count",
    "num_attention_heads": "llama.attention.head_count",
    "num_key_value_heads": "llama.attention.head_count_kv",
    "head_dim": "llama.attention.key_length",
    "max_position_embeddings": "llama.context_length",
    "rms_norm_eps": "llama.attention.layer_norm_rms_epsilon",
    "rope_theta": "llama.rope.freq_base",
    "bos_token_id": "tokenizer.ggml.bos_token_id",
    "eos_token_id": "tokenizer.ggml.eos_token_id",
    "pad_token_id": "tokenizer.ggml.padding_token_id",
}

REQUIRED = (
    "llama.embedding_length",
    "llama.feed_forward_length",
    "llama.block_count",
    "llama.attention.head_count",
    "llama.context_length",
    "llama.attention.layer_norm_rms_epsilon",
)
"""Keys without which llama.cpp does not open a file."""

_HEAD_WIDTHS = ("llama.attention.value_length", "llama.rope.dimension_count")
"""Widths that have to equal the head's."""

_SCALING = "llama.rope.scaling."
_READ = {
    *GGUF_KEYS.values(),
    *_HEAD_WIDTHS,
    "llama.rope.scale_linear",
    *(_SCALING + key for key in ("type", "factor", "original_context_length", "attn_factor")),
}

NEUTRAL: dict[str, tuple[Any, ...] | None] = {
    "llama.tensor_data_layout": None,
    "llama.rope.scaling.finetuned": None,
    "llama.attention.causal": (True,),
    "llama.attention.clamp_kqv": (0,),
    "llama.attention.max_alibi_bias": (0,),
    "llama.attention.scale": (0,),
    "llama.attention.sliding_window": (0,),
    "llama.attn_logit_softcapping": (0,),
    "llama.embedding_scale": (0, 1),
    "llama.expert_count": (0,),
    "llama.expert_used_count": (0,),
    "llama.final_logit_softcapping": (0,),
    "llama.logit_scale": (0, 1),
    "llama.pooling_type": (0,),
    "llama.residual_scale": (0, 1),
    "llama.rope.scaling.alpha": (0,),
    "llama.rope.scaling.yarn_attn_factor": (1,),
    "llama.rope.scaling.yarn_beta_fast": (32,),
    "llama.rope.scaling.yarn_beta_slow": (1,),
    "llama.rope.scaling.yarn_ext_factor": (-1, 1),
    "llama.rope.scaling.yarn_log_multiplier": (0,),
    "llama.use_parallel_residual": (False,),
}
"""Keys without an effect at these values; None: at any value."""


def decimal(value: Any) -> Any:  # noqa: ANN401
    """GGUF's numbers are fp32: 1e-5 comes as 9.999999747e-06. The shortest decimal is the one meant."""
    if not isinstance(value, float):
        return value
    with np.errstate(over="ignore"):  # a file may hold doubles too; infinity is refused with the other fields
        return float(str(np.float32(value)))


def gguf_fields(
    metadata: Mapping[str, Any], path: Path | str, rope_factors: Sequence[float] | None
) -> dict[str, Any]:
    """Return the fields that a file's metadata sets.

    Args:
        metadata: The file's key-value pairs.
        path: The file, for errors.
        rope_factors: Its `rope_freqs.weight`: the divisors of the rotary frequencies.

    Raises:
        InputError: another architecture, a missing key, or a key that would change the model and is not
            supported.
    """
    _require_llama(metadata, path)
    metadata = {
        key: _one_value(value) if key.startswith("llama.") else value
        for key, value in ((key, decimal(value)) for key, value in metadata.items())
    }
    _refuse_unknown(metadata, path)
    fields = {name: metadata[key] for name, key in GGUF_KEYS.items() if metadata.get(key) is not None}
    if isinstance(tokens := metadata.get("tokenizer.ggml.tokens"), list):
        fields["vocab_size"] = len(tokens)
    heads, width = fields.get("num_attention_heads"), fields.get("hidden_size")
    derived = width // heads if isinstance(heads, int) and isinstance(width, int) and heads > 0 else None
    fields.setdefault("head_dim", derived)
    # llama.cpp derives an absent value_length, but takes an absent dimension_count from key_length.
    for key, default in zip(_HEAD_WIDTHS, (derived, fields["head_dim"]), strict=True):
        if (found := metadata.get(key, default)) != fields["head_dim"]:
            problem = (
                f"{found!r:.60} is not supported; only the width of a head, {fields['head_dim']!r:.60}, is"
            )
            raise InputError(path, problem, place=key)
    fields["rope_scaling"] = _scaling(metadata, fields, path, rope_factors)
    return fields


def _require_llama(metadata: Mapping[str, Any], path: Path | str) -> None:
    if metadata.get("general.type", "model") != "model":
        raise InputError(path, f"is a file of type {metadata['general.type']!r}", place="general.type")
    architecture = metadata.get("general.architecture")
    if architecture != "llama":
        raise InputError(path, f"architecture {architecture!r} is not llama", place="general.architecture")
    for key in REQUIRED:
        if metadata.get(key) is None:
            raise InputError(path, "is missing; llama.cpp requires it too", place=key)


def _one_value(value: Any) -> Any:  # noqa: ANN401
    """A number per block is one number if all are equal."""
    numbers = isinstance(value, list) and value and all(type(item) is int for item in value)
    return value[0] if numbers and len(set(value)) == 1 and len(value) <= 1 << 12 else value


def _refuse_unknown(metadata: Mapping[str, Any], path: Path | str) -> None:
    for key, value in metadata.items():
        if not key.startswith("llama.") or key in _READ:
            continue
        if key not in NEUTRAL:
            raise InputError(path, "is not supported: the key may change the model", place=key)
        allowed = NEUTRAL[key]
        if allowed is not None and not any(value == item for item in allowed):
            problem = f"{value!r:.60} is not supported; only {' or '.join(map(str, allowed))} is"
            raise InputError(path, problem, place=key)


def _scaling(
    metadata: Mapping[str, Any],
    fields: Mapping[str, Any],
    path: Path | str,
    rope_factors: Sequence[float] | None,
) -> dict[str, Any] | None:
    kind = metadata.get(_SCALING + "type", "linear")  # llama.cpp's default
    if kind not in ("none", "linear", "yarn"):
        raise InputError(
            path, f"{kind!r} is not supported; none, linear and yarn are", place=_SCALING + "type"
        )
    factor = metadata.get(_SCALING + "factor", metadata.get("llama.rope.scale_linear", 1.0))
    factor = 1.0 if kind == "none" or factor == 0 else factor
    attention = metadata.get(_SCALING + "attn_factor", 1.0)
    scaled = kind == "yarn" or factor != 1
    if attention != 1 and kind != "yarn":
        problem = f"{attention!r:.60} is supported with yarn scaling only"
        raise InputError(path, problem, place=_SCALING + "attn_factor")
    context = metadata.get(_SCALING + "original_context_length")
    if rope_factors is not None:
        if scaled:
            problem = "a rotary scaling beside the factors of rope_freqs.weight is not supported"
            raise InputError(path, problem, place=_SCALING + "type")
        return _llama3(fields, path, rope_factors, context)
    if not scaled:
        return None
    scaling = {"rope_type": kind, "factor": factor}
    if kind == "yarn":
        scaling["original_max_position_embeddings"] = context or metadata.get("llama.context_length")
        if attention != 1:
            if not all(isinstance(number, int | float) and number > 0 for number in (factor, attention)):
                raise InputError(
                    path, f"{attention!r:.60} is not a positive number", place=_SCALING + "attn_factor"
                )
            scaling["attention_factor"] = decimal(attention * _yarn_magnitude(factor))
    return scaling


def _yarn_magnitude(factor: float) -> float:
    """YaRN's own scale of cosine and sine, which `attn_factor` multiplies."""
    return 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0


def scaling_metadata(scaling: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the metadata of a rotary scaling, given as its fields that are no defaults.

    Llama 3's factors are a tensor; its original context is kept beside them, because the factors alone do not
    determine it. UsageError for a scaling that GGUF has no keys for.
    """
    if scaling is None:
        return {}
    kind, factor = scaling["rope_type"], scaling["factor"]
    metadata: dict[str, Any] = {}
    if context := scaling.get("original_max_position_embeddings"):
        metadata[_SCALING + "original_context_length"] = context
    if kind == "llama3":
        return metadata
    metadata |= {_SCALING + "type": kind, _SCALING + "factor": float(factor)}
    rest = scaling.keys() - {"rope_type", "factor", "original_max_position_embeddings"}
    rest -= {key for key, default in (("beta_fast", 32), ("beta_slow", 1)) if scaling.get(key) == default}
    if kind == "yarn" and (attention := scaling.get("attention_factor")) is not None:
        metadata[_SCALING + "attn_factor"] = attention / _yarn_magnitude(factor)
        rest -= {"attention_factor", "mscale", "mscale_all_dim"}  # the factor replaces the other two
    if kind == "dynamic" or rest:
        raise UsageError(f"GGUF has no keys for the rotary scaling {dict(scaling)}")
    return metadata


def rope_divisors(
    theta: float, head_dim: int, *, factor: float, low: float, high: float, context: float
) -> list[float]:
    """Divisors of the head_dim / 2 rotary frequencies under Llama 3's scaling (its reference code).

    Long wavelengths are divided by `factor`, short ones stay, and between the two bounds the
    frequency moves linearly with the number of turns in the original context.
    """
    factors = []
    for turns in _turns(theta, head_dim):
        smooth = min(max((turns * context - low) / (high - low), 0.0), 1.0)
        factors.append(1 / ((1 - smooth) / factor + smooth))
    return factors


def _turns(theta: float, head_dim: int) -> list[float]:
    """Turns of each frequency within one token."""
    return [1 / (2 * math.pi * theta ** (dimension / head_dim)) for dimension in range(0, head_dim, 2)]


def _llama3(
    fields: Mapping[str, Any],
    path: Path | str,
    factors: Sequence[float],
    context: Any,  # noqa: ANN401
) -> dict[str, Any]:
    """Llama 3's scaling from the divisors it gives.

    Between the bounds a divisor determines (turns · context − low) / (high − low), so that two of them give
    low / context and high / context. Files that do not name the original context have that of Llama 3.
    """
    theta, width = fields.get("rope_theta", 10_000.0), fields.get("head_dim")
    refused = InputError(path, "is not Llama 3's rotary scaling", place="rope_freqs.weight")
    if not (
        isinstance(width, int) and 0 < width <= 1 << 20 and isinstance(theta, int | float) and theta >= 1
    ):
        raise refused
    if len(factors) != width // 2 or not all(math.isfinite(f) and f >= 1 for f in factors):
        raise refused
    named = isinstance(context, int) and context > 0
    length = float(context) if named else 8192.0
    factor, low, high = max(factors), 1.0, 4.0
    between = [
        ((1 / f - 1 / factor) / (1 - 1 / factor), turns)
        for f, turns in zip(factors, _turns(theta, width), strict=True)
        if 1 + 1e-4 < f < factor * (1 - 1e-4)
    ]
    if len(between) == 1 and not named:
        share, turns = between[0]
        length = float(round((low + share * (high - low)) / turns))
    elif len(between) > 1:
        (first, fast), (last, slow) = between[0], between[-1]
        span = (fast - slow) / (first - last)  # (high − low) / context
        bounds = (slow - last * span, slow + (1 - last) * span)
        if not named:  # low is 1 in every published Llama 3
            length = float(round(1 / bounds[0])) if 0 < bounds[0] <= 1 else 8192.0
        low, high = (decimal(round(bound * length, 3)) for bound in bounds)
    scaling = {"factor": decimal(factor), "low": low, "high": high, "context": length}
    if not 0 < low < high:
        raise refused
    wanted = rope_divisors(theta, width, **scaling)
    if any(abs(a - b) > 1e-4 * a for a, b in zip(wanted, factors, strict=True)):
        raise refused
    return {
        "rope_type": "llama3",
        "factor": scaling["factor"],
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": int(length),
    }
