"""An estimate of the stages' energy: seconds × assumed watts × power usage effectiveness."""

from collections.abc import Sequence
from typing import Any

from meditron.release.card.config import EnergyConfig
from meditron.store.manifest import Manifest

__all__ = ["estimate_energy"]

_KWH = 3.6e6  # joules


def estimate_energy(stages: Sequence[Manifest], config: EnergyConfig) -> dict[str, Any]:
    """Estimate the energy of each stage, as if every core and GPU of its machine were busy all the time.

    The method of Lannelongue, Grealey and Inouye, "Green Algorithms: Quantifying the Carbon Footprint of
    Computation", Advanced Science 2021. A stage's seconds are those of its last attempt.

    Returns:
        `kwh`, `kgco2e` (kg CO2e) and `seconds` in total; `stages`: name → the same and `watts`.
    """
    estimates = {stage.name: _stage_energy(stage, config) for stage in stages}
    sums = {key: sum(stage[key] for stage in estimates.values()) for key in ("kwh", "kgco2e", "seconds")}
    return {**sums, "stages": estimates}


def _stage_energy(stage: Manifest, config: EnergyConfig) -> dict[str, float]:
    machine = stage.machine
    watts = (
        machine.get("cores", 0) * config.watts_per_core.value
        + (machine.get("memory_bytes") or 0) / 1e9 * config.watts_per_gb.value
        + len(machine.get("gpus", ())) * config.watts_per_gpu.value
    )
    seconds = float(stage.metrics.get("seconds", (stage.ended - stage.started).total_seconds()))
    kwh = seconds * watts * config.pue.value / _KWH
    return {"seconds": seconds, "watts": watts, "kwh": kwh, "kgco2e": kwh * config.grid.value}
