"""Checks of an artifact's provenance: the manifests of the stages it was made from, and its ancestry."""

from collections.abc import Iterator
from pathlib import Path

from meditron.core.errors import MeditronError
from meditron.release.card.chain import stage_name
from meditron.store.ancestry import Ancestry, read_ancestry
from meditron.store.files import path_exists
from meditron.store.gguf_parts import gguf_digest
from meditron.store.manifest import FILE_NAME, InputRecord, Manifest, read_manifest, verify_artifact
from meditron.store.models import ModelFiles, resolve_model

__all__ = ["provenance_problems"]

_PARENT_KEYS = ("model", "base")


def provenance_problems(folder: Path) -> Iterator[str]:
    """Yield the breaks in the chain from an artifact to its sources, as far as their files exist.

    Of the artifact and of each stage it was made from, if that is beside it in the run's folder, the files
    are compared with the manifest (as in `verify_artifact`), and the manifest's digest with the one that the
    later stage recorded; of each local source the content. The ancestry record of a model must continue the
    one of the model it was made from.
    """
    seen: set[Path] = set()
    pending = [folder]
    while pending:
        stage = pending.pop(0)
        if stage in seen:
            continue
        seen.add(stage)
        try:
            manifest = read_manifest(stage)
            if manifest is None:
                continue
            for problem in verify_artifact(stage):
                yield f"{stage / FILE_NAME}: {problem}"
        except MeditronError as error:
            yield error.message
            continue
        for key, record in manifest.inputs.items():
            parent = stage.parent / stage_name(record.reference)
            if stage_name(record.reference) and (parent / FILE_NAME).is_file():
                yield from _stage_problems(stage, key, record, parent)
                pending.append(parent)
            else:
                yield from _source_problems(stage, key, record)
        yield from _ancestry_problems(stage, manifest)


def _stage_problems(stage: Path, key: str, record: InputRecord, parent: Path) -> Iterator[str]:
    try:
        manifest = read_manifest(parent)
    except MeditronError:  # reported when the parent itself is visited
        return
    if manifest is not None and manifest.digest != record.digest:
        yield (
            f"{stage / FILE_NAME} (inputs.{key}): was made from another {parent.name} than the one in "
            f"{parent}: digest {record.digest[:16]}…, expected {manifest.digest[:16]}…"
        )


def _source_problems(stage: Path, key: str, record: InputRecord) -> Iterator[str]:
    """Yield a difference between a local source and its recorded SHA-256."""
    path = Path(record.reference.partition("#")[0])
    digest = record.digest.removeprefix("sha256:").partition("#")[0].partition("+")[0].partition(":")[0]
    if not record.digest.startswith("sha256:") or not path_exists(path):
        return
    manifest = read_manifest(path) if path.is_dir() else None
    actual = manifest.digest if manifest else gguf_digest(path)
    if actual != digest:
        yield (
            f"{stage / FILE_NAME} (inputs.{key}): {path} has changed: SHA-256 {actual[:16]}…, "
            f"recorded {digest[:16]}…"
        )


def _ancestry_problems(stage: Path, manifest: Manifest) -> Iterator[str]:
    """Yield a break between a model's ancestry record and that of the stage it was made from."""
    parent_record = next((manifest.inputs[key] for key in _PARENT_KEYS if key in manifest.inputs), None)
    parent = stage.parent / stage_name(parent_record.reference) if parent_record else None
    if parent is None or not stage_name(parent_record.reference if parent_record else ""):
        return
    if not (parent / FILE_NAME).is_file():
        return
    for files in _models_in(stage):
        try:
            ours, theirs = read_ancestry(files), _first_ancestry(parent)
        except MeditronError:  # a damaged file is reported by the checks of its format or of its digest
            continue
        if theirs is not None and not _continues(ours, theirs):
            yield f"{files.path}: the ancestry record does not continue that of {parent}"


def _models_in(stage: Path) -> list[ModelFiles]:
    if (stage / "config.json").is_file():
        return [ModelFiles(str(stage), "hf", stage)]
    return [ModelFiles(str(file), "gguf", file) for file in sorted(stage.glob("*.gguf"))]


def _first_ancestry(folder: Path) -> Ancestry | None:
    """Return the record of a stage's model; None for a stage without a model, such as a corpus."""
    models = _models_in(folder)
    return read_ancestry(resolve_model(models[0].spec)) if models else None


def _continues(ours: Ancestry | None, theirs: Ancestry) -> bool:
    """Return whether one record is the other with further trainings."""
    if ours is None:
        return False
    same_base = (ours.base, ours.base_digest) == (theirs.base, theirs.base_digest)
    return same_base and ours.trainings[: len(theirs.trainings)] == theirs.trainings
