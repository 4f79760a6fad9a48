"""Manifests: an artifact's config, inputs, files and provenance.

The manifest is the last file that a stage writes; if it exists, the stage is complete. A manifest's digest
covers the fingerprint and the content files and nothing else, so the same work has the same digest on another
machine and at another time. The fingerprint contains the inputs' digests, so a change anywhere in a chain of
stages changes the digests of all later stages.
"""

import hashlib
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AwareDatetime, Field, NonNegativeInt, StringConstraints, ValidationError

from meditron.core.config import Record, first_problem
from meditron.core.errors import InputError
from meditron.store.files import (
    canonical_json,
    content_digest,
    list_files,
    read_json,
    sha256_file,
    write_json,
)

__all__ = [
    "FILE_NAME",
    "Artifact",
    "FileRecord",
    "Git",
    "InputRecord",
    "Manifest",
    "fingerprint",
    "read_manifest",
    "record_files",
    "verify_artifact",
    "write_manifest",
]

FILE_NAME = "manifest.json"
# Files that are not part of the digest: reports and metrics contain times and host names, which differ
# between runs with identical results.
_NOT_CONTENT = ("*.html", "metrics.json*", "report.json", "tracking/*")


def _require_relative_path(path: str) -> str:
    pure = PurePosixPath(path)
    if pure.is_absolute() or ".." in pure.parts or not pure.parts:
        raise ValueError("must be a relative path inside the artifact")
    return path


Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


class FileRecord(Record):
    """One file of an artifact."""

    path: Annotated[str, AfterValidator(_require_relative_path)]
    """Relative to the artifact's folder, with `/`."""
    bytes: NonNegativeInt
    sha256: Sha256
    content: bool = True
    """True if the file is part of the artifact's digest; false for reports and metrics, which contain
    times."""


class InputRecord(Record):
    """One input of an artifact."""

    reference: str
    """The reference in the recipe: a stage, with the file's name if it has several (`quantize:F16`), or an
    external source (`pypi:…`)."""
    digest: str
    """For a stage the digest of its manifest; for an external source the identity of its content."""


class Git(Record):
    """The commit of the code that made an artifact."""

    commit: str | None = None
    dirty: bool = False


class Manifest(Record):
    """The complete record of one artifact."""

    schema_version: Literal[1] = 1
    kind: str
    """The stage's kind: `pretrain`."""
    name: str
    """The stage's name in the recipe: `finetune.medqa`."""
    fingerprint: Sha256
    """SHA-256 of the payload; it changes if the semantic config, an input or the stage's version changes."""
    payload: dict[str, Any]
    """Everything that determines the content: kind, version, semantic config fields and input digests."""
    config: dict[str, Any]
    """The configuration, with all defaults filled in."""
    beside: dict[str, Any] = Field(default_factory=dict)
    """Settings that do not change the result: threads, layout, paths."""
    seed: int | None = None
    inputs: dict[str, InputRecord] = Field(default_factory=dict)
    files: list[FileRecord] = Field(default_factory=list)
    metrics: dict[str, Any] = Field(default_factory=dict)
    git: Git = Git()
    libraries: dict[str, str] = Field(default_factory=dict)
    """Library → version."""
    machine: dict[str, Any] = Field(default_factory=dict)
    started: AwareDatetime
    ended: AwareDatetime
    licences: dict[str, str] = Field(default_factory=dict)
    """Source → licence."""

    @property
    def digest(self) -> str:
        """SHA-256 over the fingerprint and the content files, independent of times, hosts and reports."""
        files = sorted([file.path, file.bytes, file.sha256] for file in self.files if file.content)
        return hashlib.sha256(canonical_json({"fingerprint": self.fingerprint, "files": files})).hexdigest()


@dataclass(frozen=True, slots=True)
class Artifact:
    """An input of a stage: the folder of a finished stage, or a fetched file or folder."""

    name: str
    """The reference in the recipe: `base`, `pretrain`, `quantize`, a source's name."""
    path: Path
    """The stage's folder; for an external input the fetched file or folder."""
    digest: str
    """For a stage the digest of its manifest; for an external input the identity of its content."""
    manifest: Manifest | None = None
    """The stage's manifest; None for an external input."""
    selector: str | None = None
    """Name of one of several files: `F16` in `quantize:F16`."""
    hub_name: str | None = None
    """`org/name` of a model of the Hugging Face hub."""

    @property
    def spec(self) -> str:
        """The artifact as a MODEL argument: its path, with `:selector` if it has one."""
        return f"{self.path}:{self.selector}" if self.selector else str(self.path)


def fingerprint(payload: dict[str, Any]) -> str:
    """Compute the SHA-256 of the payload's canonical JSON; TypeError if it is not plain JSON."""
    return hashlib.sha256(canonical_json(payload)).hexdigest()


def record_files(folder: Path) -> list[FileRecord]:
    """Hash every file of an artifact except its manifest; InputError for a file name that is not UTF-8."""
    records = []
    for path in list_files(folder):
        relative = path.relative_to(folder).as_posix()
        # Bytes of a name that are not UTF-8 are lone surrogates in Python, which JSON cannot store.
        if not relative.isprintable() and any("\ud800" <= letter <= "\udfff" for letter in relative):
            raise InputError(
                path, "the file name is not UTF-8", hint="rename it, or remove it from the stage's folder"
            )
        if relative != FILE_NAME:
            content = not any(fnmatch(relative, pattern) for pattern in _NOT_CONTENT)
            size, digest = path.stat().st_size, sha256_file(path)
            records.append(FileRecord(path=relative, bytes=size, sha256=digest, content=content))
    return records


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json`, which marks a stage as complete and so must be the stage's last write."""
    write_json(folder / FILE_NAME, manifest.model_dump(mode="json"))


def read_manifest(folder: Path) -> Manifest | None:
    """Read the manifest of an artifact; None if there is none.

    Raises:
        InputError: the manifest is damaged, was edited, or was written by another version of meditron.
    """
    path = folder / FILE_NAME
    if not path.is_file():
        return None
    value = read_json(path, strict=True)
    try:
        manifest = Manifest.model_validate(value)
    except ValidationError as error:
        place, problem = first_problem(error)
        hint = None
        if place == "schema_version":
            hint = "it was written by another version of meditron; update meditron, or rebuild the stage"
        raise InputError(path, problem, place=place, hint=hint) from error
    if fingerprint(manifest.payload) != manifest.fingerprint:
        raise InputError(path, "the fingerprint does not match the payload: the file was edited")
    return manifest


def verify_artifact(folder: Path, *, hashes: bool = False) -> list[str]:
    """List the missing and altered files of an artifact, one sentence each; empty if it is intact.

    Sizes are always compared. The SHA-256 is compared for every file if `hashes` is set, else only for files
    that were modified after the manifest. The manifest is a stage's last write, so such a file was changed
    later, possibly without changing its size.

    Raises:
        InputError: the manifest is damaged.
    """
    manifest = read_manifest(folder)
    if manifest is None:
        return [f"{FILE_NAME} is missing"]
    # Hashing all weights takes minutes, so by default only files that changed after the stage ended are
    # hashed.
    completed = (folder / FILE_NAME).stat().st_mtime_ns
    problems = (_file_problem(folder, record, completed, hashes=hashes) for record in manifest.files)
    return [problem for problem in problems if problem]


def _file_problem(folder: Path, record: FileRecord, completed: int, *, hashes: bool) -> str | None:
    path = folder / record.path
    if not path.is_file():
        return f"{record.path} is missing"
    status = path.stat()
    if status.st_size != record.bytes:
        return f"{record.path} has {status.st_size:,} bytes instead of {record.bytes:,}"
    if hashes:
        digest = sha256_file(path)
    elif status.st_mtime_ns > completed:
        digest = content_digest(path)  # cached: after copying a folder each file is hashed once
    else:
        return None
    if digest != record.sha256:
        return f"{record.path} has a different SHA-256 than when it was built"
    return None
