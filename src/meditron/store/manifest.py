"""Manifests: what an artifact is, what it was made from, and how.

A stage's manifest is the last file written, so that its existence means that the stage is complete. Its
digest covers the fingerprint and the content files and nothing else: the same work on another machine, at
another time, has the same digest, and digests chain through the inputs.
"""

import hashlib
from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    NonNegativeInt,
    StringConstraints,
    ValidationError,
)

from meditron.core.errors import InputError
from meditron.store.files import canonical, digest_of, list_files, read_json, sha256_file, write_json

__all__ = [
    "FILE_NAME",
    "FileRecord",
    "Git",
    "InputRecord",
    "Manifest",
    "check",
    "fingerprint",
    "read_manifest",
    "record_files",
    "write_manifest",
]

FILE_NAME = "manifest.json"
# Files that carry times or hosts: they belong to the artifact, but do not say what it is.
_BESIDE = ("*.html", "metrics.json*", "report.json")


def _inside(path: str) -> str:
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or not pure.parts:
        raise ValueError("must be a relative path inside the artifact")
    return path


Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class FileRecord(_Record):
    """One file of an artifact."""

    path: Annotated[str, AfterValidator(_inside)]
    """Relative to the artifact's folder, with `/`."""
    bytes: NonNegativeInt
    sha256: Sha256
    content: bool = True
    """Whether it says what the artifact is. Reports and metrics carry times: they do not."""


class InputRecord(_Record):
    """One input of an artifact."""

    reference: str
    """The stage as the recipe called it (`quantize:F16`), or where it came from outside (`pypi:…`)."""
    digest: str
    """The input's manifest digest, or the outside input's SHA-256."""


class Git(_Record):
    """The state of the code that made an artifact."""

    commit: str | None = None
    dirty: bool = False


class Manifest(_Record):
    """Everything to know about one artifact."""

    schema_version: Literal[1] = 1
    kind: str
    """The stage's kind: `pretrain`."""
    name: str
    """The stage's name in the recipe: `finetune.medqa`."""
    fingerprint: Sha256
    """SHA-256 of the payload: what the artifact was asked to be."""
    payload: dict[str, Any]
    """Semantic configuration, input digests and the stage's version."""
    config: dict[str, Any]
    """The configuration with every default resolved."""
    beside: dict[str, Any] = {}
    """What shaped the work but not the result: threads, layout, paths."""
    seed: int | None = None
    inputs: dict[str, InputRecord] = {}
    files: list[FileRecord] = []
    metrics: dict[str, Any] = {}
    git: Git = Git()
    libraries: dict[str, str] = {}
    """Library → version."""
    machine: dict[str, Any] = {}
    started: AwareDatetime
    ended: AwareDatetime
    licences: dict[str, str] = {}
    """Source → licence."""

    @property
    def digest(self) -> str:
        """SHA-256 over the fingerprint and the content files; times, hosts and reports do not move it."""
        files = sorted([file.path, file.bytes, file.sha256] for file in self.files if file.content)
        return hashlib.sha256(canonical({"fingerprint": self.fingerprint, "files": files})).hexdigest()


def fingerprint(payload: dict[str, Any]) -> str:
    """SHA-256 of the payload's canonical JSON; TypeError for what is not plain JSON."""
    return hashlib.sha256(canonical(payload)).hexdigest()


def record_files(folder: Path, *, beside: Sequence[str] = _BESIDE) -> list[FileRecord]:
    """Hash every file of an artifact but its manifest; those matching a glob of `beside` are no content.

    InputError for a file whose name is no UTF-8, which a manifest cannot hold.
    """
    records = []
    for path in list_files(folder):
        relative = path.relative_to(folder).as_posix()
        if not relative.isprintable() and any("\ud800" <= letter <= "\udfff" for letter in relative):
            raise InputError(
                path, "its name is not UTF-8", hint="rename it, or remove it from the stage's folder"
            )
        if relative != FILE_NAME:
            content = not any(fnmatch(relative, pattern) for pattern in beside)
            size, digest = path.stat().st_size, sha256_file(path)
            records.append(FileRecord(path=relative, bytes=size, sha256=digest, content=content))
    return records


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json`: the last write of a stage, which makes it complete."""
    write_json(folder / FILE_NAME, manifest.model_dump(mode="json"))


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of an artifact; None where there is none; InputError where it is damaged or too new."""
    path = folder / FILE_NAME
    if not path.is_file():
        return None
    value = read_json(path, strict=True)
    try:
        manifest = Manifest.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"])) or "top level"
        hint = None
        if place == "schema_version":
            hint = "another version of meditron wrote it; update meditron, or build the stage again"
        raise InputError(path, first["msg"], place=place, hint=hint) from error
    if fingerprint(manifest.payload) != manifest.fingerprint:
        raise InputError(path, "the fingerprint is not that of the payload: one of them was altered")
    return manifest


def check(folder: Path, *, hashes: bool = False) -> list[str]:
    """List what of an artifact is missing or altered, one sentence each; empty if it is whole.

    Sizes are always compared; SHA-256 with `hashes`, and of a file that was written after the manifest, which
    is the last write of a stage: weights that were replaced by others of their size. Raises InputError for a
    damaged manifest.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        return [f"{FILE_NAME} is missing"]
    completed = (folder / FILE_NAME).stat().st_mtime_ns
    found = (_difference(folder, record, completed, hashes=hashes) for record in manifest.files)
    return [difference for difference in found if difference]


def _difference(folder: Path, record: FileRecord, completed: int, *, hashes: bool) -> str | None:
    path = folder / record.path
    if not path.is_file():
        return f"{record.path} is missing"
    status = path.stat()
    if status.st_size != record.bytes:
        return f"{record.path} has {status.st_size:,} bytes instead of {record.bytes:,}"
    if hashes:
        digest = sha256_file(path)
    elif status.st_mtime_ns > completed:
        digest = digest_of(path)  # remembered: a copied folder is read once
    else:
        return None
    if digest != record.sha256:
        return f"{record.path} has another SHA-256 than when it was made"
    return None
