"""The base of a stage's configuration: what every table of a recipe has in common."""

from abc import ABC, abstractmethod
from collections.abc import Mapping

from pydantic import Field

from meditron.ground.config import Config

__all__ = ["StageConfig"]


class StageConfig(Config, ABC):
    """A stage's table in a recipe."""

    seed: int | None = Field(default=None, ge=0, lt=1 << 63)
    """Seed of everything random in this stage; the recipe's own when absent."""

    @abstractmethod
    def inputs(self) -> dict[str, str]:
        """Input name → reference: `base`, a stage of the recipe (`pretrain`, `quantize:F16`) or a source."""

    def misfits(self, stages: "Mapping[str, StageConfig]") -> dict[str, str]:
        """Key → why its value does not fit the recipe's other stages, which are told by name."""
        return {}

    def licences(self) -> dict[str, str]:
        """Input name → licence, for the sources this stage brings in."""
        return {}
