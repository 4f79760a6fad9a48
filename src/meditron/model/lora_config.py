"""Config of LoRA adapters. Does not import torch."""

from typing import Annotated, Literal, Self, get_args

from pydantic import Field, model_validator

from meditron.core.config import Config

__all__ = ["LORA_MODULES", "LoraConfig", "LoraModule"]

LoraModule = Literal["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
"""A matrix of a block, by HF's name."""
LORA_MODULES: tuple[LoraModule, ...] = get_args(LoraModule)


class LoraConfig(Config):
    """LoRA (Hu et al. 2021): each adapted matrix W is frozen, and W + (alpha / rank) · B A is trained."""

    rank: Annotated[int, Field(ge=1, le=4096)] = 16
    """Rank of the update: rows of A, columns of B."""

    alpha: Annotated[float, Field(gt=0.0)] = 32.0
    """Numerator of the update's scale, alpha / rank."""

    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Dropout on the input of A, in training only. Not with tensor parallelism."""

    modules: Annotated[tuple[LoraModule, ...], Field(min_length=1)] = LORA_MODULES
    """Matrices of every block that are adapted; by default all seven."""

    embeddings: bool = False
    """Train the embedding and the head too, whole and not by adapters. Always done if tokens are added."""

    @model_validator(mode="after")
    def _check_modules(self) -> Self:
        """Refuse a matrix that is named twice."""
        if len(set(self.modules)) < len(self.modules):
            raise ValueError(f"modules has a name twice: {', '.join(self.modules)}")
        return self

    @property
    def scale(self) -> float:
        """Factor of B A."""
        return self.alpha / self.rank
