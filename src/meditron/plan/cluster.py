"""A cluster of GPUs, read from a TOML file, and the constants of its kind of GPU."""

import tomllib
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from meditron.core.config import Config, first_problem
from meditron.core.errors import InputError, UsageError
from meditron.plan.speed import Constants, Hardware
from meditron.store.files import translate_read_errors

__all__ = ["Cluster", "GpuKind", "load_cluster", "load_constants", "with_nodes"]

GpuKind = Literal["a100", "h100", "h200", "other"]
_Count = Annotated[int, Field(ge=1, le=1 << 20)]
_Rate = Annotated[float, Field(ge=1, le=1e18)]


class Cluster(Config):
    """Nodes of equal GPUs, their rates as the vendor states them, their power and their price."""

    title: str
    """Name of the GPU or of the machine in the plan."""
    gpu: GpuKind
    """Kind of GPU: selects the achieved fractions of the peak rates."""
    nodes: _Count
    """Number of nodes."""
    gpus_per_node: _Count
    """GPUs of a node."""
    memory_bytes: Annotated[int, Field(ge=1, le=1 << 50)]
    """Memory of a GPU."""
    peak_flops: _Rate
    """Dense bfloat16 operations per second of a GPU."""
    memory_bandwidth: _Rate
    """Bytes per second of a GPU's memory."""
    intra_node_bandwidth: _Rate
    """Bytes per second that a GPU sends to the others of its node, in one direction."""
    inter_node_bandwidth: _Rate
    """Bytes per second of a node's network links, divided by its GPUs, in one direction."""
    watts_per_gpu: Annotated[float, Field(gt=0, le=1e5)]
    """Power of a GPU."""
    node_overhead: Annotated[float, Field(ge=1, le=10)]
    """Power of a node divided by the power of its GPUs."""
    pue: Annotated[float, Field(ge=1, le=10)]
    """Power usage effectiveness: energy of the site divided by the energy of its computers."""
    kgco2e_per_kwh: Annotated[float, Field(ge=0, le=10)]
    """Carbon intensity of the electricity, in kg CO2e per kWh."""
    price_per_gpu_hour: Annotated[float, Field(ge=0, le=1e4)]
    """Price of a GPU for an hour."""
    currency: str = "USD"
    """Currency of the price."""

    @property
    def gpus(self) -> int:
        """Number of GPUs."""
        return self.nodes * self.gpus_per_node

    @property
    def name(self) -> str:
        """The cluster's size and GPU: `16 nodes × 8 NVIDIA A100-SXM4-80GB`."""
        nodes = "1 node" if self.nodes == 1 else f"{self.nodes} nodes"
        return f"{nodes} × {self.gpus_per_node} {self.title}"

    @property
    def hardware(self) -> Hardware:
        """The rates that the speed model reads."""
        return Hardware(
            peak_flops=self.peak_flops,
            memory_bandwidth=self.memory_bandwidth,
            intra_node_bandwidth=self.intra_node_bandwidth,
            inter_node_bandwidth=self.inter_node_bandwidth,
            gpus_per_node=self.gpus_per_node,
        )

    def kgco2e(self, gpu_hours: float) -> float:
        """Return the emissions of a number of GPU-hours, in kg CO2e.

        The formula of Meditron's model card: power of the GPUs · node overhead · PUE · carbon intensity. For
        the published run: 0.4 kW · 42,496 h · 1.625 · 1.1 · 0.016 kg/kWh = 486 kg.
        """
        # GPUs are assumed busy at their limit, as on the card; measured power is usually lower.
        kwh = self.watts_per_gpu / 1000 * gpu_hours * self.node_overhead * self.pue
        return kwh * self.kgco2e_per_kwh


def load_cluster(path: Path) -> Cluster:
    """Read a cluster file.

    Raises:
        UsageError: there is no such file, or it is a folder.
        InputError: the file is not TOML, or a value is missing, unknown or out of range.
    """
    if not path.is_file():
        problem = "a folder, not a cluster file" if path.is_dir() else "no such file"
        raise UsageError(
            f"{path}: {problem}", hint="clusters that ship with the project: recipes/clusters/*.toml"
        )
    try:
        with translate_read_errors(path), path.open("rb") as file:
            table = tomllib.load(file)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InputError(path, f"not valid TOML: {error}") from error
    try:
        # Strict, as recipes are: `true` is no number.
        return Cluster.model_validate(table, strict=True)
    except ValidationError as error:
        place, message = first_problem(error)
        raise InputError(
            path, message, place=place, hint=f"keys: {', '.join(Cluster.model_fields)}"
        ) from error


def with_nodes(cluster: Cluster, nodes: int) -> Cluster:
    """Return the cluster with another number of nodes."""
    return cluster.model_copy(update={"nodes": nodes})


@cache
def load_constants(gpu: GpuKind) -> Constants:
    """Return the speed model's constants for a kind of GPU, from `constants.toml`."""
    text = files("meditron.plan").joinpath("constants.toml").read_text(encoding="utf-8")
    table: dict[str, Any] = tomllib.loads(text)
    return Constants(**table["common"], **table["gpu"][gpu])
