"""What the quantize stage is told: which model, in which types."""

from typing import Annotated

from pydantic import Field, field_validator

from meditron.core.config import NonSemantic
from meditron.core.stage import InputKind, StageConfig
from meditron.release.types import GGUFType

__all__ = ["QuantizeConfig"]


class QuantizeConfig(StageConfig):
    """The recipe's `[quantize]` table."""

    on: str = "pretrain"
    """Reference of the model to write."""

    types: tuple[GGUFType, ...] = Field(default=("F16",), min_length=1)
    """Types to write, one GGUF file each, named after the type."""

    threads: Annotated[int | None, NonSemantic] = Field(default=None, ge=1)
    """Threads that quantize; all cores when absent. The bytes are the same."""

    @field_validator("types", mode="before")
    @classmethod
    def _any_case(cls, types: object) -> object:
        """Read `q4_k_m` as `Q4_K_M`; a name of no type is refused with the other values."""
        if not isinstance(types, list | tuple):
            return types
        return tuple(kind.upper() if isinstance(kind, str) else kind for kind in types)

    @field_validator("types")
    @classmethod
    def _each_once(cls, types: tuple[GGUFType, ...]) -> tuple[GGUFType, ...]:
        if len(set(types)) != len(types):
            raise ValueError("types: one of them stands there twice")
        return types

    def inputs(self) -> dict[str, str]:
        """The one model."""
        return {"model": self.on}

    def selectors(self) -> tuple[str, ...]:
        """Return the types: each file is selected by its type."""
        return self.types

    def input_kinds(self) -> dict[str, InputKind]:
        """Return the kind of the one model."""
        return {"model": InputKind("model")}
