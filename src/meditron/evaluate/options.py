"""Evaluation options: keys of the recipe's `[evaluate]` table and, by the same names, flags of the command.

Light: `meditron evaluate --help` imports it.
"""

from typing import Annotated

from pydantic import Field, field_validator

from meditron.core.config import Config, NonSemantic
from meditron.core.machine import DType
from meditron.evaluate.methods.registry import METHODS
from meditron.store.eval_settings import PromptForm, Rule

__all__ = ["EvalOptions"]


class EvalOptions(Config):
    """How models are evaluated."""

    questions: int = Field(default=1000, ge=2)
    """Maximum number of questions per task: the first in the order of their ids' hash."""

    methods: tuple[str, ...] = Field(default=("loglikelihood",), min_length=1)
    """How answers are taken: `loglikelihood` compares the options' log-probabilities, `next-token` takes the
    most likely token of the vocabulary. Several methods make several scores."""

    rule: Rule = "sum"
    """Rule of loglikelihood: the option's log-probability (`sum`), the same per byte (`bytes`), or minus its
    unconditional log-probability (`calibrated`)."""

    prompt_form: PromptForm = "trained"
    """Prompt each model in the chat template of its last finetune (`trained`), in plain text (`raw`), or
    `both`."""

    shots: int = Field(default=0, ge=0)
    """Number of solved examples before each question."""

    shots_from: str | None = None
    """File of questions from which the examples are drawn; default: the task's training split."""

    max_tokens: int = Field(default=2048, ge=2)
    """Maximum number of scored tokens per document; results count the truncated documents."""

    fidelity_documents: int = Field(default=32, ge=2)
    """Maximum number of held-out documents per source for measures of one model against another."""

    dtype: DType = "float32"
    """Number format of weights and activations; the loss is always float32, and so is all of fidelity.
    `auto`: bfloat16 if the CPU has instructions for it, else float32."""

    resamples: int = Field(default=10_000, ge=100)
    """Bootstrap resamples of each interval and p-value."""

    batch_tokens: Annotated[int, NonSemantic] = Field(default=4096, ge=1)
    """Tokens per batch, padding included. Changes memory and speed, not results."""

    @field_validator("methods")
    @classmethod
    def _methods_are_known_and_distinct(cls, methods: tuple[str, ...]) -> tuple[str, ...]:
        for method in methods:
            if method not in METHODS:
                raise ValueError(f"no method '{method}'; methods: {', '.join(METHODS)}")
            if methods.count(method) > 1:
                raise ValueError(f"'{method}' is listed twice")
        return methods
