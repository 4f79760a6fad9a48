"""The work of one stage as data, so that several processes can do it together."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from meditron.core.config import StageConfig
from meditron.store.manifest import Artifact, Manifest

__all__ = ["ONE_PROCESS", "OneProcess", "Ranks", "StageTask", "load_object"]


def load_object(address: str) -> Any:  # noqa: ANN401  # whatever the module defines
    """Import `package.module:name`; the name may be nested."""
    module, _, name = address.partition(":")
    value: Any = import_module(module)
    for part in name.split("."):
        value = getattr(value, part)
    return value


@dataclass(frozen=True, slots=True)
class StageTask:
    """The work of one stage: its function and the function's arguments."""

    work: str
    """`package.module:function`, called as `function(config, inputs, out) -> metrics`."""
    config: StageConfig
    inputs: Mapping[str, Artifact]
    out: Path
    """The stage's folder."""

    def run(self) -> dict[str, Any]:
        """Do the work in this process and return the stage's metrics."""
        work: Callable[..., dict[str, Any]] = load_object(self.work)
        return work(self.config, self.inputs, self.out)

    def to_json(self) -> str:
        """Return the task as one line of JSON; paths stay relative to the ranks' common working folder."""
        kind = type(self.config)
        inputs = {
            name: {
                "name": artifact.name,
                "path": str(artifact.path),
                "digest": artifact.digest,
                "manifest": artifact.manifest and artifact.manifest.model_dump(mode="json"),
                "selector": artifact.selector,
                "hub_name": artifact.hub_name,
            }
            for name, artifact in self.inputs.items()
        }
        return json.dumps(
            {
                "work": self.work,
                "config_class": f"{kind.__module__}:{kind.__qualname__}",
                "config": self.config.model_dump(mode="json", by_alias=True),
                "inputs": inputs,
                "out": str(self.out),
            }
        )

    @classmethod
    def from_json(cls, text: str) -> "StageTask":
        """Read a task that `to_json` wrote."""
        value = json.loads(text)
        inputs = {
            name: Artifact(
                fields["name"],
                Path(fields["path"]),
                fields["digest"],
                fields["manifest"] and Manifest.model_validate(fields["manifest"]),
                fields["selector"],
                fields["hub_name"],
            )
            for name, fields in value["inputs"].items()
        }
        # From JSON and not from Python values: only JSON's validation accepts lists for tuples.
        config = load_object(value["config_class"]).model_validate_json(
            json.dumps(value["config"]), strict=True
        )
        return cls(value["work"], config, inputs, Path(value["out"]))


class Ranks(Protocol):
    """The processes that a distributed stage runs on."""

    @property
    def size(self) -> int:
        """Number of processes."""
        ...

    def run(self, task: StageTask) -> dict[str, Any]:
        """Do a distributed stage's work on all ranks; return the metrics of rank 0."""
        ...


class OneProcess:
    """The ranks of a run without a launcher: this process alone."""

    size = 1

    def run(self, task: StageTask) -> dict[str, Any]:
        """Do the work in this process."""
        return task.run()


ONE_PROCESS = OneProcess()
