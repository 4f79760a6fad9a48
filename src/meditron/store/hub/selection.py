"""Selection of a repository's files, and the groups of files that are one model.

Files above the hub's limit of 50 GB are published in two forms: as shards of llama.cpp's `gguf-split`
(`NAME-00001-of-00003.gguf`), which llama.cpp reads as they are, and as plain pieces (`NAME.gguf-split-a`,
`-split-b`), which have to be concatenated.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path

from meditron.core.errors import InputError, SourceError
from meditron.store.gguf_parts import first_part
from meditron.store.hub.client import HubFile

__all__ = ["PieceGroup", "model_of", "piece_groups", "require_safe_names", "select_files"]

_SHARD = re.compile(r"(.+)-\d{5}-of-\d{5}(\.gguf|\.safetensors)")
_PIECE = re.compile(r"(.+)-split-([a-z])")
_MOST_NEAR = 5
# Windows: drive letters and alternate streams (`:`), and names that devices have in every folder.
_DEVICE = re.compile(r"(?:con|prn|aux|nul|com\d|lpt\d)(?:\..*)?", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class PieceGroup:
    """The plain pieces of one file, in order."""

    name: str
    """Name of the file that the pieces are parts of."""
    pieces: tuple[HubFile, ...]

    @property
    def bytes(self) -> int:
        """Size of the joined file."""
        return sum(piece.bytes for piece in self.pieces)


def require_safe_names(files: Iterable[HubFile], shown: str) -> None:
    """Raise InputError if a file's name could lead outside of a folder, on Linux, macOS or Windows."""
    for file in files:
        parts = file.name.split("/")
        unsafe = (
            any(part in ("", ".", "..") or part != part.rstrip(". ") for part in parts)
            or any(character in '\\:*?"<>|' or not character.isprintable() for character in file.name)
            or any(_DEVICE.fullmatch(part) or len(part.encode(errors="replace")) > 255 for part in parts)
        )
        if unsafe:
            raise InputError(
                shown, "a file's name is not a relative path that is safe on every system", place=file.name
            )


def model_of(name: str) -> str:
    """Return the name of the model that a file is a part of; `name` itself for a file that is not split."""
    if shard := _SHARD.fullmatch(name):
        return f"{shard[1]}{shard[2]}"
    piece = _PIECE.fullmatch(name)
    return piece[1] if piece else name


def piece_groups(files: Iterable[HubFile]) -> list[PieceGroup]:
    """Return the complete groups of plain pieces: `-split-a`, `-split-b` and so on, without a gap."""
    by_name: dict[str, list[tuple[str, HubFile]]] = {}
    for file in files:
        if piece := _PIECE.fullmatch(file.name):
            by_name.setdefault(piece[1], []).append((piece[2], file))
    groups = []
    for name, pieces in by_name.items():
        pieces.sort(key=lambda piece: piece[0])
        letters = "".join(letter for letter, _ in pieces)
        if len(pieces) > 1 and "abcdefghijklmnopqrstuvwxyz".startswith(letters):
            groups.append(PieceGroup(name, tuple(file for _, file in pieces)))
    return groups


def select_files(
    files: Sequence[HubFile], shown: str, *, name: str | None = None, globs: Sequence[str] = ()
) -> list[HubFile]:
    """Return the files that a name or globs select; all files without either.

    A glob matches the whole path or its last part. The name of a joined file selects its pieces, and a glob
    that matches it too. The name of one shard of gguf-split selects all shards of its model, as llama.cpp
    opens all by the name of the first.

    Raises:
        SourceError: nothing is selected; the hint lists similar names.
    """
    pieces = {piece.name: group.name for group in piece_groups(files) for piece in group.pieces}
    wanted = [name] if name else list(globs)
    if not wanted:
        return list(files)

    def is_selected(file: HubFile) -> bool:
        names = {file.name, pieces.get(file.name, file.name)}
        if name:
            return name in names or first_part(Path(file.name)) == first_part(Path(name))
        names |= {each.rpartition("/")[2] for each in names}
        return any(fnmatchcase(each, glob) for each in names for glob in globs)

    selected = [file for file in files if is_selected(file)]
    if not selected:
        known = [*dict.fromkeys(pieces.values()), *(file.name for file in files)]
        raise _no_match_error(shown, wanted, known, by_name=name is not None)
    return selected


def _no_match_error(shown: str, wanted: Sequence[str], known: Sequence[str], *, by_name: bool) -> SourceError:
    text = ", ".join(wanted)
    plain = {file.lower(): file for file in known}
    near = [
        plain[match]
        for each in wanted
        for match in get_close_matches(each.replace("*", "").lower(), list(plain), n=_MOST_NEAR, cutoff=0.4)
    ]
    listed = ", ".join(list(dict.fromkeys(near))[:_MOST_NEAR] or known[:_MOST_NEAR])
    hint = f"nearest: {listed}" if near else f"its files: {listed}" if known else None
    return SourceError(f"{shown}: no file {'called' if by_name else 'matches'} {text}", hint=hint)
