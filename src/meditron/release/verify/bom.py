"""A bill of materials in CycloneDX's form (ML-BOM) from the manifests of a run.

It lists the released files with their SHA-256, the stages that made them, the base model and the sources with
their licences, and the libraries. https://cyclonedx.org/capabilities/mlbom/
"""

from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import NAMESPACE_URL, uuid5

from meditron.core.errors import MissingExtra, UsageError
from meditron.release.card.chain import StageChain, read_chain, stage_name
from meditron.store.files import atomic_write
from meditron.store.manifest import Artifact, Manifest, read_manifest
from meditron.store.new_files import refuse_existing
from meditron.version import __version__

if TYPE_CHECKING:
    from cyclonedx.model.bom import Bom
    from cyclonedx.model.component import Component

__all__ = ["write_bom"]

_MODEL_STAGES = frozenset({"pretrain", "finetune", "quantize"})
_SHA256 = "sha256:"


def write_bom(folder: Path, out: Path) -> None:
    """Write the bill of materials of a stage's folder as CycloneDX JSON; the same stage gives the same bytes.

    Raises:
        UsageError: the folder is not a finished stage, or the output exists.
        DriftError: a stage was built from another version of an input than the one in the run.
        MissingExtra: cyclonedx-python-lib is not installed.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        raise UsageError(f"{folder}: no manifest.json; a bill of materials describes a stage of a run")
    if find_spec("cyclonedx") is None:
        raise MissingExtra("cyclonedx", "bom")
    refuse_existing([out])
    from cyclonedx.model.bom import Bom, BomMetaData
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.model.tool import ToolRepository
    from cyclonedx.output.json import JsonV1Dot6

    folder = folder.resolve()
    chain = read_chain([Artifact(manifest.name, folder, manifest.digest, manifest)])
    stages = {name: _stage_component(each, folder.parent.name) for name, each in chain.stages.items()}
    released = stages[manifest.name]
    released.components = _file_components(manifest)
    libraries = [_library_component(name, version) for name, version in sorted(manifest.libraries.items())]
    tool = Component(name="meditron", version=__version__, type=ComponentType.APPLICATION)
    bom = Bom(
        serial_number=uuid5(NAMESPACE_URL, f"{_SHA256}{manifest.digest}"),
        metadata=BomMetaData(
            component=released, timestamp=manifest.ended, tools=ToolRepository(components=[tool])
        ),
        components=[each for name, each in stages.items() if name != manifest.name],
    )
    _add_inputs(bom, chain, stages)
    for library in libraries:
        bom.components.add(library)
    bom.register_dependency(released, libraries)
    with atomic_write(out, "w") as file:
        file.write(JsonV1Dot6(bom).output_as_string(indent=2) + "\n")


def _stage_component(manifest: Manifest, run: str) -> "Component":
    from cyclonedx.model import Property
    from cyclonedx.model.component import Component, ComponentType

    is_model = manifest.kind in _MODEL_STAGES
    properties = {
        "meditron:stage": manifest.name,
        "meditron:fingerprint": manifest.fingerprint,
        "meditron:digest": manifest.digest,
        "meditron:seed": str(manifest.seed),
        "meditron:commit": str(manifest.git.commit),
    }
    return Component(
        name=f"{run}/{manifest.name}",
        version=manifest.digest[:16],
        type=ComponentType.MACHINE_LEARNING_MODEL if is_model else ComponentType.DATA,
        bom_ref=f"stage:{manifest.name}",
        properties=[Property(name=name, value=value) for name, value in properties.items()],
    )


def _file_components(manifest: Manifest) -> "list[Component]":
    from cyclonedx.model import HashAlgorithm, HashType
    from cyclonedx.model.component import Component, ComponentType

    return [
        Component(
            name=record.path,
            type=ComponentType.FILE,
            bom_ref=f"file:{record.path}",
            hashes=[HashType(alg=HashAlgorithm.SHA_256, content=record.sha256)],
        )
        for record in manifest.files
        if record.content
    ]


def _library_component(name: str, version: str) -> "Component":
    from cyclonedx.model.component import Component, ComponentType
    from packageurl import PackageURL

    return Component(
        name=name,
        version=version,
        type=ComponentType.LIBRARY,
        bom_ref=f"library:{name}",
        purl=PackageURL("pypi", name=name, version=version),
    )


def _add_inputs(bom: "Bom", chain: StageChain, stages: "dict[str, Component]") -> None:
    """Add the external inputs of all stages, and the dependencies of each stage on its inputs."""
    externals: dict[str, Component] = {}
    for name, manifest in chain.stages.items():
        inputs: list[Component] = []
        for key, record in manifest.inputs.items():
            if (below := stages.get(stage_name(record.reference))) is not None:
                inputs.append(below)
                continue
            if record.reference not in externals:
                licence = manifest.licences.get(key)
                externals[record.reference] = _source_component(key, record.reference, record.digest, licence)
                bom.components.add(externals[record.reference])
            inputs.append(externals[record.reference])
        bom.register_dependency(stages[name], _unique(inputs))


def _source_component(key: str, reference: str, digest: str, licence: str | None) -> "Component":
    from cyclonedx.model import HashAlgorithm, HashType, Property
    from cyclonedx.model.component import Component, ComponentType
    from cyclonedx.model.license import DisjunctiveLicense

    content = digest.removeprefix(_SHA256)[:64]
    is_hash = digest.startswith(_SHA256) and len(content) == 64 and set(content) <= set("0123456789abcdef")
    return Component(
        name=reference,
        type=ComponentType.MACHINE_LEARNING_MODEL if key in ("base", "model") else ComponentType.DATA,
        bom_ref=f"source:{reference}",
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=content)] if is_hash else None,
        licenses=[DisjunctiveLicense(name=licence)] if licence else None,
        properties=[
            Property(name="meditron:input", value=key),
            Property(name="meditron:identity", value=digest),
        ],
    )


def _unique(components: "Iterable[Component]") -> "list[Component]":
    return list({str(component.bom_ref): component for component in components}.values())
