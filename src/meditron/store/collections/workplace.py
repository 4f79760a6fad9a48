"""The folder of a collection while it is fetched: downloads in progress, finished files, last snapshot."""

import hashlib
import os
import shutil
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from meditron.store.collections.records import PROVENANCE, CollectionFile, CollectionManifest
from meditron.store.collections.request import CollectionRequest
from meditron.store.download import DownloadOptions
from meditron.store.files import atomic_write, fsync_path, make_folder, sha256_file, translate_write_errors
from meditron.store.jsonl import read_jsonl

__all__ = ["WORK", "Workplace"]

WORK = ".fetch"
"""Folder of a collection's unfinished work; it is hidden, so that readers skip it."""


class _Stopped(Exception):
    """Another item failed, so that this one ends early; its download is continued by the next run."""


class Workplace:
    """The folder of a collection that is being fetched, for the threads of a fetcher."""

    def __init__(
        self, request: CollectionRequest, previous: "tuple[Path, CollectionManifest] | None"
    ) -> None:
        self.folder = request.folder
        self.work = self.folder / WORK
        self.stop = threading.Event()
        """Set if an item failed: the others end early."""
        self.received = 0
        """Bytes received by this process."""
        self._lock = threading.Lock()
        self._previous_folder = previous[0] if previous else None
        self.previous = {file.name: file for file in previous[1].files} if previous else {}
        """Files of the newest earlier snapshot by name."""

    def count(self, size: int) -> None:
        """Count received bytes; raise if another item failed."""
        with self._lock:
            self.received += size
        if self.stop.is_set():
            raise _Stopped

    def options(
        self, before_request: Callable[[str], None], headers: Mapping[str, str] | None = None
    ) -> DownloadOptions:
        """Return the options of a download that is part of the collection."""
        return DownloadOptions(headers or {}, before_request, self.count)

    def part(self, name: str) -> Path:
        """Return the path of the download in progress of a file of the collection."""
        key = hashlib.sha256(name.encode()).hexdigest()[:16]
        return make_folder(self.work / "parts") / f"{key}-{name.rsplit('/', 1)[-1][-150:]}"

    def install(
        self,
        part: Path,
        name: str,
        *,
        records: int | None = None,
        checksum: str | None = None,
        skipped: Mapping[str, int] | None = None,
    ) -> CollectionFile:
        """Move a verified download to its place in the collection; the arguments are those of the record."""
        target = self.folder / name
        entry = CollectionFile(
            name=name,
            bytes=part.stat().st_size,
            sha256=sha256_file(part),
            records=records,
            checksum=checksum,
            skipped=dict(skipped or {}),
        )
        make_folder(target.parent)
        with translate_write_errors(target):
            fsync_path(part)
            part.replace(target)
            fsync_path(target.parent)
        part.with_name(f"{part.name}.json").unlink(missing_ok=True)  # the record of `store.download`
        return entry

    def reuse(self, name: str, checksum: str) -> CollectionFile | None:
        """Link a file of the previous snapshot that has the same checksum; None if there is none.

        The file is read again, because a damaged one must not pass into the new snapshot.
        """
        known = self.previous.get(name)
        if known is None or known.checksum != checksum or self._previous_folder is None:
            return None
        old, target = self._previous_folder / name, self.folder / name
        if not old.is_file() or sha256_file(old) != known.sha256:
            return None
        make_folder(target.parent)
        with translate_write_errors(target):
            target.unlink(missing_ok=True)
            try:
                os.link(old, target)
            except OSError:  # another file system, or one without hard links
                with old.open("rb") as source, atomic_write(target) as copy:
                    shutil.copyfileobj(source, copy, 1 << 20)
        return known

    def previous_provenance(self, name: str) -> list[dict[str, Any]]:
        """Return the provenance rows of a file, or of an archive's members, in the previous snapshot."""
        if self._previous_folder is None:
            return []
        parent = str(Path(name).parent)
        rows = read_jsonl(self._previous_folder / parent / PROVENANCE)
        named = [row | {"name": f"{parent}/{row['name']}"} for row in rows]
        return [row for row in named if row["name"].partition("!")[0] == name]
