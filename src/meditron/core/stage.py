"""The base of a stage's configuration: what every table of a recipe has in common."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from meditron.core.config import Config

__all__ = ["InputKind", "StageConfig"]


@dataclass(frozen=True, slots=True)
class InputKind:
    """The kind of file that an input from outside must be, so that it can be opened before the run."""

    name: Literal["model", "documents", "questions", "conversations"]
    table: Config | None = None
    """The input's own table of the recipe, if it has one: a source's format and globs."""


class StageConfig(Config, ABC):
    """A stage's table in a recipe."""

    seed: int | None = Field(default=None, ge=0, lt=1 << 63)
    """Seed of everything random in this stage; the recipe's own when absent."""

    @abstractmethod
    def inputs(self) -> dict[str, str]:
        """Input name → reference: `base`, a stage of the recipe (`pretrain`, `quantize:F16`) or a source."""

    def input_kinds(self) -> dict[str, InputKind]:
        """Return input name → what its file must be; inputs left out are not opened before the run."""
        return {}

    def cross_stage_errors(self, stages: "Mapping[str, StageConfig]") -> dict[str, str]:
        """Key → why its value does not fit the recipe's other stages, which are told by name."""
        return {}

    def selectors(self) -> tuple[str, ...]:
        """Return the names by which references select one of the stage's files: `F16` in `quantize:F16`."""
        return ()

    def licences(self) -> dict[str, str]:
        """Input name → licence, for the sources this stage brings in."""
        return {}
