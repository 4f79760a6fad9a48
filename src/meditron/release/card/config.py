"""What the card stage is told: which model it is of, and what no manifest knows of it."""

from typing import Annotated, Self

from pydantic import Field, StringConstraints, model_validator

from meditron.core.config import Config
from meditron.core.stage import StageConfig

__all__ = ["Assumption", "CardConfig", "EnergyConfig"]


class Assumption(Config):
    """A number that was not measured, with where it is from."""

    value: float = Field(ge=0)
    """The number."""

    source: str = Field(min_length=1)
    """Where it is from: a paper, a data sheet, a meter."""


_GREEN = "Lannelongue et al. 2021, doi:10.1002/advs.202100707"


class EnergyConfig(Config):
    """What the card's estimate of energy assumes: nothing of it was measured."""

    watts_per_core: Assumption = Assumption(value=12.0, source=f"average processor core, busy: {_GREEN}")
    """Draw of one busy processor core, W."""

    watts_per_gb: Assumption = Assumption(value=0.3725, source=f"memory, used or not: {_GREEN}")
    """Draw of the memory, W a gigabyte."""

    watts_per_gpu: Assumption = Assumption(
        value=400.0, source="board power of an A100 SXM, NVIDIA's data sheet"
    )
    """Draw of one busy GPU, W."""

    pue: Assumption = Assumption(value=1.67, source=f"average data centre: {_GREEN}")
    """Power usage effectiveness: all that the building draws by what the computers draw."""

    grid: Assumption = Assumption(value=0.475, source=f"average of the world's grids: {_GREEN}")
    """Carbon intensity of the electricity, kg CO2e a kWh."""


class CardConfig(StageConfig):
    """The recipe's `[card]` table: which model the card is of, and what no manifest knows of it."""

    of: str | None = None
    """Reference of the released model; absent: the one that the quantized files were made from."""

    quantize: str = "quantize"
    """The stage of its quantized files; empty: none."""

    evaluate: str = "evaluate"
    """The stage that evaluated it; empty: none."""

    name: str | None = Field(default=None, min_length=1)
    """What the model is called; absent: as the run is."""

    authors: str | None = Field(default=None, min_length=1)
    """Whom to cite."""

    license: str | None = Field(default=None, pattern=r"^[a-z0-9][a-z0-9.-]*$")
    """Licence of the released weights, as the hub names it (`apache-2.0`, `llama2`); absent: not stated."""

    license_name: str | None = Field(default=None, min_length=1)
    """Name of a licence that the hub has none for, with `license = "other"`."""

    license_link: str | None = Field(default=None, min_length=1)
    """Where that licence can be read."""

    base_model: str | None = Field(default=None, pattern=r"^[\w.-]+/[\w.-]+$")
    """The base model's name on the hub, `org/name`; absent: the card tells where its file came from only."""

    base_license: str | None = Field(default=None, min_length=1)
    """The base model's licence; absent: the card says that it is not stated."""

    datasets: tuple[Annotated[str, StringConstraints(pattern=r"^[\w.-]+(/[\w.-]+)?$")], ...] = ()
    """The training data's names on the hub, of those that are there."""

    tags: tuple[str, ...] = ()
    """More tags for the hub."""

    intended: tuple[str, ...] = ()
    """More uses that it is meant for, a sentence each."""

    out_of_scope: tuple[str, ...] = ()
    """More uses that it is not meant for, a sentence each."""

    limitations: tuple[str, ...] = ()
    """More limits to know of, a sentence each."""

    energy: EnergyConfig = EnergyConfig()
    """What the estimate of energy assumes."""

    @model_validator(mode="after")
    def _says_what_it_is_of_and_under_which_licence(self) -> Self:
        if not (self.of or self.quantize):
            raise ValueError("of: without quantized files, name the model that the card is of")
        if self.license_name and self.license != "other":
            raise ValueError('license_name: goes with license = "other"')
        return self

    def inputs(self) -> dict[str, str]:
        """The released model where it is named, its quantized files, its evaluation."""
        named = {"model": self.of, "quantize": self.quantize, "evaluate": self.evaluate}
        return {name: reference for name, reference in named.items() if reference}
