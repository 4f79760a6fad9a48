"""Sampling settings, shared by the model, the engines and the commands. This module does not import torch."""

import math
from dataclasses import dataclass
from typing import TypedDict

from meditron.core.errors import UsageError

__all__ = ["SamplingConfig", "SamplingOptions", "max_new_tokens"]


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """Sampling settings of a generated text. The commands take flags, help and defaults from the fields.

    Raises:
        UsageError: a value is out of range.
    """

    max_tokens: int = 128
    """Maximum number of tokens to generate."""
    temperature: float = 0.0
    """Sampling temperature; 0 = greedy decoding."""
    top_p: float = 1.0
    """Sample from the smallest set of most likely tokens with this total probability."""
    top_k: int = 0
    """Sample from the k most likely tokens; 0 = all."""
    seed: int = 0
    """Random seed, used if the temperature is above 0."""
    nonempty: bool = False
    """Do not end the text before it has a visible character."""

    def __post_init__(self) -> None:
        # Checked here, so that every engine and command refuses the same values before a model is loaded.
        limits = {
            "max_tokens": (self.max_tokens >= 1, "at least 1"),
            "temperature": (0 <= self.temperature < math.inf, "finite and ≥ 0"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1"),
            "top_k": (self.top_k >= 0, "≥ 0"),
        }
        for name, (valid, limit) in limits.items():
            if not valid:
                raise UsageError(f"{name} must be {limit}, got {getattr(self, name)}")

    @property
    def generate_arguments(self) -> "SamplingOptions":
        """The settings as keyword arguments of `generate`."""
        return SamplingOptions(
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            seed=self.seed,
            nonempty=self.nonempty,
        )


class SamplingOptions(TypedDict, total=False):
    """The fields of `SamplingConfig` as optional keyword arguments of `generate`."""

    max_tokens: int
    temperature: float
    top_p: float
    top_k: int
    seed: int
    nonempty: bool


def max_new_tokens(prompt_tokens: int, context: int, max_tokens: int) -> int:
    """Return how many tokens can follow a prompt: `max_tokens`, or fewer if the context fills up first.

    Raises:
        UsageError: the prompt is empty, or leaves no space in the context.
    """
    if prompt_tokens == 0:
        raise UsageError("the prompt has no tokens", hint="write at least one word")
    if prompt_tokens >= context:
        raise UsageError(f"the prompt has {prompt_tokens} tokens; the model's context is {context}")
    return min(max_tokens, context - prompt_tokens)
