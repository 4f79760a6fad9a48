"""Verification of a model's file or folder: everything that can be known without running it."""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from meditron.core.console import Bar, progress
from meditron.core.errors import InputError, MeditronError, SourceError
from meditron.release.verify.gguf_checks import gguf_problems
from meditron.release.verify.provenance import provenance_problems
from meditron.release.verify.safetensors_checks import folder_problems, safetensors_problems
from meditron.release.verify.signature import SignatureState, signature_state
from meditron.store.checksums import CHECKSUMS_FILE, read_checksums
from meditron.store.files import canonical_json, list_files, sha256_file
from meditron.store.gguf import GGUF, map_gguf
from meditron.store.gguf_parts import existing_parts
from meditron.store.gguf_writer import MAGIC
from meditron.store.manifest import FILE_NAME, read_manifest

__all__ = ["verify"]

# Of several parts, the first of these that one of them has counts for all.
_STATES: tuple[SignatureState, ...] = ("failed", "not checked", "none", "verified")


def verify(path: Path, key: Path | None = None) -> dict[str, Any]:
    """Verify a GGUF or safetensors file, or a folder of them.

    Checked are the format with all bounds, values that are not finite or absurd, the vocabulary against the
    tensors, the index of split weights, `SHA256SUMS` beside the files, a signature of OpenSSF's model signing
    if a key is given, and the manifests from which the files were made.

    Args:
        path: The file or folder. Of a split model any part, which verifies all.
        key: The public key (PEM) of the signature; the signature is then required.

    Returns:
        `ok`; `problems`: one sentence per problem, with file and place; `sha256`: of the file, or of a
        folder's files together (of the list of their names and SHA-256); `files`: name → SHA-256;
        `signature`: `verified`, `not checked` (no key), `none` or `failed`; `notes`: things not checked.

    Raises:
        SourceError: there is no such file or folder.
        MissingExtra: a key is given, and model-signing is not installed.
    """
    if not path.exists():
        raise SourceError(f"{path}: no such file or folder")
    folder = path if path.is_dir() else path.parent
    files = list_files(path) if path.is_dir() else existing_parts(path)
    problems = list(_content_problems(path, files))
    digests: dict[str, str] = {}
    with progress("SHA-256", sum(file.stat().st_size for file in files), unit="B") as bar:
        for file in files:
            digests[file.relative_to(folder).as_posix()] = sha256_file(file)
            bar.advance(file.stat().st_size)
    problems += _checksum_problems(folder, digests, whole=path.is_dir())
    problems += _manifest_problems(path, digests)
    # A folder has one signature for all its files; each part of a split model has its own.
    signatures = [signature_state(each, key) for each in ([path] if path.is_dir() else files)]
    problems += [problem for _, found in signatures for problem in found]
    state = min((state for state, _ in signatures), key=_STATES.index)
    notes = ["a signature is there, but no --key was given"] if state == "not checked" else []
    return {
        "ok": not problems,
        "problems": problems,
        "sha256": _digest(path, digests),
        "files": digests,
        "signature": state,
        "notes": notes,
    }


def _digest(path: Path, digests: dict[str, str]) -> str:
    if path.is_dir():  # as in `content_digest`, whose digest has this form
        return hashlib.sha256(canonical_json([[name, digests[name]] for name in sorted(digests)])).hexdigest()
    return digests[path.name]


def _content_problems(path: Path, files: list[Path]) -> Iterator[str]:
    """Yield the problems of each model file; of a single file also that it is none."""
    models = [(file, kind) for file in files if (kind := _kind(file)) is not None]
    if not models:
        if path.is_file():
            yield f"{path} (byte 0): neither a GGUF nor a safetensors file"
        elif not (path / FILE_NAME).is_file():
            yield f"{path}: contains no GGUF or safetensors file"
    done: set[Path] = set()
    with progress(f"verify {path.name}", sum(file.stat().st_size for file, _ in models), unit="B") as bar:
        for file, kind in models:
            if kind == "gguf" and file not in done:
                done |= {file, *existing_parts(file)}
                yield from _gguf_file_problems(file, bar)
            elif kind == "safetensors":
                yield from safetensors_problems(file, bar)
    if path.is_dir():
        for folder in sorted({file.parent for file, kind in models if kind == "safetensors"}):
            yield from folder_problems(folder)


def _kind(file: Path) -> str | None:
    """Return a model file's format by its content, or by its name if the content is damaged."""
    with file.open("rb") as opened:
        magic = opened.read(len(MAGIC))
    if magic == MAGIC or file.suffix == ".gguf":
        return "gguf"
    return "safetensors" if file.suffix == ".safetensors" else None


def _gguf_file_problems(file: Path, bar: Bar) -> Iterator[str]:
    try:
        with GGUF(file) as gguf:
            headers = tuple(map_gguf(part)[1] for part in gguf.files)
            yield from gguf_problems(gguf, headers, bar)
    except InputError as error:
        yield str(error)


def _checksum_problems(folder: Path, digests: dict[str, str], *, whole: bool) -> Iterator[str]:
    """Yield differences from `SHA256SUMS`, and for a whole folder the missing files that it lists."""
    try:
        expected = read_checksums(folder)
    except InputError as error:
        yield str(error)
        return
    sums = folder / CHECKSUMS_FILE
    for name, digest in expected.items():
        if name not in digests:
            if whole:
                yield f"{sums} ({name}): the file is missing"
        elif digests[name] != digest:
            yield f"{folder / name}: SHA-256 is {digests[name]}, {sums} has {digest}"


def _manifest_problems(path: Path, digests: dict[str, str]) -> Iterator[str]:
    """Yield the breaks of the provenance chain; of a file first its difference from its stage's manifest."""
    folder = path if path.is_dir() else path.parent
    try:
        manifest = read_manifest(folder)
    except MeditronError as error:
        yield error.message
        return
    if manifest is None:
        return
    recorded = {record.path: record.sha256 for record in manifest.files}
    if path.is_file() and not recorded.keys() >= digests.keys():
        return
    yield from provenance_problems(folder)
    for name in sorted(recorded.keys() & digests.keys()):
        if recorded[name] != digests[name]:
            yield f"{folder / name}: has a different SHA-256 than in {folder / FILE_NAME}"
