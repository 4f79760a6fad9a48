"""The config of the card stage."""

import re
from typing import Annotated, Self

from pydantic import Field, StringConstraints, model_validator

from meditron.core.config import Config, StageConfig
from meditron.release.card.licence import inherited_licence_problem

__all__ = ["Assumption", "CardConfig", "EnergyConfig"]


_HUB_LICENCE = r"^[a-z0-9][a-z0-9.-]*$"


class Assumption(Config):
    """An assumed number that was not measured, with its source."""

    value: float = Field(ge=0)
    """The number."""

    source: str = Field(min_length=1)
    """A paper, a data sheet, or a meter."""


_GREEN = "Lannelongue et al. 2021, doi:10.1002/advs.202100707"


class EnergyConfig(Config):
    """The assumptions of the card's energy estimate; none of them was measured."""

    watts_per_core: Assumption = Assumption(value=12.0, source=f"average processor core, busy: {_GREEN}")
    """Power of one busy processor core, W."""

    watts_per_gb: Assumption = Assumption(value=0.3725, source=f"memory, used or not: {_GREEN}")
    """Power of the memory, W per gigabyte."""

    watts_per_gpu: Assumption = Assumption(
        value=400.0, source="board power of an A100 SXM, NVIDIA's data sheet"
    )
    """Power of one busy GPU, W."""

    pue: Assumption = Assumption(value=1.67, source=f"average data centre: {_GREEN}")
    """Power usage effectiveness: power of the whole data centre divided by that of the computers."""

    grid: Assumption = Assumption(value=0.475, source=f"average of the world's grids: {_GREEN}")
    """Carbon intensity of the electricity, kg CO2e per kWh."""


class CardConfig(StageConfig):
    """The recipe's `[card]` table: the described model, and the facts that no manifest has."""

    of: str | None = None
    """Reference of the released model; absent: the model of the quantized files."""

    quantize: str = "quantize"
    """The stage of its quantized files; empty: none."""

    evaluate: str = "evaluate"
    """The stage that evaluated it; empty: none."""

    name: str | None = Field(default=None, min_length=1)
    """Name of the model; absent: the run's name."""

    authors: str | None = Field(default=None, min_length=1)
    """Authors to cite."""

    license: str | None = Field(default=None, pattern=_HUB_LICENCE)
    """Licence of the released weights, as the hub names it (`apache-2.0`, `llama2`); absent: not stated."""

    license_name: str | None = Field(default=None, min_length=1)
    """Name of a licence that the hub does not list, with `license = "other"`."""

    license_link: str | None = Field(default=None, min_length=1)
    """Address of that licence."""

    base_model: str | None = Field(default=None, pattern=r"^[\w.-]+/[\w.-]+$")
    """The base model's name on the hub, `org/name`; absent: the card has only the origin of its file."""

    base_license: str | None = Field(default=None, min_length=1)
    """The base model's licence, as the hub names it; absent: "not stated". It is also that of the released
    weights if `license` is absent."""

    license_file: str | None = Field(default=None, min_length=1)
    """File with the text of the licence, copied beside the card as LICENSE; absent: that of the base's
    folder, if it has one."""

    eu_summary: bool = False
    """Also write a draft of the public summary of training content that the EU AI Act requires."""

    datasets: tuple[Annotated[str, StringConstraints(pattern=r"^[\w.-]+(/[\w.-]+)?$")], ...] = ()
    """Names of the training data on the hub."""

    tags: tuple[str, ...] = ()
    """Additional tags for the hub."""

    intended: tuple[str, ...] = ()
    """Additional intended uses, one sentence each."""

    out_of_scope: tuple[str, ...] = ()
    """Additional out-of-scope uses, one sentence each."""

    limitations: tuple[str, ...] = ()
    """Additional limitations, one sentence each."""

    energy: EnergyConfig = EnergyConfig()
    """Assumptions of the energy estimate."""

    @model_validator(mode="after")
    def _require_model_and_licence(self) -> Self:
        if not (self.of or self.quantize):
            raise ValueError("of: without quantized files, name the model that the card describes")
        if self.license_name and self.license != "other":
            raise ValueError('license_name: requires license = "other"')
        if problem := inherited_licence_problem(self.base_license, self.license):
            raise ValueError(f"license: {problem}")
        return self

    @property
    def released_license(self) -> str | None:
        """The licence of the released weights: `license`, else the base's if the hub has a name like it."""
        if self.license or not self.base_license:
            return self.license
        return self.base_license if re.fullmatch(_HUB_LICENCE, self.base_license) else None

    def inputs(self) -> dict[str, str]:
        """Return the inputs: the model if `of` names it, quantized files, evaluation, text of the licence."""
        named = {
            "model": self.of,
            "quantize": self.quantize,
            "evaluate": self.evaluate,
            "license": self.license_file,
        }
        return {name: reference for name, reference in named.items() if reference}
