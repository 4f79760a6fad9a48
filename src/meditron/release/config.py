"""The config of the quantize stage."""

from typing import Annotated, Self

from pydantic import Field, field_validator, model_validator

from meditron.core.config import InputKind, NonSemantic, StageConfig, translate_usage_errors
from meditron.core.units import parse_bytes
from meditron.release.types import GGUFType, Mix

__all__ = ["QuantizeConfig"]


class QuantizeConfig(StageConfig):
    """The recipe's `[quantize]` table."""

    exports_model = True

    on: str = "pretrain"
    """Reference of the model to quantize."""

    types: tuple[GGUFType, ...] = ("Q4_K_M",)
    """Types of the GGUF files, one file for each type."""

    target_size: str | None = None
    """Size of one more file, such as `4GB`, with the mix of types that loses least; needs `calibrate`.
    `types` is empty by default then."""

    mix: Mix = "current"
    """Rules for the types of the matrices: llama.cpp's current ones, or those of late 2023."""

    imatrix: str | None = None
    """File of an importance matrix, which the quantizers weigh errors with (`meditron imatrix`)."""

    calibrate: str | None = None
    """Text from which an importance matrix is computed first, instead of `imatrix`."""

    threads: Annotated[int | None, NonSemantic] = Field(default=None, ge=1)
    """Threads; all cores by default. The files do not depend on it."""

    @model_validator(mode="before")
    @classmethod
    def _write_no_other_file_by_default(cls, fields: object) -> object:
        if isinstance(fields, dict) and fields.get("target_size") is not None and "types" not in fields:
            return fields | {"types": ()}
        return fields

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

    @field_validator("target_size")
    @classmethod
    def _target_size_is_a_size(cls, size: str | None) -> str | None:
        if size is not None:
            with translate_usage_errors():
                parse_bytes(size, "target_size")
        return size

    @model_validator(mode="after")
    def _check_combinations(self) -> Self:
        if not self.types and self.target_size is None:
            raise ValueError("types: at least 1 type is needed")
        if self.target_size is not None and self.calibrate is None:
            raise ValueError("target_size needs calibrate, a text on which the loss of types is measured")
        if self.imatrix is not None and self.calibrate is not None:
            raise ValueError("imatrix and calibrate exclude each other: both give the importance matrix")
        return self

    def inputs(self) -> dict[str, str]:
        """Return the stage's inputs: the model to quantize, and an importance matrix or its text."""
        files = {"imatrix": self.imatrix, "calibrate": self.calibrate}
        return {"model": self.on} | {name: file for name, file in files.items() if file is not None}

    def selectors(self) -> tuple[str, ...]:
        """Return the types and the target size: each file is selected by its type."""
        return self.types if self.target_size is None else (*self.types, self.target_size)

    def input_kinds(self) -> dict[str, InputKind]:
        """Return the kind of the stage's input, a model."""
        return {"model": InputKind("model")}
