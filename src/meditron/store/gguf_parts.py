"""The parts of a GGUF model that llama.cpp's gguf-split, or a program like it, split into several files.

Part i of n is called `STEM-0000i-of-0000n.gguf` and is a GGUF file of its own. Its key `split.no` is i - 1,
`split.count` is n, and `split.tensors.count` is the number of tensors of the whole model. Only the first part
has the model's metadata.
"""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from meditron.core.errors import InputError
from meditron.store.files import canonical_json, content_digest

if TYPE_CHECKING:
    from meditron.store.gguf_header import GGUFHeader

__all__ = [
    "SPLIT_COUNT",
    "SPLIT_KEYS",
    "SPLIT_NUMBER",
    "SPLIT_TENSORS",
    "existing_parts",
    "find_parts",
    "first_part",
    "gguf_digest",
    "part_name",
    "part_of",
    "require_complete_split",
    "split_stem",
]

SPLIT_NUMBER, SPLIT_COUNT, SPLIT_TENSORS = "split.no", "split.count", "split.tensors.count"
SPLIT_KEYS = (SPLIT_NUMBER, SPLIT_COUNT, SPLIT_TENSORS)
_NAME = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf", re.DOTALL)


def part_name(stem: str, number: int, count: int) -> str:
    """Return a part's file name: `model-00002-of-00003.gguf` for part 2 of 3 of `model`."""
    return f"{stem}-{number:05d}-of-{count:05d}.gguf"


def split_stem(path: Path) -> str | None:
    """Return `model` for `model-00002-of-00003.gguf`; None if the name is not that of a part."""
    match = _NAME.fullmatch(path.name)
    return match[1] if match else None


def first_part(path: Path) -> Path:
    """Return the first part's path for the path of any part; other paths are returned unchanged."""
    match = _NAME.fullmatch(path.name)
    return path.with_name(part_name(match[1], 1, int(match[3]))) if match else path


def existing_parts(path: Path) -> list[Path]:
    """Return the existing files with the names of the parts of `path`'s model, in order.

    A path that is not named like a part is its only part.
    """
    match = _NAME.fullmatch(path.name)
    if match is None:
        return [path]
    # The folder is searched for names, because the count in a name can be any number.
    pattern = re.compile(rf"{re.escape(match[1])}-\d{{5}}-of-{match[3]}\.gguf", re.DOTALL)
    return sorted(file for file in path.parent.iterdir() if pattern.fullmatch(file.name))


def gguf_digest(path: Path, *, cached: bool = True) -> str:
    """Compute the hexadecimal SHA-256 of a GGUF file; of a split model over the digests of all its parts.

    With `cached` the digest of an unchanged file comes from the cache of digests.
    """
    parts = existing_parts(path)
    digests = [content_digest(part, cached=cached) for part in parts]
    return digests[0] if len(parts) == 1 else hashlib.sha256(canonical_json(digests)).hexdigest()


def part_of(path: Path, header: "GGUFHeader") -> tuple[int, int] | None:
    """Return a part's number, from 0, and the number of parts; None for a file that is not split.

    Raises:
        InputError: the number is not one of the parts'.
    """
    count, number = header.metadata.get(SPLIT_COUNT, 0), header.metadata.get(SPLIT_NUMBER, 0)
    if type(count) is not int or count < 0:
        raise InputError(path, f"must be a number of parts, got {count!r:.60}", place=SPLIT_COUNT)
    if count <= 1:  # gguf-split writes 0 into a merged file
        return None
    if type(number) is not int or not 0 <= number < count:
        raise InputError(path, f"must be from 0 to {count - 1}, got {number!r:.60}", place=SPLIT_NUMBER)
    return number, count


def find_parts(path: Path, header: "GGUFHeader") -> list[Path]:
    """Return the parts of a model in order, given any part and its header; `[path]` if it is not split.

    Raises:
        InputError: a part is missing, or the file is not named like a part, so that the others cannot be
            found.
    """
    place = part_of(path, header)
    if place is None:
        return [path]
    number, count = place
    match = _NAME.fullmatch(path.name)
    expected = part_name(match[1] if match else "STEM", number + 1, count)
    if match is None or path.name != expected:
        raise InputError(
            path,
            f"is part {number + 1} of a model split into {count} files, but is not called {expected}",
            place=SPLIT_COUNT,
            hint="rename the parts, or join them: meditron join FILES --out model.gguf",
        )
    paths = [path.with_name(part_name(match[1], index + 1, count)) for index in range(count)]
    if missing := [part.name for part in paths if not part.is_file()]:
        raise InputError(
            path,
            f"is part {number + 1} of a model split into {count} files, of which {len(missing)} are missing",
            place=SPLIT_COUNT,
            hint=f"missing beside it: {', '.join(missing[:3])}{', …' if len(missing) > 3 else ''}",
        )
    return paths


def require_complete_split(paths: Sequence[Path], headers: "Sequence[GGUFHeader]") -> None:
    """Raise InputError unless the files, in this order, are all parts of one split model."""
    owner: dict[str, Path] = {}
    for index, (path, header) in enumerate(zip(paths, headers, strict=True)):
        place = part_of(path, header)
        if place != (index, len(paths)):
            actual = "is not split" if place is None else f"is part {place[0] + 1} of {place[1]}"
            raise InputError(path, f"{actual}, expected part {index + 1} of {len(paths)}", place=SPLIT_COUNT)
        if header.byte_order != headers[0].byte_order:
            raise InputError(path, f"is {header.byte_order}-endian, the first part is not", place="byte 4")
        for name in header.tensors:
            if name in owner:
                raise InputError(path, f"the tensor is in {owner[name].name} too", place=name)
            owner[name] = path
    for path, header in zip(paths, headers, strict=True):
        total = header.metadata.get(SPLIT_TENSORS, len(owner))
        if total != len(owner):
            problem = f"the model has {total!r:.60} tensors, but its parts have {len(owner)}"
            raise InputError(path, problem, place=SPLIT_TENSORS, hint="a part is from another model")
