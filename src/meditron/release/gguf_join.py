"""Joining of a model's parts, those of llama.cpp's gguf-split or plain pieces, into one GGUF file."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from meditron.core.console import progress
from meditron.core.errors import DigestError, InputError, UsageError
from meditron.release.gguf_split import GGUFLayout, metadata_bytes, write_tensors
from meditron.store.checksums import CHECKSUMS_FILE, read_checksums
from meditron.store.files import translate_read_errors
from meditron.store.gguf import map_gguf
from meditron.store.gguf_header import GGUFHeader
from meditron.store.gguf_parts import part_name, part_of, require_complete_split, split_stem
from meditron.store.gguf_writer import MAGIC
from meditron.store.new_files import NewFile, concatenate, create_new_files, refuse_existing

__all__ = ["join_parts"]

# Names of plain pieces: `split`-like letters (model.gguf-split-a) and numbers (model.gguf.part1of2).
_LETTERED = re.compile(r"(?P<whole>.+)-split-(?P<letter>[a-z])", re.DOTALL)
_NUMBERED = re.compile(r"(?P<whole>.+)\.part(?P<number>[0-9]{1,4})of(?P<count>[0-9]{1,4})", re.DOTALL)


@dataclass(frozen=True, slots=True)
class _Parts:
    """The parts of one model, in order."""

    kind: Literal["gguf-split", "plain"]
    paths: Sequence[Path]
    name: str | None
    """Name of the joined file; None if the parts' names do not determine it."""


def join_parts(paths: Sequence[Path], out: Path | None = None) -> dict[str, Any]:
    """Join the parts of a model into one file; parts that are not given are found beside the given ones.

    The parts' content decides how they are joined: files with the keys of gguf-split are merged, pieces of
    one file are concatenated. The file is read before it gets its name, and compared with its line of a
    `SHA256SUMS` beside the parts.

    Args:
        paths: Some or all parts, in any order.
        out: The file to write; by default beside the parts, under the name that they have in common.

    Returns:
        `path`, `bytes`, `sha256`; `parts`: the parts' paths in order; `kind`: `gguf-split` or `plain`.

    Raises:
        UsageError: the output exists, or the parts' names do not determine it.
        InputError: a part is missing, occurs twice, is damaged or belongs to another model.
        SourceError: there is no such file.
        StorageError: the disk has too little space.
    """
    _refuse_duplicates(paths)
    parts = _collect(paths)
    if out is None:
        if parts.name is None:
            raise UsageError("--out: the parts' names do not determine the joined file's name")
        out = parts.paths[0].with_name(parts.name)
    refuse_existing([out])
    record = (_merge if parts.kind == "gguf-split" else _concatenate)(parts, out)
    return {**record, "parts": [str(path) for path in parts.paths], "kind": parts.kind}


def _refuse_duplicates(paths: Sequence[Path]) -> None:
    seen: dict[tuple[int, int], Path] = {}
    for path in paths:
        with translate_read_errors(path):
            status = path.stat()
        if not path.is_file():
            raise InputError(path, "not a regular file")
        key = (status.st_dev, status.st_ino)
        if key in seen:
            raise InputError(path, f"the same file as {seen[key]}: a part must be given once")
        seen[key] = path


def _collect(paths: Sequence[Path]) -> _Parts:
    """Return all parts of the model that the given files are parts of."""
    headers = {path: _part_header(path) for path in paths}
    shards = {path: header for path, header in headers.items() if header is not None}
    if not shards:
        return _collect_plain(paths)
    if other := [path for path in paths if path not in shards]:
        raise InputError(
            other[0], f"has no {MAGIC.decode()} header of a split model, unlike {next(iter(shards)).name}"
        )
    return _collect_shards(shards)


def _part_header(path: Path) -> GGUFHeader | None:
    """Return the header of a part of gguf-split; None for any other file."""
    try:
        header = map_gguf(path)[1]
    except InputError as error:
        # The first piece of a cut file is a GGUF file that ends too early; all others are arbitrary bytes.
        if split_stem(path) is not None:
            raise InputError(
                path, f"not a part of a split model: {error.problem}", place=error.place
            ) from error
        return None
    return header if part_of(path, header) else None


def _collect_shards(shards: Mapping[Path, GGUFHeader]) -> _Parts:
    by_number: dict[int, Path] = {}
    stems = {path: stem for path in shards if (stem := split_stem(path)) is not None}
    first, count = next(iter(shards)), 0
    for path, header in shards.items():
        place = part_of(path, header)
        assert place is not None  # noqa: S101
        if path in stems and stems[path] != next(iter(stems.values())):
            raise InputError(path, f"belongs to another model than {next(iter(stems)).name}")
        if path is not first and place[1] != count:
            raise InputError(path, f"is one of {place[1]} parts, {first.name} one of {count}")
        count = place[1]
        if (twin := by_number.setdefault(place[0], path)) is not path:
            raise InputError(path, f"is part {place[0] + 1}, as {twin.name} is")
    folders = dict.fromkeys(path.parent for path in shards)
    missing = []
    for number in set(range(count)) - by_number.keys():
        names = dict.fromkeys(part_name(stem, number + 1, count) for stem in stems.values())
        found = [folder / name for folder in folders for name in names if (folder / name).is_file()]
        if found:
            by_number[number] = found[0]
        else:
            missing.append(number + 1)
    if missing:
        raise InputError(
            first,
            f"is one of {count} parts, of which {len(missing)} are missing",
            hint=f"missing: part {', '.join(map(str, sorted(missing)[:8]))}",
        )
    name = f"{next(iter(stems.values()))}.gguf" if stems else None
    return _Parts("gguf-split", [by_number[number] for number in range(count)], name)


def _merge(parts: _Parts, out: Path) -> dict[str, Any]:
    headers = [map_gguf(path)[1] for path in parts.paths]
    require_complete_split(parts.paths, headers)
    pairs, count = metadata_bytes(parts.paths[0], headers[0])
    layout = GGUFLayout(headers[0].version, headers[0].byte_order, headers[0].alignment, pairs, count)
    for index, header in enumerate(headers):
        for tensor in header.tensors.values():
            layout.add(replace(tensor, part=index))
    with (
        progress(f"join {out.name}", layout.nbytes, unit="B") as bar,
        create_new_files([out], layout.nbytes, bar) as (new,),
    ):
        with new:
            new.write(layout.header_bytes())
            write_tensors(new, layout, parts.paths)
        map_gguf(new.temporary)
        _require_checksum(new, parts)
    return new.record


def _collect_plain(paths: Sequence[Path]) -> _Parts:
    places = {path: _plain_place(path) for path in paths}
    whole = next(iter(places.values()))[0]
    for path, place in places.items():
        if place[0] != whole:
            raise InputError(path, f"is a piece of {place[0]}, {paths[0].name} is one of {whole}")
    by_number: dict[int, Path] = {}
    for path, (_, number) in places.items():
        if (twin := by_number.setdefault(number, path)) is not path:
            raise InputError(path, f"is piece {number}, as {twin} is")
    for folder in dict.fromkeys(path.parent for path in paths):
        for file in sorted(folder.iterdir()):
            match = _LETTERED.fullmatch(file.name) or _NUMBERED.fullmatch(file.name)
            if match and match["whole"] == whole and file.is_file():
                by_number.setdefault(_plain_place(file)[1], file)
    numbered = _NUMBERED.fullmatch(paths[0].name)
    count = int(numbered["count"]) if numbered else max(by_number)
    if missing := sorted(set(range(1, count + 1)) - by_number.keys()):
        raise InputError(paths[0], f"piece {missing[0]} of {count} is missing")
    if len(by_number) > count:
        raise InputError(by_number[max(by_number)], f"is not one of {count} pieces")
    return _Parts("plain", [by_number[number] for number in sorted(by_number)], whole)


def _plain_place(path: Path) -> tuple[str, int]:
    """Return the name of the whole file, and the number of its piece, from 1."""
    if match := _LETTERED.fullmatch(path.name):
        return match["whole"], ord(match["letter"]) - ord("a") + 1
    if match := _NUMBERED.fullmatch(path.name):
        return match["whole"], int(match["number"])
    with translate_read_errors(path), path.open("rb") as file:
        is_gguf = file.read(len(MAGIC)) == MAGIC
    raise InputError(
        path,
        "is a whole GGUF file, not a part of one"
        if is_gguf
        else "is neither a part of a GGUF file nor named like one",
        hint="parts are called model-00001-of-00002.gguf (gguf-split) or model.gguf-split-a (pieces)",
    )


def _concatenate(parts: _Parts, out: Path) -> dict[str, Any]:
    with concatenate(parts.paths, out) as new:
        _require_whole_gguf(new, parts)
        _require_checksum(new, parts)
    return new.record


def _require_whole_gguf(new: NewFile, parts: _Parts) -> None:
    """Raise InputError unless the joined pieces are one GGUF file from its first to its last byte."""
    names = ", ".join(path.name for path in parts.paths)
    hint = "a piece is missing, damaged, in the wrong order, or from another file"
    try:
        header = map_gguf(new.temporary)[1]
    except InputError as error:
        problem = f"with {names} is not a GGUF file: {error.problem}"
        raise InputError(parts.paths[0], problem, place=error.place, hint=hint) from error
    end = max(
        (tensor.offset + tensor.nbytes for tensor in header.tensors.values()), default=header.data_start
    )
    if new.nbytes - end >= header.alignment:
        problem = f"with {names} has {new.nbytes - end:,} bytes after its last tensor"
        raise InputError(parts.paths[0], problem, place=f"byte {end}", hint=hint)


def _require_checksum(new: NewFile, parts: _Parts) -> None:
    """Raise DigestError if a SHA256SUMS beside the parts has another checksum for the joined file."""
    if parts.name is None:
        return
    folder = parts.paths[0].parent
    expected = read_checksums(folder).get(parts.name, new.sha256)
    if new.sha256 != expected:
        raise DigestError(
            new.path, f"SHA-256 is {new.sha256}, expected {expected} from {folder / CHECKSUMS_FILE}"
        )
