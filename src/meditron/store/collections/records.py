"""Records of collections: items to fetch, fetched files, the manifest of a complete collection."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from meditron.core.config import Record, first_problem
from meditron.core.errors import InputError
from meditron.store.files import read_json

__all__ = [
    "MANIFEST",
    "PROVENANCE",
    "CollectionFile",
    "CollectionManifest",
    "FetchPreview",
    "FetchedItem",
    "Item",
    "objects_left_out",
    "read_collection_manifest",
]

MANIFEST = "collection.json"
"""Name of a collection's manifest, which is written last."""
PROVENANCE = "provenance.jsonl"
"""Name of the file with the address, time and licence of each file in the same folder."""


class CollectionFile(Record):
    """A file of a collection."""

    name: str
    """Path below the collection's folder."""
    bytes: int
    sha256: str
    records: int | None = None
    """Number of citations, articles or rows; None if they are not counted."""
    checksum: str | None = None
    """The server's checksum, or the digest of the list of objects in it. A later snapshot reuses the file if
    its checksum is the same."""
    skipped: dict[str, int] = Field(default_factory=dict)
    """Reason → number of objects that belong into the file and were not fetched."""


class FetchedItem(Record):
    """The record of a finished item."""

    files: list[CollectionFile] = Field(default_factory=list)
    provenance: list[dict[str, Any]] = Field(default_factory=list)
    """Rows of `provenance.jsonl`: `name` is the file's path, or `FILE!MEMBER` for an archive's member."""
    skipped: dict[str, int] = Field(default_factory=dict)
    """Reason → number of objects that were not fetched, of an item without a file."""
    refused: list[dict[str, str]] = Field(default_factory=list)
    """Addresses that were not fetched, each with its `reason`."""


class CollectionManifest(Record):
    """The manifest of a complete collection."""

    source: str
    family: str
    resolved: dict[str, Any]
    """What the server's list was: its date, revision or number of files."""
    fetched: str
    """Time at which the collection was complete, in UTC."""
    digest: str
    """SHA-256 of the list of files with their SHA-256; `@sha256:…` after a source is compared with it."""
    bytes: int
    records: int | None
    files: list[CollectionFile]
    skipped: dict[str, int]
    refused: list[dict[str, str]]


@dataclass(frozen=True, slots=True)
class Item:
    """A unit of work: a file to download, or objects that become one file."""

    name: str
    bytes: int | None = None
    """Size in bytes, as the server's list gives it, which may be rounded."""
    data: Mapping[str, Any] = field(default_factory=dict)
    """JSON values that the fetcher needs: addresses, checksums."""


@dataclass(frozen=True, slots=True)
class FetchPreview:
    """Files that a collection would fetch, for a dry run."""

    source: str
    files: int
    missing_files: int
    missing_bytes: int | None
    """Bytes to download; None if the server's list has no sizes."""
    free_bytes: int
    """Free space of the cache's file system."""
    note: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the preview as --json prints it."""
        names = ("source", "files", "missing_files", "missing_bytes", "free_bytes", "note")
        return {name: getattr(self, name) for name in names}


def read_collection_manifest(folder: Path) -> CollectionManifest | None:
    """Return the manifest of a complete collection; None without one, InputError if it is damaged."""
    path = folder / MANIFEST
    if not path.is_file():
        return None
    try:
        return CollectionManifest.model_validate(read_json(path, strict=True))
    except ValidationError as error:
        place, problem = first_problem(error)
        raise InputError(path, problem, place=place, hint="remove the folder to fetch it again") from error


def objects_left_out(folder: Path) -> Counter[str]:
    """Return the number of pages and articles that were not fetched into a folder, by reason.

    A folder that is no collection has none. Reasons are without the details of one page, such as its title.
    """
    try:
        manifest = read_collection_manifest(folder)
    except InputError:  # a file of the same name that belongs to a folder of the user's
        manifest = None
    if manifest is None:
        return Counter()
    return Counter(row["reason"].partition(": ")[0] for row in manifest.refused) + Counter(manifest.skipped)
