"""Fetching of a collection into its folder: in parallel, resumable, with a manifest that is written last.

    FOLDER/collection.json      the manifest: files with size, SHA-256 and number of records; what was skipped
    FOLDER/…/provenance.jsonl   address, time and licence of each file in the same folder, if it has its own
    FOLDER/.fetch/plan.json     the list of the items to fetch; exists until the collection is complete
    FOLDER/.fetch/done/         one record per finished item
    FOLDER/.fetch/parts/        downloads in progress

The list is made once. A killed run continues with the same list, so that the result does not depend on when
it was killed. An item is a file on the server, or a group of small objects that become one file.
"""

import hashlib
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from pydantic import ValidationError

from meditron.core.console import info, progress, warn
from meditron.core.errors import InputError, MeditronError, SourceError, StorageError
from meditron.core.units import format_bytes
from meditron.store.collections.records import (
    MANIFEST,
    PROVENANCE,
    CollectionFile,
    CollectionManifest,
    FetchedItem,
    FetchPreview,
    Item,
    read_collection_manifest,
)
from meditron.store.collections.request import CollectionRequest
from meditron.store.collections.workplace import WORK, Workplace
from meditron.store.file_lock import exclusive_lock
from meditron.store.files import (
    atomic_write,
    cache_folder,
    canonical_json,
    make_folder,
    read_json,
    remove_path,
    remove_temporaries,
    write_json,
)
from meditron.store.jsonl import encode_row

__all__ = ["Fetcher", "cached_collection", "fetch_collection", "preview_collection"]


class Fetcher(Protocol):
    """The part of a collection that knows its server."""

    workers: int
    """Number of items that are fetched at the same time."""

    def plan(self, work: Path) -> tuple[list[Item], dict[str, Any]]:
        """List the items to fetch, and describe the list (`CollectionManifest.resolved`).

        Args:
            work: Folder for files that `fetch` needs too.
        """
        ...

    def preview(self) -> tuple[list[Item], str | None]:
        """List the items for a dry run, and a note; writes nothing."""
        ...

    def fetch(self, item: Item, place: Workplace) -> FetchedItem:
        """Fetch and verify one item; called from several threads."""
        ...

    def close(self) -> None:
        """Close the connections."""
        ...


def cached_collection(request: CollectionRequest) -> tuple[Path, CollectionManifest] | None:
    """Return the folder and manifest of a complete collection whose files have their recorded sizes."""
    folder = request.folder
    manifest = read_collection_manifest(folder)
    if manifest is None or not all(map(_has_size(folder), manifest.files)):
        return None
    return folder, manifest


def preview_collection(request: CollectionRequest, fetcher: Fetcher) -> FetchPreview:
    """Return what fetching the collection would download now."""
    folder = request.folder
    planned = _read_plan(folder / WORK)
    items, note = (planned[0], None) if planned else fetcher.preview()
    missing = [item for item in items if _finished_item(folder, item) is None]
    sizes = [item.bytes for item in missing]
    known = None if not items or None in sizes else sum(size or 0 for size in sizes)
    return FetchPreview(request.public_name, len(items), len(missing), known, _free_bytes(folder), note)


def fetch_collection(request: CollectionRequest, fetcher: Fetcher) -> tuple[Path, CollectionManifest]:
    """Fetch the files of a collection that are missing, and return its folder and manifest.

    Raises:
        SourceError: The collection has no files.
        FetchError: A server cannot be reached, or refuses the request.
        InputError: A file's checksum or content is wrong.
        StorageError: The disk is full.
    """
    folder = request.folder
    with exclusive_lock(
        cache_folder() / "locks" / folder.name, f"{request.public_name}: another process is fetching it"
    ):
        if complete := cached_collection(request):  # another process fetched it while this one waited
            return complete
        make_folder(folder / WORK)
        remove_temporaries(folder)
        (folder / MANIFEST).unlink(missing_ok=True)  # its files were lost or altered
        items, resolved = _load_or_make_plan(request, fetcher)
        place = Workplace(request, _previous_snapshot(request))
        _fetch_items(request, fetcher, items, place)
        manifest = _write_manifest(request, items, resolved)
        remove_path(folder / WORK)
    return folder, manifest


def _load_or_make_plan(request: CollectionRequest, fetcher: Fetcher) -> tuple[list[Item], dict[str, Any]]:
    work = request.folder / WORK
    if planned := _read_plan(work):
        return planned
    info(f"{request.public_name}: listing the files on the server")
    items, resolved = fetcher.plan(work)
    if not items:
        raise SourceError(f"{request.public_name}: the server lists no file")
    rows = [{"name": item.name, "bytes": item.bytes, "data": dict(item.data)} for item in items]
    write_json(work / "plan.json", {"resolved": resolved, "items": rows})
    return items, resolved


def _read_plan(work: Path) -> tuple[list[Item], dict[str, Any]] | None:
    path = work / "plan.json"
    if not path.is_file():
        return None
    plan = read_json(path)
    return [Item(row["name"], row["bytes"], row["data"]) for row in plan["items"]], plan["resolved"]


def _fetch_items(
    request: CollectionRequest, fetcher: Fetcher, items: Sequence[Item], place: Workplace
) -> None:
    missing = [item for item in items if _finished_item(place.folder, item) is None]
    _require_space(request, missing)
    wrong: list[MeditronError] = []

    def fetch(item: Item) -> None:
        # Recorded by the thread, so that a failure of another item loses none that is finished.
        try:
            record = fetcher.fetch(item, place)
        except (InputError, SourceError) as error:
            wrong.append(error)  # one wrong file does not keep the others from being fetched
        else:
            write_json(_record_path(place.folder, item), record.model_dump(mode="json"))

    label = f"fetch {request.public_name}"
    with (
        progress(label, total=len(items), unit="items", start=len(items) - len(missing)) as bar,
        ThreadPoolExecutor(max(1, fetcher.workers), thread_name_prefix="fetch") as pool,
    ):
        running: set[Future[None]] = set()
        waiting = iter(missing)
        try:
            while True:
                # Only as many items as threads are submitted, so that a failure leaves none to cancel.
                while len(running) < fetcher.workers and (item := next(waiting, None)) is not None:
                    running.add(pool.submit(fetch, item))
                if not running:
                    break
                done, running = wait(running, timeout=1.0, return_when=FIRST_COMPLETED)
                for future in done:
                    future.result()
                    bar.advance()
                bar.set_fields(received=format_bytes(place.received))
        except BaseException:
            place.stop.set()
            raise
        if wrong:
            raise _first_wrong(wrong)


def _first_wrong(errors: Sequence[MeditronError]) -> MeditronError:
    """Return the first error, by its message; its hint counts the others."""
    first, *others = sorted(errors, key=lambda error: error.message)
    hints = [first.hint or "", f"{len(others):,} further files are wrong" if others else ""]
    hints.append("the other files are kept; run the same command again to fetch this one again")
    first.hint = "; ".join(filter(None, hints))
    return first


def _require_space(request: CollectionRequest, missing: Sequence[Item]) -> None:
    needed, free = sum(item.bytes or 0 for item in missing), _free_bytes(request.folder)
    if needed > free:
        raise StorageError(
            f"{request.folder}: {request.public_name} has {format_bytes(needed)} to fetch, "
            f"but only {format_bytes(free)} are free",
            hint="free some space, or choose another folder with $MEDITRON_CACHE",
        )


def _write_manifest(
    request: CollectionRequest, items: Sequence[Item], resolved: dict[str, Any]
) -> CollectionManifest:
    """Write the provenance files and then the manifest."""
    folder = request.folder
    skipped: Counter[str] = Counter()
    refused: list[dict[str, str]] = []
    files: list[CollectionFile] = []
    rows: dict[str, list[dict[str, Any]]] = {}
    for item in sorted(items, key=lambda item: item.name):
        record = _finished_item(folder, item)
        if record is None:
            raise StorageError(f"{folder / item.name}: was removed while the collection was fetched")
        files += record.files
        for counts in (record.skipped, *(file.skipped for file in record.files)):
            skipped.update(counts)
        refused += record.refused
        for row in record.provenance:
            rows.setdefault(str(Path(row["name"]).parent), []).append(row)
    _write_provenance(folder, rows)
    if not files:
        reasons = Counter(row["reason"] for row in refused) + skipped
        listed = ", ".join(f"{count:,} {reason}" for reason, count in reasons.most_common(5))
        raise SourceError(f"{request.public_name}: no file is left", hint=listed and f"skipped: {listed}")
    files.sort(key=lambda file: file.name)
    counted = [file.records for file in files if file.records is not None]
    manifest = CollectionManifest(
        source=request.public_name,
        family=request.family,
        resolved=resolved,
        fetched=datetime.now(UTC).isoformat(timespec="seconds"),
        digest=_digest(files),
        bytes=sum(file.bytes for file in files),
        records=sum(counted) if counted else None,
        files=files,
        skipped=dict(sorted(skipped.items())),
        refused=sorted(refused, key=lambda row: sorted(row.items())),
    )
    write_json(folder / MANIFEST, manifest.model_dump(mode="json"))
    return manifest


def _write_provenance(folder: Path, rows: Mapping[str, list[dict[str, Any]]]) -> None:
    for parent, entries in rows.items():
        with atomic_write(folder / parent / PROVENANCE) as file:
            for row in sorted(entries, key=lambda row: str(row["name"])):
                file.write(encode_row(row | {"name": str(row["name"]).removeprefix(f"{parent}/")}))


def _digest(files: Sequence[CollectionFile]) -> str:
    """Return the digest that `store.files.content_digest` gives for a folder with just these files."""
    listed = [[file.name, file.sha256] for file in files]
    return hashlib.sha256(canonical_json(listed)).hexdigest()


def _record_path(folder: Path, item: Item) -> Path:
    key = hashlib.sha256(item.name.encode()).hexdigest()[:24]
    return folder / WORK / "done" / f"{key}.json"


def _finished_item(folder: Path, item: Item) -> FetchedItem | None:
    """Return the record of an item whose files are in place; None if it must be fetched."""
    path = _record_path(folder, item)
    if not path.is_file():
        return None
    try:
        record = FetchedItem.model_validate(read_json(path))
    except (ValidationError, InputError):
        return None
    return record if all(map(_has_size(folder), record.files)) else None


def _has_size(folder: Path) -> Callable[[CollectionFile], bool]:
    def check(file: CollectionFile) -> bool:
        path = folder / file.name
        return path.is_file() and path.stat().st_size == file.bytes

    return check


def _previous_snapshot(request: CollectionRequest) -> tuple[Path, CollectionManifest] | None:
    """Return the newest complete snapshot of the same collection in the cache."""
    known = []
    for path in sorted((cache_folder() / "collections").glob(f"*/{MANIFEST}")):
        try:
            manifest = read_collection_manifest(path.parent)
        except InputError as error:
            # It may be of any collection, and a snapshot only saves downloads.
            warn(f"not used as an earlier snapshot: {error.message}")
            continue
        if manifest and manifest.family == request.family and path.parent != request.folder:
            known.append((manifest.fetched, path.stat().st_mtime_ns, path.parent, manifest))
    newest = max(known, key=lambda entry: entry[:2], default=None)
    return newest and newest[2:]


def _free_bytes(folder: Path) -> int:
    parent = next(parent for parent in (folder, *folder.parents) if parent.is_dir())
    return shutil.disk_usage(parent).free
