"""The files of a folder that a push uploads, and the checks before any of them leaves this machine."""

import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from yaml import YAMLError  # type: ignore[import-untyped]  # gguf depends on it

from meditron.core.errors import DigestError, InputError, UsageError
from meditron.core.units import format_bytes
from meditron.store.files import content_digest, translate_read_errors
from meditron.store.hub.client import HubFile
from meditron.store.hub.selection import require_safe_names

__all__ = [
    "CARD",
    "SUMS",
    "FolderFiles",
    "LocalFile",
    "check_sums",
    "read_card",
    "scan_folder",
    "sums_text",
]

CARD, SUMS = "README.md", "SHA256SUMS"
MAX_FILE_BYTES = 50 * 10**9
"""Largest file that the hub accepts."""
_NOT_SUMMED = {CARD, SUMS, ".gitattributes"}
_LARGEST_TEXT = 1 << 20
_SECRET = re.compile(
    rb"\bhf_[A-Za-z0-9]{30,}|-----BEGIN [A-Z ]*PRIVATE KEY-----|\b(?:ghp|gho)_[A-Za-z0-9]{36}"
)
_PICKLES = {".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".dill"}
_PICKLE_MAGIC = (b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05", b"PK")  # also torch's zip archives
_CACHES = {"__pycache__", "node_modules"}
_LEFTOVERS = (".pyc", ".part", ".part.json", ".tmp", ".incomplete", ".lock", "~")
_UNFINISHED = {"in_progress.json", "token"}
_LINE = re.compile(r"([0-9a-fA-F]{64}) [ *](.+)")


@dataclass(frozen=True, slots=True)
class LocalFile:
    """A file to upload."""

    name: str
    """Path in the folder, with `/`."""
    path: Path
    bytes: int


@dataclass(frozen=True, slots=True)
class FolderFiles:
    """The files to upload, and those that are left out."""

    files: tuple[LocalFile, ...]
    excluded: Mapping[str, str]
    """Path → reason."""


def scan_folder(folder: Path) -> FolderFiles:
    """Return the files of a folder to upload, sorted by name.

    Left out are hidden files and folders (`.git`, `.cache`, `.env`; not `.gitattributes`), links, pickles,
    caches, and files of unfinished work.

    Raises:
        SourceError: there is no such folder.
        UsageError: a file is above the hub's limit, or there is nothing to upload.
        InputError: a text file contains an access token or a private key, or a name is not safe.
    """
    with translate_read_errors(folder):
        os.listdir(folder)  # noqa: PTH208  # raises for a missing or unreadable folder
    files: list[LocalFile] = []
    excluded: dict[str, str] = {}
    for path in _walk(folder):
        name = path.relative_to(folder).as_posix()
        if reason := _exclusion(path):
            excluded[name] = reason
        else:
            files.append(LocalFile(name, path, path.stat().st_size))
    if not files:
        raise UsageError(f"{folder}: contains no file to upload")
    require_safe_names([HubFile(file.name, file.bytes) for file in files], str(folder))
    for file in files:
        if file.bytes > MAX_FILE_BYTES:
            raise UsageError(
                f"{file.path}: {format_bytes(file.bytes)}; the hub accepts files up to "
                f"{format_bytes(MAX_FILE_BYTES)}",
                hint=f"split it into shards that llama.cpp reads: meditron split {file.path} --max-size 45G",
            )
        _refuse_secret(file)
    return FolderFiles(tuple(sorted(files, key=lambda file: file.name)), excluded)


def _walk(folder: Path) -> Iterator[Path]:
    """Yield files, links, and the folders that are left out as a whole."""
    for parent, folders, names in os.walk(folder):
        for name in sorted(folders):
            path = Path(parent, name)
            if path.is_symlink() or name.startswith(".") or name in _CACHES:
                folders.remove(name)
                yield path
        yield from (Path(parent, name) for name in sorted(names))


def _exclusion(path: Path) -> str | None:
    """Return why a path is not uploaded; None if it is."""
    name = path.name
    mode = path.lstat().st_mode
    if stat.S_ISLNK(mode):
        return "a link"
    if name.startswith(".") and name != ".gitattributes":
        return "hidden"
    if stat.S_ISDIR(mode):
        return "a cache"
    if not stat.S_ISREG(mode):
        return "not a regular file"
    if name in _UNFINISHED or name.endswith(_LEFTOVERS):
        return "unfinished work or a local file"
    return "a pickle, which can execute code when it is read" if _is_pickle(path) else None


def _is_pickle(path: Path) -> bool:
    if path.suffix.lower() in _PICKLES:
        return True
    if path.suffix.lower() != ".bin":
        return False
    with translate_read_errors(path), path.open("rb") as file:
        return file.read(2).startswith(_PICKLE_MAGIC)


def _refuse_secret(file: LocalFile) -> None:
    if file.bytes > _LARGEST_TEXT:
        return
    with translate_read_errors(file.path):
        content = file.path.read_bytes()
    if match := _SECRET.search(content):
        line = content.count(b"\n", 0, match.start()) + 1
        raise InputError(
            file.path, "contains an access token or a private key", place=f"line {line}",
            hint="remove it, and revoke it if others may have seen it",
        )  # fmt: skip


def check_sums(folder: Path, files: Sequence[LocalFile]) -> dict[str, str]:
    """Return the SHA-256 of each file, after comparing them with the folder's `SHA256SUMS`, if it exists.

    Raises:
        DigestError: a file differs from its recorded sum.
        InputError: `SHA256SUMS` is damaged, or lists a file that is not there.
    """
    digests = {file.name: content_digest(file.path) for file in files}
    path = folder / SUMS
    if not path.is_file():
        return digests
    with translate_read_errors(path):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    hint = f"if the change is intended, remove {path}: it is written anew"
    for number, line in enumerate(lines, 1):
        match = _LINE.fullmatch(line)
        if match is None:
            raise InputError(path, "not a line `SHA256  NAME`", place=f"line {number}")
        recorded, name = match[1].lower(), match[2]
        if name not in digests:
            raise InputError(path, f"lists {name}, which is not uploaded", place=f"line {number}", hint=hint)
        if digests[name] != recorded and name not in _NOT_SUMMED:
            message = f"SHA-256 is {digests[name]}, expected {recorded}"
            raise DigestError(folder / name, message, place=f"{SUMS}, line {number}", hint=hint)
    return digests


def sums_text(digests: Mapping[str, str]) -> str:
    """Return the content of `SHA256SUMS`: all files but the card, in the form of `sha256sum`."""
    return "".join(
        f"{digest}  {name}\n" for name, digest in sorted(digests.items()) if name not in _NOT_SUMMED
    )


def read_card(path: Path) -> str:
    """Return a model card, whose front matter must state a licence.

    Raises:
        InputError: there is no card, its front matter is not valid, or it states no licence.
    """
    from huggingface_hub import ModelCard

    hint = "the card stage of a recipe writes one; or begin the file with YAML between two lines `---`"
    if not path.is_file():
        raise InputError(path, "there is no model card", hint=hint)
    with translate_read_errors(path):
        text = path.read_bytes().decode("utf-8", "replace")
    try:
        data = ModelCard(text, ignore_metadata_errors=False).data
    except (ValueError, TypeError, YAMLError) as error:
        problem = " ".join(str(error).split())[:200]
        raise InputError(path, f"not valid: {problem}", place="front matter", hint=hint) from error
    if not data.get("license"):
        raise InputError(
            path, "states no licence", place="front matter", hint="add a line such as license: llama2"
        )
    return text
