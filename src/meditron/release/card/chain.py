"""The manifests that a card describes: those of its input stages, and of all their dependencies."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from meditron.core.errors import DriftError
from meditron.store.manifest import Artifact, InputRecord, Manifest, read_manifest

__all__ = ["StageChain", "read_chain", "stage_name"]

_STAGE = re.compile(r"[A-Za-z0-9_.-]+")
_PARENT_KEYS = ("model", "base")


@dataclass(frozen=True, slots=True)
class StageChain:
    """The manifests of a run's stages by stage name, each stage after its inputs."""

    stages: Mapping[str, Manifest]

    def parent_model(self, manifest: Manifest) -> InputRecord | None:
        """Return the model that a stage started from; None for seeded weights."""
        return next((manifest.inputs[key] for key in _PARENT_KEYS if key in manifest.inputs), None)

    def lineage(self, name: str) -> list[Manifest]:
        """Return the stages that produced a model, in order; the last one is `name`."""
        model_stages: list[Manifest] = []
        while name in self.stages:
            model_stages.insert(0, self.stages[name])
            parent = self.parent_model(self.stages[name])
            name = stage_name(parent.reference) if parent else ""
        return model_stages

    def with_dependencies(self, names: Iterable[str]) -> list[Manifest]:
        """Return the stages of these names and all their dependencies, in order."""
        chosen = set(names)
        # Stages are visited from the last to the first, so that one pass reaches the dependencies of
        # dependencies.
        for name in reversed(list(self.stages)):
            if name in chosen:
                chosen |= {stage_name(record.reference) for record in self.stages[name].inputs.values()}
        return [manifest for name, manifest in self.stages.items() if name in chosen]

    def external_inputs(self) -> dict[str, InputRecord]:
        """Return the external inputs (base, sources) by name."""
        return {
            key: record
            for manifest in self.stages.values()
            for key, record in manifest.inputs.items()
            if stage_name(record.reference) not in self.stages
        }


def read_chain(artifacts: Iterable[Artifact]) -> StageChain:
    """Read the manifests of `artifacts` and of all their dependencies.

    A manifest has the names and digests of its inputs. The stages of a run are in one folder, so an input is
    found by its name and verified by its digest.

    Raises:
        DriftError: A stage was built from another version of an input than the one in the run's folder.
        InputError: A manifest is damaged.
    """
    stages: dict[str, Manifest] = {}
    for artifact in artifacts:
        if artifact.manifest is not None:
            _add_with_dependencies(artifact.path.parent, artifact.manifest, stages)
    return StageChain(stages)


def _add_with_dependencies(run: Path, manifest: Manifest, stages: dict[str, Manifest]) -> None:
    if manifest.name in stages:
        return
    # Dependencies are added first, because the order of the dict is the order of the chain.
    for record in manifest.inputs.values():
        name = stage_name(record.reference)
        below = read_manifest(run / name) if name else None
        if below is None:
            continue
        if below.digest != record.digest:
            raise DriftError(
                f"{manifest.name} was built from another {name} than the one in {run}: the card would mix "
                "two runs",
                hint=f"rebuild it from this one: meditron run … --rebuild {manifest.name}",
            )
        _add_with_dependencies(run, below, stages)
    stages[manifest.name] = manifest


def stage_name(reference: str) -> str:
    """Return the stage name in a reference (`quantize` in `quantize:F16`); empty if it names no stage."""
    name = reference.partition(":")[0]
    return name if _STAGE.fullmatch(name) and name not in (".", "..") else ""
