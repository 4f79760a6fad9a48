"""What the quantize stage is told: which model, in which types."""

from typing import Literal

from pydantic import Field, field_validator

from meditron.ground.stage import StageConfig

__all__ = ["GGUFType", "QuantizeConfig"]

GGUFType = Literal["F16", "F32"]
"""The tensor types a GGUF file can be written in."""


class QuantizeConfig(StageConfig):
    """The recipe's `[quantize]` table."""

    on: str = "pretrain"
    """Reference of the model to write."""

    types: tuple[GGUFType, ...] = Field(default=("F16",), min_length=1)
    """Types to write, one GGUF file each, named after the type."""

    @field_validator("types")
    @classmethod
    def _each_once(cls, types: tuple[GGUFType, ...]) -> tuple[GGUFType, ...]:
        if len(set(types)) != len(types):
            raise ValueError("types: one of them stands there twice")
        return types

    def inputs(self) -> dict[str, str]:
        """The one model."""
        return {"model": self.on}
