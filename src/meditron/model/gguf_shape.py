"""Conversion between the metadata of a GGUF file's architecture and the fields of a LlamaConfig.

Keys begin with the file's `general.architecture` (`llama.block_count`, `qwen3.block_count`); the tables of
this module have them without it. Each key sets a config field, has a value without effect on the model, or is
refused by name: a key that is silently ignored could change the model. Keys have the meaning that llama.cpp
gives them (`src/llama-model.cpp`, `llama_model_base::load_hparams`, and `src/llama-context.cpp` for the
attention factor).
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from meditron.core.errors import InputError, UsageError
from meditron.model.families import FamilyName, family_of_gguf, supported_architectures

__all__ = [
    "NEUTRAL_VALUES",
    "REQUIRED_KEYS",
    "SHAPE_KEYS",
    "config_fields_from_gguf",
    "rope_divisors",
    "rope_scaling_metadata",
    "shortest_decimal",
]

SHAPE_KEYS = {
    "vocab_size": "vocab_size",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "max_position_embeddings": "context_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "rope_theta": "rope.freq_base",
}
"""Config field → key."""

_TOKEN_KEYS = {
    "bos_token_id": "tokenizer.ggml.bos_token_id",
    "eos_token_id": "tokenizer.ggml.eos_token_id",
    "pad_token_id": "tokenizer.ggml.padding_token_id",
}

REQUIRED_KEYS = (
    "embedding_length",
    "feed_forward_length",
    "block_count",
    "attention.head_count",
    "context_length",
    "attention.layer_norm_rms_epsilon",
)
"""Keys that llama.cpp requires."""

_HEAD_WIDTHS = ("attention.value_length", "rope.dimension_count")
"""Widths that must equal the head's."""

_SCALING = "rope.scaling."
_READ = {
    *SHAPE_KEYS.values(),
    *_HEAD_WIDTHS,
    "attention.sliding_window",
    "rope.scale_linear",
    *(_SCALING + key for key in ("type", "factor", "original_context_length", "attn_factor")),
}

NEUTRAL_VALUES: dict[str, tuple[Any, ...] | None] = {
    "tensor_data_layout": None,
    "rope.scaling.finetuned": None,
    "attention.causal": (True,),
    "attention.clamp_kqv": (0,),
    "attention.max_alibi_bias": (0,),
    "attention.scale": (0,),
    "attn_logit_softcapping": (0,),
    "embedding_scale": (0, 1),
    "expert_count": (0,),
    "expert_used_count": (0,),
    "final_logit_softcapping": (0,),
    "logit_scale": (0, 1),
    "pooling_type": (0,),
    "residual_scale": (0, 1),
    "rope.scaling.alpha": (0,),
    "rope.scaling.yarn_attn_factor": (1,),
    "rope.scaling.yarn_beta_fast": (32,),
    "rope.scaling.yarn_beta_slow": (1,),
    "rope.scaling.yarn_ext_factor": (-1, 1),
    "rope.scaling.yarn_log_multiplier": (0,),
    "use_parallel_residual": (False,),
}
"""Values at which a key has no effect; None = any value."""


def shortest_decimal(value: Any) -> Any:  # noqa: ANN401
    """Return the shortest decimal of a float32 that was read as a double: 9.999999747e-06 is 1e-5."""
    if not isinstance(value, float):
        return value
    with np.errstate(over="ignore"):  # a file may contain doubles; the config refuses infinity
        return float(str(np.float32(value)))


def config_fields_from_gguf(
    metadata: Mapping[str, Any], path: Path | str, rope_factors: Sequence[float] | None
) -> dict[str, Any]:
    """Return the LlamaConfig fields that a GGUF file's metadata sets.

    Args:
        metadata: The file's key-value pairs.
        path: The file, for errors.
        rope_factors: The file's `rope_freqs.weight`, the divisors of the rotary frequencies.

    Raises:
        InputError: an unsupported architecture, a missing key, or an unsupported key that would change the
            model.
    """
    family = _require_supported_family(metadata, path)
    prefix = f"{metadata['general.architecture']}."
    shape = {
        key.removeprefix(prefix): _collapse_equal_numbers(shortest_decimal(value))
        for key, value in metadata.items()
        if key.startswith(prefix)
    }
    _refuse_unsupported_keys(shape, path, prefix)
    fields = {name: shape[key] for name, key in SHAPE_KEYS.items() if shape.get(key) is not None}
    fields |= {name: metadata[key] for name, key in _TOKEN_KEYS.items() if metadata.get(key) is not None}
    fields["model_type"] = family
    if isinstance(tokens := metadata.get("tokenizer.ggml.tokens"), list):
        fields["vocab_size"] = len(tokens)
    heads, width = fields.get("num_attention_heads"), fields.get("hidden_size")
    derived = width // heads if isinstance(heads, int) and isinstance(width, int) and heads > 0 else None
    fields.setdefault("head_dim", derived)
    # If value_length is absent, llama.cpp derives it from width and heads; if dimension_count is absent, it
    # uses key_length.
    for key, default in zip(_HEAD_WIDTHS, (derived, fields["head_dim"]), strict=True):
        if (value := shape.get(key, default)) != fields["head_dim"]:
            problem = f"must be the width of a head, {fields['head_dim']!r:.60}, got {value!r:.60}"
            raise InputError(path, problem, place=prefix + key)
    fields["rope_scaling"] = _rope_scaling_fields(shape, fields, (path, prefix), rope_factors)
    return fields


def _require_supported_family(metadata: Mapping[str, Any], path: Path | str) -> FamilyName:
    if metadata.get("general.type", "model") != "model":
        raise InputError(
            path, f"{metadata['general.type']!r} is not supported; only 'model' is", place="general.type"
        )
    architecture = metadata.get("general.architecture")
    family = family_of_gguf(architecture)
    if family is None:
        problem = f"{architecture!r:.60} is not supported"
        raise InputError(path, problem, place="general.architecture", hint=supported_architectures())
    for key in REQUIRED_KEYS:
        if metadata.get(f"{architecture}.{key}") is None:
            problem = "the key is missing; llama.cpp requires it too"
            raise InputError(path, problem, place=f"{architecture}.{key}")
    return family


def _collapse_equal_numbers(value: Any) -> Any:  # noqa: ANN401
    """Return the common number of a list with one equal number per block, and any other value unchanged."""
    numbers = isinstance(value, list) and value and all(type(item) is int for item in value)
    return value[0] if numbers and len(set(value)) == 1 and len(value) <= 1 << 12 else value


def _refuse_unsupported_keys(shape: Mapping[str, Any], path: Path | str, prefix: str) -> None:
    for key, value in shape.items():
        if key in _READ:
            continue
        if key not in NEUTRAL_VALUES:
            raise InputError(path, "the key is not supported and may change the model", place=prefix + key)
        allowed = NEUTRAL_VALUES[key]
        if allowed is not None and not any(value == item for item in allowed):
            problem = f"{value!r:.60} is not supported; only {' or '.join(map(str, allowed))} is"
            raise InputError(path, problem, place=prefix + key)


def _rope_scaling_fields(
    metadata: Mapping[str, Any],
    fields: Mapping[str, Any],
    place: tuple[Path | str, str],
    rope_factors: Sequence[float] | None,
) -> dict[str, Any] | None:
    path, prefix = place
    kind = metadata.get(_SCALING + "type", "linear")  # llama.cpp's default
    if kind not in ("none", "linear", "yarn"):
        raise InputError(
            path, f"{kind!r} is not supported; none, linear and yarn are", place=prefix + _SCALING + "type"
        )
    factor = metadata.get(_SCALING + "factor", metadata.get("rope.scale_linear", 1.0))
    factor = 1.0 if kind == "none" or factor == 0 else factor  # 0 is "not set" in llama.cpp
    attention = metadata.get(_SCALING + "attn_factor", 1.0)
    scaled = kind == "yarn" or factor != 1
    if attention != 1 and kind != "yarn":
        problem = f"{attention!r:.60} is supported with yarn scaling only"
        raise InputError(path, problem, place=prefix + _SCALING + "attn_factor")
    context = metadata.get(_SCALING + "original_context_length")
    if rope_factors is not None:
        if scaled:
            problem = "a rotary scaling together with rope_freqs.weight is not supported"
            raise InputError(path, problem, place=prefix + _SCALING + "type")
        return _recover_llama3_scaling(fields, path, rope_factors, context)
    if not scaled:
        return None
    scaling = {"rope_type": kind, "factor": factor}
    if kind == "yarn":
        scaling["original_max_position_embeddings"] = context or metadata.get("context_length")
        if attention != 1:
            if not all(isinstance(number, int | float) and number > 0 for number in (factor, attention)):
                raise InputError(
                    path,
                    f"must be a positive number, got {attention!r:.60}",
                    place=prefix + _SCALING + "attn_factor",
                )
            # llama.cpp multiplies its own YaRN magnitude by the value of the key; HF's `attention_factor` is
            # the product.
            scaling["attention_factor"] = shortest_decimal(attention * _yarn_magnitude(factor))
    return scaling


def _yarn_magnitude(factor: float) -> float:
    """Return YaRN's default scale of cosine and sine."""
    return 0.1 * math.log(factor) + 1.0 if factor > 1 else 1.0


def rope_scaling_metadata(scaling: Mapping[str, Any] | None) -> dict[str, Any]:
    """Return the GGUF keys (without the architecture) of a rotary scaling, given by its non-default fields.

    GGUF stores Llama 3's factors as a tensor. The original context length is written too, because the factors
    do not determine it.

    Raises:
        UsageError: GGUF has no keys for the scaling.
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
        rest -= {"attention_factor", "mscale", "mscale_all_dim"}  # the factor overrides the other two
    if kind == "dynamic" or rest:
        raise UsageError(f"GGUF has no keys for the rotary scaling {dict(scaling)}")
    return metadata


def rope_divisors(
    theta: float, head_dim: int, *, factor: float, low: float, high: float, context: float
) -> list[float]:
    """Return the divisors of the head_dim / 2 rotary frequencies under Llama 3's scaling.

    As in Meta's reference code: frequencies of long wavelengths are divided by `factor`, those of short ones
    do not change, and in between the frequency is interpolated linearly in the number of turns within the
    original context.
    """
    factors = []
    for turns in _turns_per_token(theta, head_dim):
        smooth = min(max((turns * context - low) / (high - low), 0.0), 1.0)
        factors.append(1 / ((1 - smooth) / factor + smooth))
    return factors


def _turns_per_token(theta: float, head_dim: int) -> list[float]:
    """Return the number of full turns per token of each rotary frequency."""
    return [1 / (2 * math.pi * theta ** (dimension / head_dim)) for dimension in range(0, head_dim, 2)]


def _recover_llama3_scaling(
    fields: Mapping[str, Any],
    path: Path | str,
    factors: Sequence[float],
    context: Any,  # noqa: ANN401
) -> dict[str, Any]:
    """Recover Llama 3's scaling from its divisors.

    Between the bounds a divisor determines (turns · context − low) / (high − low), so two divisors give low /
    context and high / context. Without the original context in the metadata, Llama 3's is assumed.
    """
    theta, width = fields.get("rope_theta", 10_000.0), fields.get("head_dim")
    invalid = InputError(path, "is not Llama 3's rotary scaling", place="rope_freqs.weight")
    if not (
        isinstance(width, int) and 0 < width <= 1 << 20 and isinstance(theta, int | float) and theta >= 1
    ):
        raise invalid
    if len(factors) != width // 2 or not all(math.isfinite(f) and f >= 1 for f in factors):
        raise invalid
    known = isinstance(context, int) and context > 0
    length = float(context) if known else 8192.0
    factor, low, high = max(factors), 1.0, 4.0
    between = [
        ((1 / f - 1 / factor) / (1 - 1 / factor), turns)
        for f, turns in zip(factors, _turns_per_token(theta, width), strict=True)
        if 1 + 1e-4 < f < factor * (1 - 1e-4)
    ]
    if len(between) == 1 and not known:
        share, turns = between[0]
        length = float(round((low + share * (high - low)) / turns))
    elif len(between) > 1:
        (first, fast), (last, slow) = between[0], between[-1]
        span = (fast - slow) / (first - last)  # (high − low) / context
        bounds = (slow - last * span, slow + (1 - last) * span)
        if not known:  # low is 1 in every published Llama 3
            length = float(round(1 / bounds[0])) if 0 < bounds[0] <= 1 else 8192.0
        low, high = (shortest_decimal(round(bound * length, 3)) for bound in bounds)
    scaling = {"factor": shortest_decimal(factor), "low": low, "high": high, "context": length}
    if not 0 < low < high:
        raise invalid
    # The recovered scaling must give the file's divisors again; otherwise the divisors follow another rule.
    expected = rope_divisors(theta, width, **scaling)
    if any(abs(a - b) > 1e-4 * a for a, b in zip(expected, factors, strict=True)):
        raise invalid
    return {
        "rope_type": "llama3",
        "factor": scaling["factor"],
        "low_freq_factor": low,
        "high_freq_factor": high,
        "original_max_position_embeddings": int(length),
    }
