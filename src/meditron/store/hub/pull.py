"""Download of a model repository's files into a folder: in parallel, resumable, verified.

    OUT/NAME                      the files, each moved to its place when it is complete and verified
    OUT/.meditron-pull/parts/     downloads in progress; the folder exists until the pull is complete

The plain pieces of a file (`NAME-split-a`, `NAME-split-b`) are joined and then removed. Shards of gguf-split
stay as they are, because llama.cpp reads them.
"""

import hashlib
import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from meditron.core.console import Bar, info, progress
from meditron.core.errors import InputError, MeditronError, SourceError, StorageError
from meditron.core.units import format_bytes
from meditron.store.download import DownloadOptions, discard_download, download, download_beginning
from meditron.store.fetch import parse_source
from meditron.store.file_lock import exclusive_lock
from meditron.store.files import (
    cache_folder,
    content_digest,
    fsync_path,
    make_folder,
    remove_path,
    require_digest,
    translate_read_errors,
    translate_write_errors,
)
from meditron.store.hub.client import HubClient, HubFile, ModelListing, git_blob_id
from meditron.store.hub.selection import PieceGroup, model_of, piece_groups, require_safe_names, select_files
from meditron.store.model_memory import HEADER_BYTES, ModelShape, shape_of_config, shape_of_gguf_header
from meditron.store.new_files import concatenate

__all__ = ["ModelPull", "PulledFile", "open_pull"]

WORK = ".meditron-pull"
_CONNECTIONS = 4
_LARGEST_CONFIG = 1 << 20
_MODELS = (".gguf", ".safetensors")


class _Stopped(Exception):
    """Another file failed, so this download ends early; the next call resumes it."""


@dataclass(frozen=True, slots=True)
class PulledFile:
    """A file in the folder."""

    name: str
    path: Path
    bytes: int
    state: str
    """`downloaded`, `present` (it was there and is unchanged) or `joined` (from its pieces)."""


class ModelPull:
    """The selected files of a repository's revision."""

    def __init__(
        self, client: HubClient, listing: ModelListing, files: Sequence[HubFile], shown: str
    ) -> None:
        self.listing = listing
        self.files = tuple(files)
        """The selected files."""
        self._client = client
        self._shown = shown

    def memory(self, work: Path) -> dict[str, int | None]:
        """Return the memory of each selected file's model in bytes, without offloading.

        It is that of the model's files, all shards together (see `model_memory`). None for a file that is not
        a model, or whose shape is not known.

        Args:
            work: Folder for the beginnings of GGUF files; `pull_into` continues them.
        """
        models: dict[str, list[HubFile]] = {}
        for file in self.listing.files:
            if (model := model_of(file.name)).endswith(_MODELS):
                models.setdefault(model, []).append(file)
        selected = [model for file in self.files if (model := model_of(file.name)) in models]
        names = list(dict.fromkeys(selected))
        with ThreadPoolExecutor(_CONNECTIONS, thread_name_prefix="header") as pool:
            shapes = dict(
                zip(names, pool.map(lambda name: self._shape(models[name], work), names), strict=True)
            )
        needed = {
            name: shape.ram_bytes(sum(part.bytes for part in models[name]))
            for name, shape in shapes.items()
            if shape is not None
        }
        return {file.name: needed.get(model_of(file.name)) for file in self.files}

    def _shape(self, parts: Sequence[HubFile], work: Path) -> ModelShape | None:
        """Return the shape of a model; None if it is not known, or the hub does not send the file."""
        first = min(parts, key=lambda part: part.name)
        try:
            if model_of(first.name).endswith(".gguf"):
                return shape_of_gguf_header(self._beginning(first, work, HEADER_BYTES))
            config_name = str(PurePosixPath(first.name).with_name("config.json"))
            config = next((file for file in self.listing.files if file.name == config_name), None)
            if config is None or config.bytes > _LARGEST_CONFIG:
                return None
            return shape_of_config(self._beginning(config, work, _LARGEST_CONFIG))
        except MeditronError as error:
            info(f"{self._shown}: {first.name}: memory unknown: {error.message}")
            return None

    def _beginning(self, file: HubFile, work: Path, count: int) -> bytes:
        placed = work.parent / file.name
        if placed.is_file() and placed.stat().st_size == file.bytes:
            with translate_read_errors(placed), placed.open("rb") as content:
                return content.read(count)
        options = self._options(lambda _: None)
        address, part = self._client.address(self.listing, file.name), _part_path(work, file)
        return download_beginning(address, part, min(count, file.bytes), sha256=file.sha256, options=options)

    def _options(self, on_bytes: Callable[[int], None]) -> DownloadOptions:
        hint = self._client.access_hint(self.listing)
        return DownloadOptions(self._client.headers, on_bytes=on_bytes, access_hint=hint)

    def pull_into(self, out: Path, work: Path) -> list[PulledFile]:
        """Download the selected files that `out` does not have, join plain pieces, and return all files.

        Args:
            out: The folder.
            work: Its work folder, from `open_pull`.

        Raises:
            DigestError, InputError: a file is not the one that the hub lists; it is removed.
            FetchError: the hub cannot be reached or refuses a file; partial downloads are kept.
            StorageError: the disk has too little space, or a link in the folder leads out of it.
        """
        groups = piece_groups(self.files)
        joined = [group for group in groups if _is_joined(out, group)]
        present_pieces = {piece.name for group in joined for piece in group.pieces}
        present = {file.name for file in self.files if file.name in present_pieces or _is_present(out, file)}
        missing = [file for file in self.files if file.name not in present]
        _require_space(out, work, missing, [group for group in groups if group not in joined])
        for file in missing:
            _require_inside(out, file.name)
        self._download_all(out, work, missing)
        for group in groups:
            if group not in joined:
                _join(out, group)
        remove_path(work)
        pieces = {piece.name for group in groups for piece in group.pieces}
        pulled = [
            PulledFile(
                file.name, out / file.name, file.bytes, "present" if file.name in present else "downloaded"
            )
            for file in self.files
            if file.name not in pieces
        ]
        pulled += [
            PulledFile(group.name, out / group.name, group.bytes, "present" if group in joined else "joined")
            for group in groups
        ]
        return sorted(pulled, key=lambda file: file.name)

    def _download_all(self, out: Path, work: Path, missing: Sequence[HubFile]) -> None:
        wrong: list[MeditronError] = []
        total = sum(file.bytes for file in missing)
        start = sum(_partial_bytes(work, file) for file in missing)
        with (
            progress(f"pull {self._shown}", total=total, unit="B", start=start) as bar,
            ThreadPoolExecutor(_CONNECTIONS, thread_name_prefix="pull") as pool,
        ):
            count = _ByteCounter(bar)
            running: set[Future[None]] = set()
            waiting = iter(missing)
            finished = 0
            try:
                while True:
                    # Only as many files as connections are submitted: a failure leaves none to cancel.
                    while len(running) < _CONNECTIONS and (file := next(waiting, None)) is not None:
                        running.add(pool.submit(self._download, file, out, work, count, wrong))
                    if not running:
                        break
                    done, running = wait(running, return_when=FIRST_COMPLETED)
                    for future in done:
                        future.result()
                    finished += len(done)
                    bar.set_fields(files=f"{finished} of {len(missing)}")
            except BaseException:
                count.stop.set()
                raise
        if wrong:
            raise _first_of(wrong)

    def _download(
        self, file: HubFile, out: Path, work: Path, count: "_ByteCounter", wrong: list[MeditronError]
    ) -> None:
        """Download, verify and place one file; a wrong file does not end the downloads of the others."""
        part, shown = _part_path(work, file), f"{self._shown} ({file.name})"
        try:
            if file.bytes == 0:  # a server answers no range of an empty file
                part.write_bytes(b"")
            else:
                address = self._client.address(self.listing, file.name)
                download(address, part, sha256=file.sha256, options=self._options(count.add))
            if not file.sha256:  # `download` compared it
                file.require_content(part, shown)
        except (InputError, SourceError) as error:
            discard_download(part)
            error.hint = error.hint or "it was damaged on the way or on the hub, and was removed"
            wrong.append(error)
            return
        _place(part, out / file.name)


class _ByteCounter:
    """Counts the bytes that all threads receive, and ends their downloads if one of them failed."""

    def __init__(self, bar: Bar) -> None:
        self.stop = threading.Event()
        self._bar, self._lock = bar, threading.Lock()

    def add(self, count: int) -> None:
        """Count received bytes; raise if another download failed."""
        with self._lock:
            self._bar.advance(count)
        if self.stop.is_set():
            raise _Stopped


@contextmanager
def open_pull(
    source: str, *, revision: str | None = None, globs: Sequence[str] = (), out: Path | None = None
) -> Iterator[tuple[ModelPull, Path, Path]]:
    """List a repository's revision and select files; yield the selection, the folder and its work folder.

    Args:
        source: `hf:org/name`, or `hf:org/name:file` for one file with all its parts.
        revision: Branch, tag or commit; the main branch by default.
        globs: Globs of paths or file names; all files by default.
        out: The folder; by default `./name`. It is created and locked while the block runs.

    Raises:
        UsageError: the source is not a model on the hub.
        SourceError: there is no such model, revision or file, or a SHA-256 is given for a file in pieces.
        FetchError: the hub cannot be reached, or refuses the request.
        InputError: a file's name would lead outside of the folder.
    """
    spec = parse_source(source)
    if spec.scheme != "hf" or spec.collection is not None:
        raise SourceError(f"{source}: not a model on the hub", hint="hf:org/name or hf:org/name:file")
    shown = f"hf:{spec.name}" + (f"@{revision}" if revision else "")
    client = HubClient()
    listing = client.list_model(spec.name, revision)
    files = select_files(listing.files, shown, name=spec.member, globs=globs)
    require_safe_names(files, shown)
    if any(file.name.split("/")[0] == WORK for file in listing.files):
        raise InputError(shown, f"has a folder {WORK}, which meditron uses for downloads in progress")
    if spec.sha256:
        named = next((file for file in files if file.name == spec.member), None)
        if named is None:
            raise SourceError(
                f"{shown}: {spec.member} is joined from {len(files)} pieces, and has no SHA-256 on the hub",
                hint="leave out @sha256:…; each piece is compared with its own",
            )
        require_digest(shown, named.sha256 or spec.sha256, spec.sha256)
        files[files.index(named)] = HubFile(named.name, named.bytes, spec.sha256)
    folder = (out or Path(spec.name.rpartition("/")[2])).expanduser()
    key = hashlib.sha256(os.fsencode(folder.absolute())).hexdigest()[:32]
    lock = cache_folder() / "locks" / f"pull-{key}"
    with exclusive_lock(lock, f"{folder}: another process downloads into it; waiting"):
        yield ModelPull(client, listing, files, shown), folder, make_folder(folder / WORK)


def _part_path(work: Path, file: HubFile) -> Path:
    key = hashlib.sha256(file.name.encode()).hexdigest()[:16]
    return make_folder(work / "parts") / f"{key}-{file.name.rpartition('/')[2][-150:]}.part"


def _partial_bytes(work: Path, file: HubFile) -> int:
    part = _part_path(work, file)
    return min(part.stat().st_size, file.bytes) if part.is_file() else 0


def _is_present(out: Path, file: HubFile) -> bool:
    """Return whether the folder has the file with the content that the hub lists."""
    path = out / file.name
    if path.is_symlink() or not path.is_file() or path.stat().st_size != file.bytes:
        return False
    if file.sha256:
        return content_digest(path) == file.sha256
    return file.git_id is None or git_blob_id(path) == file.git_id


def _require_space(out: Path, work: Path, missing: Iterable[HubFile], joins: Iterable[PieceGroup]) -> None:
    """Raise StorageError if the files do not fit; a joined file and its pieces exist at the same time."""
    needed = sum(file.bytes - _partial_bytes(work, file) for file in missing)
    needed += sum(group.bytes for group in joins)
    free = shutil.disk_usage(out).free
    if needed > free:
        raise StorageError(
            f"{out}: needs {format_bytes(needed)}, but only {format_bytes(free)} are free",
            hint="select fewer files with --include, or another folder with --out",
        )


def _require_inside(out: Path, name: str) -> None:
    """Raise StorageError if a folder of the path is a link, which could lead out of `out`."""
    folder = out
    for part in PurePosixPath(name).parts[:-1]:
        folder /= part
        if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
            raise StorageError(
                f"{folder}: not a folder", hint="remove it, or choose another folder with --out"
            )


def _place(part: Path, target: Path) -> None:
    """Move a verified download to its place."""
    make_folder(target.parent)
    with translate_write_errors(target):
        fsync_path(part)
        part.replace(target)
        fsync_path(target.parent)
    discard_download(part)  # the record


def _is_joined(out: Path, group: PieceGroup) -> bool:
    """Return whether the folder has the joined file of the pieces that the hub lists."""
    path = out / group.name
    if path.is_symlink() or not path.is_file() or path.stat().st_size != group.bytes:
        return False
    with translate_read_errors(path), path.open("rb") as file:
        return all(piece.sha256 in (None, _digest_of_next(file.read, piece.bytes)) for piece in group.pieces)


def _digest_of_next(read: Callable[[int], bytes], count: int) -> str:
    digest = hashlib.sha256()
    while count and (chunk := read(min(count, 1 << 20))):
        digest.update(chunk)
        count -= len(chunk)
    return digest.hexdigest()


def _join(out: Path, group: PieceGroup) -> None:
    """Concatenate the pieces of a file, and remove them."""
    paths = [out / piece.name for piece in group.pieces]
    remove_path(out / group.name)  # a file of another revision, or one that was altered
    with concatenate(paths, out / group.name):
        pass
    for path in paths:
        remove_path(path)
    info(f"{out / group.name}: joined from {len(paths)} pieces")


def _first_of(errors: Sequence[MeditronError]) -> MeditronError:
    """Return the first error, by its message; its hint counts the others."""
    first, *others = sorted(errors, key=lambda error: error.message)
    more = f"{len(others):,} further files are wrong; " if others else ""
    first.hint = f"{first.hint}; {more}the other files are kept: run the same command again"
    return first
