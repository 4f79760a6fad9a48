"""What the evaluate stage is told: which models, how much held-out text, how sure to be."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from meditron.ground.config import Beside, Config
from meditron.ground.stage import StageConfig

__all__ = ["Against", "EvaluateConfig"]

CORPUS = "corpus"


class Against(Config):
    """Two of the evaluated models to compare: the difference is `model` minus `against`."""

    model: str
    """The model whose gain or loss is asked for."""

    against: str
    """The model it is measured against."""


class EvaluateConfig(StageConfig):
    """The recipe's `[evaluate]` table."""

    models: tuple[str, ...] = Field(min_length=1)
    """The models' references: `base`, a stage of the recipe (`pretrain`), a file of one (`quantize:F16`)."""

    documents: int = Field(default=200, ge=2)
    """Held-out documents of each source, at most: the first in the order of their ids' hash."""

    max_tokens: int = Field(default=2048, ge=2)
    """Tokens of a document that are scored, at most; the record says how many documents were cut."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Number format of weights and activations; the head and the loss are float32 always."""

    resamples: int = Field(default=10_000, ge=100)
    """Bootstrap resamples behind every interval and p value."""

    differences: tuple[Against, ...] | None = None
    """Pairs to compare; when absent, every later model against the first."""

    batch_tokens: Annotated[int, Beside] = Field(default=4096, ge=1)
    """Tokens, padding counted, that go through the model at once. Moves memory and speed, not results."""

    @model_validator(mode="after")
    def _models_are_distinct_and_compared_models_are_evaluated(self) -> Self:
        if len(set(self.models)) != len(self.models):
            raise ValueError("models: one of them stands there twice")
        if CORPUS in self.models:
            raise ValueError("models: 'corpus' is no model")
        for pair in self.differences or ():
            for name in (pair.model, pair.against):
                if name not in self.models:
                    raise ValueError(f"differences: '{name}' is not among the models")
            if pair.model == pair.against:
                raise ValueError(f"differences: '{pair.model}' against itself")
        return self

    def pairs(self) -> tuple[Against, ...]:
        """The comparisons to make, in the order they are reported."""
        if self.differences is not None:
            return self.differences
        first, *later = self.models
        return tuple(Against(model=model, against=first) for model in later)

    def inputs(self) -> dict[str, str]:
        """Every model under its own reference, and the corpus that holds the held-out documents."""
        return {model: model for model in self.models} | {CORPUS: CORPUS}
