"""The config of a model, from HF's `config.json` or GGUF metadata, checked before memory is allocated."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from meditron.core.config import Config
from meditron.core.console import warn
from meditron.core.errors import InputError, UsageError
from meditron.model.families import FAMILIES, Family, FamilyName, supported_architectures
from meditron.model.gguf_shape import (
    SHAPE_KEYS,
    config_fields_from_gguf,
    rope_divisors,
    rope_scaling_metadata,
)
from meditron.model.packed_format import read_packed_format

__all__ = ["LlamaConfig", "RopeScaling", "llama3_rope_divisors"]

# The bounds are far above any published Llama; they keep a malicious file from causing a huge allocation.
Count = Annotated[int, Field(gt=0, le=1 << 20, strict=True)]
Length = Annotated[int, Field(gt=0, le=1 << 30, strict=True)]
Positive = Annotated[float, Field(gt=0, le=1e12, allow_inf_nan=False)]
TokenId = Annotated[int, Field(ge=0, lt=1 << 24, strict=True)]


class RopeScaling(Config):
    """Scaling of the rotary frequencies for contexts longer than in pretraining, under HF's field names."""

    rope_type: Literal["linear", "dynamic", "llama3", "yarn"]
    """The scaling rule; see `meditron.model.rope`."""
    factor: Positive
    """Growth of the context."""
    original_max_position_embeddings: Length | None = None
    """llama3, yarn: context before the scaling."""
    low_freq_factor: Positive | None = None
    """llama3: frequencies of wavelengths longer than the original context / this are divided by `factor`."""
    high_freq_factor: Positive | None = None
    """llama3: frequencies of wavelengths shorter than the original context / this do not change."""
    attention_factor: Positive | None = None
    """yarn: scale of cos and sin; computed from `factor` when absent."""
    beta_fast: Positive | None = None
    """yarn: rotations above which a frequency does not change (32 when absent)."""
    beta_slow: Positive | None = None
    """yarn: rotations below which a frequency is divided by `factor` (1 when absent)."""
    mscale: Positive | None = None
    """yarn: sets the attention factor together with `mscale_all_dim`."""
    mscale_all_dim: Positive | None = None
    """yarn: see `mscale`."""
    truncate: bool = True
    """yarn: round the bounds of the interpolation to whole dimensions."""

    @model_validator(mode="after")
    def _require_fields_of_rule(self) -> Self:
        required = {
            "llama3": ("original_max_position_embeddings", "low_freq_factor", "high_freq_factor"),
            "yarn": ("original_max_position_embeddings",),
        }
        for name in required.get(self.rope_type, ()):
            if getattr(self, name) is None:
                raise ValueError(f"rope scaling {self.rope_type} needs {name}")
        if self.low_freq_factor and self.high_freq_factor and self.high_freq_factor <= self.low_freq_factor:
            raise ValueError("high_freq_factor must be above low_freq_factor")
        return self


class LlamaConfig(Config):
    """Family, shape and special tokens of a model, under HF's key names."""

    model_type: FamilyName = "llama"
    """Family of the model; `meditron.model.families` has their differences."""
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
    rope_theta: Annotated[float, Field(ge=1, le=1e12, allow_inf_nan=False)] = 10_000.0
    """Base of the rotary frequencies."""
    rope_scaling: RopeScaling | None = None
    """Scaling of the rotary frequencies."""
    tie_word_embeddings: bool = False
    """The head shares the embedding's weight."""
    initializer_range: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] = 0.02
    """Standard deviation of initial weights."""
    bos_token_id: TokenId | None = None
    """Token at the beginning of a text."""
    eos_token_id: TokenId | tuple[TokenId, ...] | None = None
    """Tokens that end generation."""
    pad_token_id: TokenId | None = None
    """Padding token."""

    @model_validator(mode="after")
    def _check_shape(self) -> Self:
        # Each group of query heads shares one key/value head, so the groups must be equal.
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"{self.num_attention_heads} attention heads cannot share "
                f"{self.num_key_value_heads} key/value heads evenly"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim must be even (rotary halves), got {self.head_dim}")
        rule = self.rope_scaling.rope_type if self.rope_scaling else None
        if rule == "yarn" and self.rope_theta == 1:  # yarn divides by log(rope_theta)
            raise ValueError("rope_theta must be greater than 1 with yarn scaling, got 1")
        if rule == "dynamic" and self.head_dim == 2:
            raise ValueError("head_dim must be greater than 2 with dynamic scaling, got 2")
        # Each field is bounded, but their product is not: 2^43 parameters are 16 TiB in bfloat16.
        if self.parameter_count > 1 << 43:
            raise ValueError(f"the model would have {self.parameter_count:,} parameters")
        return self

    @property
    def family(self) -> Family:
        """Differences of the model's family from the others."""
        return FAMILIES[self.model_type]

    @property
    def parameter_count(self) -> int:
        """Number of parameters; a tied head is counted once."""
        width, heads = self.hidden_size, self.num_attention_heads * self.head_dim
        shared = self.num_key_value_heads * self.head_dim
        # Query and output projections; key and value projections.
        attention = 2 * width * heads + 2 * width * shared
        attention += (heads + 2 * shared) * self.family.qkv_bias + 2 * self.head_dim * self.family.qk_norm
        # SwiGLU has three matrices; a block has two norms.
        block = attention + 3 * width * self.intermediate_size + 2 * width
        embeddings = self.vocab_size * width * (1 if self.tie_word_embeddings else 2)
        return embeddings + self.num_hidden_layers * block + width

    @property
    def kv_cache_bytes_per_token(self) -> int:
        """Bytes of one token's keys and values in F16."""
        return 2 * 2 * self.num_hidden_layers * self.num_key_value_heads * self.head_dim

    def flops_per_token(self, sequence_length: int) -> int:
        """Return the floating-point operations of one training token (forward and backward).

        The convention of PaLM (Chowdhery et al. 2022, appendix B): 6 per parameter, the embedding included,
        and 12 · layers · heads · head_dim · sequence_length for attention, not halved for causal masking and
        without recomputation.
        """
        heads = self.num_attention_heads * self.head_dim
        return 6 * self.parameter_count + 12 * self.num_hidden_layers * heads * sequence_length

    @classmethod
    def from_hf(cls, config: Mapping[str, Any], path: Path | str = "config.json") -> Self:
        """Read HF's `config.json`, with the rotary keys of transformers 4 or 5.

        Sliding-window attention is not implemented. Within the window it equals causal attention, so a
        window (Mistral-7B-v0.1's has 4,096 tokens) becomes the context length.

        Raises:
            InputError: an unsupported architecture or variant of one, or impossible values; the error names
                `path`.
        """
        name = _family_name(config, path)
        family = FAMILIES[name]
        _refuse_unsupported_variants(config, family, path)
        config = {"max_position_embeddings": 2048, **dict(family.hf_defaults), **config}
        fields = {name: config[name] for name in cls.model_fields if config.get(name) is not None}
        if fields.get("pad_token_id") == -1:  # some configs write "none" so
            del fields["pad_token_id"]
        fields |= {"model_type": name, **_rope_fields_from_hf(config, path)}
        _add_default_head_fields(fields)
        if family.sliding_window:
            _limit_context_to_window(fields, config.get("sliding_window"), path, "sliding_window")
        return cls._from_fields(fields, path)

    @classmethod
    def from_gguf(
        cls,
        metadata: Mapping[str, Any],
        path: Path | str = "GGUF",
        *,
        tied: bool,
        rope_factors: tuple[float, ...] | None = None,
    ) -> Self:
        """Read the keys of a GGUF file's architecture (`llama.*`, `qwen2.*`, `qwen3.*`).

        A Mistral is stored as a Llama and is read as one; a sliding window limits the context, as for
        `from_hf`.

        Args:
            metadata: The file's key-value pairs.
            path: The file, for errors.
            tied: True if the file has no `output.weight`.
            rope_factors: The file's `rope_freqs.weight`, in which llama.cpp stores Llama 3's rotary scaling.

        Raises:
            InputError: as for `from_hf`, or an unsupported key that would change the model.
        """
        fields = config_fields_from_gguf(metadata, path, rope_factors)
        fields["tie_word_embeddings"] = tied
        _add_default_head_fields(fields)
        key = f"{metadata['general.architecture']}.attention.sliding_window"
        _limit_context_to_window(fields, metadata.get(key), path, key)
        return cls._from_fields(fields, path)

    @classmethod
    def _from_fields(cls, fields: dict[str, Any], path: Path | str) -> Self:
        try:
            return cls(**fields)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"]) or None
            problem = first["msg"].removeprefix("Value error, ")  # pydantic's prefix for our own errors
            if first["type"] not in ("missing", "value_error"):
                problem = f"{first['input']!r:.60}: {problem[0].lower()}{problem[1:]}"
            raise InputError(path, problem, place=place) from error

    def to_hf(self) -> dict[str, Any]:
        """Return the content of `config.json`, for transformers 4 and 5, vLLM and llama.cpp's converter."""
        fields = self.model_dump(mode="json", exclude_none=True)
        if self.rope_scaling is not None:
            fields["rope_scaling"] = self.rope_scaling.model_dump(exclude_none=True, exclude_defaults=True)
        return {
            "architectures": [self.family.architectures[0]],
            "model_type": self.model_type,
            "hidden_act": "silu",
            "attention_dropout": 0.0,
            "use_cache": True,
            **dict(self.family.hf_constants),
            # Written even though it is null: transformers assumes a window if the key is absent.
            **({"sliding_window": None} if self.family.sliding_window else {}),
            **fields,
        }

    def to_gguf(self) -> dict[str, Any]:
        """Return the metadata of the shape; the special tokens are part of the tokenizer's metadata.

        Raises:
            UsageError: GGUF has no keys for the rotary scaling, or llama.cpp ignores or refuses them.
        """
        scaling = self.rope_scaling.model_dump(exclude_defaults=True) if self.rope_scaling else None
        if scaling and scaling["rope_type"] == "llama3" and not self.family.gguf_rope_factors:
            raise UsageError(f"llama.cpp has no rotary scaling llama3 for {self.family.title}")
        metadata = {
            **{key: getattr(self, name) for name, key in SHAPE_KEYS.items()},
            "attention.value_length": self.head_dim,
            "rope.dimension_count": self.head_dim,
            **rope_scaling_metadata(scaling),
        }
        return {f"{self.family.gguf}.{key}": value for key, value in metadata.items()}


def _family_name(config: Mapping[str, Any], path: Path | str) -> FamilyName:
    """Return the family that `architectures` names, or `model_type` if there are no architectures."""
    names, kind = config.get("architectures") or [], config.get("model_type")
    named = names if isinstance(names, list) else [names]
    for name, family in FAMILIES.items():
        if (len(named) == 1 and named[0] in family.architectures) or (not named and kind == name):
            if kind not in (None, name):
                problem = f"{kind!r:.60} does not match {named[0]}, whose model_type is {name!r}"
                raise InputError(path, problem, place="model_type")
            return name
    problem = f"{', '.join(map(str, named)) or repr(kind):.60} is not supported"
    place = "architectures" if named else "model_type"
    raise InputError(path, problem, place=place, hint=supported_architectures())


def _refuse_unsupported_variants(config: Mapping[str, Any], family: Family, path: Path | str) -> None:
    read_packed_format(config, path)  # raises for a quantization that is not supported
    for key, constant in family.hf_constants:
        if (config.get(key) or False) != constant:
            raise InputError(path, f"{config[key]!r:.60} is not supported; only {constant} is", place=key)
    # transformers 5 lists the kind of attention of each block.
    kinds = config.get("layer_types") or []
    if not isinstance(kinds, list) or any(kind != "full_attention" for kind in kinds):
        problem = f"{kinds!r:.60} is not supported; only full_attention in every block is"
        raise InputError(path, problem, place="layer_types")
    if (activation := config.get("hidden_act") or "silu") not in ("silu", "swish"):  # synonyms
        raise InputError(path, f"{activation!r} is not supported; only 'silu' is", place="hidden_act")


def _add_default_head_fields(fields: dict[str, Any]) -> None:
    """Add the fields that a file may omit: as many K/V heads as heads, and `head_dim` = width / heads."""
    heads, width = fields.get("num_attention_heads"), fields.get("hidden_size")
    fields.setdefault("num_key_value_heads", heads)
    if isinstance(heads, int) and isinstance(width, int) and heads > 0 and width % heads == 0:
        fields.setdefault("head_dim", width // heads)


def _limit_context_to_window(
    fields: dict[str, Any],
    window: Any,  # noqa: ANN401  # any JSON value
    path: Path | str,
    place: str,
) -> None:
    """Lower `max_position_embeddings` to a sliding window; None and 0 stand for no window."""
    if window is None or window == 0:
        return
    if type(window) is not int or window < 0:
        raise InputError(path, f"must be a number of tokens, got {window!r:.60}", place=place)
    context = fields.get("max_position_embeddings")
    if isinstance(context, int) and window < context:
        scaling = fields.get("rope_scaling") or {}
        if scaling.get("rope_type") == "dynamic":  # its frequencies depend on the original context
            raise InputError(
                path, "a window together with dynamic rotary scaling is not supported", place=place
            )
        _warn_of_window(path, window)
        fields["max_position_embeddings"] = window


@cache
def _warn_of_window(path: Path | str, window: int) -> None:
    """Warn once for each config: a model is opened several times in a run."""
    warn(
        f"{path}: sliding-window attention is not implemented; the context is limited to the window of "
        f"{window:,} tokens, within which the model is the same"
    )


_RULE_FIELDS = {
    "linear": {"factor"},
    "dynamic": {"factor"},
    "llama3": {"factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"},
    "yarn": set(RopeScaling.model_fields) - {"rope_type", "low_freq_factor", "high_freq_factor"},
}
"""Fields that each rule reads. Others are ignored, as in transformers."""


def _rope_fields_from_hf(config: Mapping[str, Any], path: Path | str) -> dict[str, Any]:
    """Read `rope_theta` and `rope_scaling` from transformers 5's `rope_parameters` or the older keys."""
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(rope, Mapping):
        raise InputError(path, f"expected an object, got {rope!r:.60}", place="rope_parameters")
    # transformers 5 may list the parameters by kind of attention; sliding attention is refused elsewhere.
    rope = rope.get("full_attention", rope)
    if not isinstance(rope, Mapping):
        raise InputError(
            path, f"expected an object, got {rope!r:.60}", place="rope_parameters.full_attention"
        )
    rope = {"rope_theta": config.get("rope_theta"), **rope}
    theta = 10_000.0 if rope["rope_theta"] is None else rope["rope_theta"]
    kind = rope.get("rope_type") or rope.get("type") or "default"
    for part in (rope.get("partial_rotary_factor"), config.get("partial_rotary_factor")):
        if part not in (None, 1.0):
            raise InputError(
                path, f"{part!r:.60} is not supported; only 1.0 is", place="partial_rotary_factor"
            )
    if kind == "default":
        return {"rope_theta": theta, "rope_scaling": None}
    if not isinstance(kind, str) or kind not in _RULE_FIELDS:
        known = ", ".join(_RULE_FIELDS)
        raise InputError(path, f"{kind!r:.60} is not supported; {known} are", place="rope_scaling.rope_type")
    scaling = {key: rope[key] for key in _RULE_FIELDS[kind] if rope.get(key) is not None}
    # transformers also accepts `original_max_position_embeddings` at the top level of the config, and takes
    # the model's context length if it is absent.
    if "original_max_position_embeddings" in _RULE_FIELDS[kind]:
        context = config.get("original_max_position_embeddings") or config.get("max_position_embeddings")
        scaling.setdefault("original_max_position_embeddings", context)
    return {"rope_theta": theta, "rope_scaling": {"rope_type": kind, **scaling}}


def llama3_rope_divisors(theta: float, head_dim: int, scaling: RopeScaling) -> list[float]:
    """Return the divisors of the head_dim / 2 rotary frequencies under Llama 3's scaling."""
    low, high, context = (
        scaling.low_freq_factor,
        scaling.high_freq_factor,
        scaling.original_max_position_embeddings,
    )
    if not (low and high and context):
        raise ValueError("Llama 3 scaling needs low_freq_factor, high_freq_factor and the original context")
    return rope_divisors(theta, head_dim, factor=scaling.factor, low=low, high=high, context=context)
