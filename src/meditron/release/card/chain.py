"""The manifests a card is made from: those of the stages named to it, and of all below them."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from meditron.core.errors import DriftError
from meditron.store.artifact import Artifact
from meditron.store.manifest import InputRecord, Manifest, read_manifest

__all__ = ["Chain", "read_chain"]

_STAGE = re.compile(r"[A-Za-z0-9_.-]+")
_BEGAN_WITH = ("model", "base")


@dataclass(frozen=True, slots=True)
class Chain:
    """Stages by name, each after those it was made from."""

    stages: Mapping[str, Manifest]

    def parent(self, manifest: Manifest) -> InputRecord | None:
        """The model that a stage began with; None for a stage that began with none."""
        return next((manifest.inputs[key] for key in _BEGAN_WITH if key in manifest.inputs), None)

    def line(self, name: str) -> list[Manifest]:
        """The stages that a model went through, from the base on, up to `name`."""
        line: list[Manifest] = []
        while name in self.stages:
            line.insert(0, self.stages[name])
            parent = self.parent(self.stages[name])
            name = _stage(parent.reference) if parent else ""
        return line

    def below(self, names: Iterable[str]) -> list[Manifest]:
        """The stages named and all that they were made from, in order."""
        wanted = set(names)
        for name in reversed(list(self.stages)):
            if name in wanted:
                wanted |= {_stage(record.reference) for record in self.stages[name].inputs.values()}
        return [manifest for name, manifest in self.stages.items() if name in wanted]

    def outside(self) -> dict[str, InputRecord]:
        """What no stage made: the base, the sources, by the names they were given under."""
        return {
            key: record
            for manifest in self.stages.values()
            for key, record in manifest.inputs.items()
            if _stage(record.reference) not in self.stages
        }


def read_chain(artifacts: Iterable[Artifact]) -> Chain:
    """Read the manifests of `artifacts` and of every stage below them.

    A manifest names its inputs and holds their digests; the stages of a run lie beside each other, so that
    one is found by its name and proven by its digest.

    Raises:
        DriftError: a stage was made from another one than the one that lies beside it: what is told of the
            one would not be true of the other.
        InputError: a manifest is damaged.
    """
    stages: dict[str, Manifest] = {}
    for artifact in artifacts:
        if artifact.manifest is not None:
            _visit(artifact.path.parent, artifact.manifest, stages)
    return Chain(stages)


def _visit(run: Path, manifest: Manifest, stages: dict[str, Manifest]) -> None:
    if manifest.name in stages:
        return
    for record in manifest.inputs.values():
        name = _stage(record.reference)
        below = read_manifest(run / name) if name else None
        if below is None:
            continue
        if below.digest != record.digest:
            raise DriftError(
                f"{manifest.name} was made from another {name} than lies beside it: a card would mix them",
                hint=f"meditron run … --rebuild {manifest.name} makes it from this one",
            )
        _visit(run, below, stages)
    stages[manifest.name] = manifest


def _stage(reference: str) -> str:
    """The stage that a reference names, if it names one: `quantize` of `quantize:F16`."""
    name = reference.partition(":")[0]
    return name if _STAGE.fullmatch(name) and name not in (".", "..") else ""
