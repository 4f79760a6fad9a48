"""The config of the quantize stage."""

from typing import Annotated, Self

from pydantic import Field, field_validator, model_validator

from meditron.core.config import InputKind, NonSemantic, StageConfig
from meditron.release.types import GGUFType, Mix

__all__ = ["QuantizeConfig"]


class QuantizeConfig(StageConfig):
    """The recipe's `[quantize]` table."""

    on: str = "pretrain"
    """Reference of the model to quantize."""

    types: tuple[GGUFType, ...] = Field(default=("Q4_K_M",), min_length=1)
    """Types of the GGUF files, one file for each type."""

    mix: Mix = "current"
    """Rules for the types of the matrices: llama.cpp's current ones, or those of late 2023."""

    imatrix: str | None = None
    """File of an importance matrix, which the quantizers weigh errors with (`meditron imatrix`)."""

    calibrate: str | None = None
    """Text from which an importance matrix is computed first, instead of `imatrix`."""

    threads: Annotated[int | None, NonSemantic] = Field(default=None, ge=1)
    """Threads; all cores by default. The files do not depend on it."""

    @field_validator("types", mode="before")
    @classmethod
    def _uppercase_types(cls, types: object) -> object:
        """Read `q4_k_m` as `Q4_K_M`; unknown names are rejected by the field's type."""
        if not isinstance(types, list | tuple):
            return types
        return tuple(kind.upper() if isinstance(kind, str) else kind for kind in types)

    @field_validator("types")
    @classmethod
    def _refuse_duplicate_types(cls, types: tuple[GGUFType, ...]) -> tuple[GGUFType, ...]:
        if len(set(types)) != len(types):
            raise ValueError("types: a type is listed twice")
        return types

    @model_validator(mode="after")
    def _require_one_importance_matrix(self) -> Self:
        if self.imatrix is not None and self.calibrate is not None:
            raise ValueError("imatrix and calibrate exclude each other: both give the importance matrix")
        return self

    def inputs(self) -> dict[str, str]:
        """Return the stage's inputs: the model to quantize, and an importance matrix or its text."""
        files = {"imatrix": self.imatrix, "calibrate": self.calibrate}
        return {"model": self.on} | {name: file for name, file in files.items() if file is not None}

    def selectors(self) -> tuple[str, ...]:
        """Return the types: each file is selected by its type."""
        return self.types

    def input_kinds(self) -> dict[str, InputKind]:
        """Return the kind of the stage's input, a model."""
        return {"model": InputKind("model")}
