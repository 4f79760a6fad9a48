"""What text can be generated with, checked alike by everything that generates. No torch."""

import math

from meditron.core.errors import UsageError

__all__ = ["check", "check_settings"]


def check(prompt: int, context: int, temperature: float, top_k: int, top_p: float) -> None:
    """Raise UsageError for a prompt of so many tokens that does not fit, and for settings out of range."""
    if prompt == 0:
        raise UsageError("the prompt has no tokens", hint="give it at least one word")
    if prompt >= context:
        raise UsageError(f"the prompt has {prompt} tokens; the model's context is {context}")
    check_settings(temperature, top_k, top_p)


def check_settings(temperature: float, top_k: int, top_p: float) -> None:
    """Raise UsageError for settings out of range."""
    if not 0 <= temperature < math.inf or top_k < 0 or not 0 < top_p <= 1:
        raise UsageError(
            f"temperature {temperature}, top_k {top_k}, top_p {top_p} cannot be sampled with",
            hint="temperature and top_k are finite and 0 or more, top_p is above 0 and at most 1",
        )
